//! A device for a person: built once, kept, started on this terminal.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use otandem_images::{Console, Defect, Device, Disk, Release, Root, Workshop};
use otandem_system_tests::binary;

use crate::{Play, What};

/// The version that a device leaves the factory with, and one that follows.
const FIRST: &str = "1.0";
const SECOND: &str = "2.0";
/// One that is not well.
const SICK: &str = "3.0-sick";
const MIB: u64 = 1 << 20;
/// Room for the images that are there to be installed.
const DATA: u64 = 256 * MIB;

/// Writes `FOLDER/disk.img` (and `vars.fd`) and, for each version, images to install.
pub(crate) fn build(what: &What, folder: &Path) -> Result<ExitCode, String> {
    let (disk, releases) = make(what, Console::Machine, folder)?;
    for release in &releases {
        for image in &release.slots {
            let name = file_name(release, image.slot);
            let target = folder.join(&name);
            std::fs::copy(&image.packed, &target).map_err(|e| format!("{}: {e}", target.display()))?;
            let sum = folder.join(format!("{name}.sha256"));
            let line = format!("{}  {name}\n", image.packed_sha256);
            std::fs::write(&sum, line).map_err(|e| format!("{}: {e}", sum.display()))?;
        }
    }
    let mut text = format!("{}\n", disk.image.display());
    for part in &disk.layout {
        text += &format!("  {:<12} at {:>10} {:>4} MiB\n", part.name, part.start, part.size / MIB);
    }
    text += &format!("start it with:\n  {} {}\n", Disk::PROGRAM, words(&disk));
    // Who reads only the first line is served.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Starts the device of `target/images/play/CHAIN`, which is made if it is not there.
pub(crate) fn play(play: &Play) -> Result<ExitCode, String> {
    Disk::can_start().map_err(|e| e.to_string())?;
    let folder = Workshop::target().map_err(|e| e.to_string())?.join("play").join(play.what.chain.name());
    let workshop = Workshop::in_target(play.what.chain).map_err(|e| e.to_string())?;
    let device = device(&play.what, Root::new(FIRST, None), Console::Person);
    let disk = match workshop.at(&device, &folder) {
        Ok(disk) if !play.fresh => {
            println!("the device in {} goes on; a new one by --fresh", folder.display());
            disk
        }
        _ => make(&play.what, Console::Person, &folder)?.0,
    };
    println!("Ctrl-A X ends the device at once, as a power cut would; Ctrl-A C is QEMU's own console\n");
    let status = Command::new(Disk::PROGRAM).args(disk.arguments(play.memory)).status();
    let status = status.map_err(|e| format!("{}: {e}", Disk::PROGRAM))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn device(what: &What, factory: Root, console: Console) -> Device {
    let mut device = Device::new(what.chain, factory);
    device.slot_size = what.slot_size * MIB;
    device.data_size = DATA;
    device.console = console;
    device
}

/// A device with images on its data partition, in `folder`.
fn make(what: &What, console: Console, folder: &Path) -> Result<(Disk, Vec<Release>), String> {
    let agent = agent(what)?;
    let workshop = Workshop::in_target(what.chain).map_err(|e| e.to_string())?;
    println!("making the device and the images to install ...");
    let mut device = device(what, Root::new(FIRST, Some(&agent)), console);
    let mut releases = Vec::new();
    for root in [Root::new(SECOND, Some(&agent)), Root::new(SICK, Some(&agent)).with(Defect::HealthHopeless)]
    {
        let release = workshop.release(&root, device.slot_size).map_err(|e| e.to_string())?;
        for image in &release.slots {
            let name = format!("images/{}", file_name(&release, image.slot));
            let bytes =
                std::fs::read(&image.packed).map_err(|e| format!("{}: {e}", image.packed.display()))?;
            device.data.insert(format!("{name}.sha256"), format!("{}  {name}\n", image.packed_sha256).into());
            device.data.insert(name, bytes);
        }
        releases.push(release);
    }
    let disk = workshop.disk(&device, folder).map_err(|e| e.to_string())?;
    Ok((disk, releases))
}

fn agent(what: &What) -> Result<PathBuf, String> {
    match &what.agent {
        Some(path) => Ok(path.clone()),
        None => binary::find_or_build(binary::Show::Progress).map(Path::to_owned).map_err(|e| e.to_string()),
    }
}

fn file_name(release: &Release, slot: &str) -> String {
    format!("{}-{slot}.img.zst", release.version)
}

fn words(disk: &Disk) -> String {
    let quoted = disk.arguments(256).into_iter().map(|word| word.to_string_lossy().into_owned());
    quoted.collect::<Vec<_>>().join(" ")
}
