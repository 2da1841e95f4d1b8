//! A device for a person: built once, kept, started on this terminal.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use otandem_images::{Console, Defect, Device, Disk, Release, Root, SlotImage, Workshop};
use otandem_system_tests::binary;

use crate::{Play, What};

/// The version that a device leaves the factory with, and one that follows.
const FIRST: &str = "1.0";
const SECOND: &str = "2.0";
/// One that is not well.
const SICK: &str = "3.0-sick";
/// Serves the images of the data partition; started in the guest when a person is at the console.
const SERVER: &str = "http://127.0.0.1:8000";
const MIB: u64 = 1 << 20;
/// Room for the images that are there to be installed.
const DATA: u64 = 256 * MIB;

/// Writes `FOLDER/disk.img` (and `vars.fd`) and the images to install.
pub(crate) fn build(what: &What, folder: &Path) -> Result<ExitCode, String> {
    let (disk, files) = make(what, Console::Machine, folder)?;
    for (name, bytes) in &files {
        let target = folder.join(name);
        std::fs::write(&target, bytes).map_err(|e| format!("{}: {e}", target.display()))?;
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

/// Files by their name.
type Files = BTreeMap<String, Vec<u8>>;

/// A device with images on its data partition, in `folder`; and these images.
fn make(what: &What, console: Console, folder: &Path) -> Result<(Disk, Files), String> {
    let agent = agent(what)?;
    let workshop = Workshop::in_target(what.chain).map_err(|e| e.to_string())?;
    println!("making the device and the images to install ...");
    let mut device = device(what, Root::new(FIRST, Some(&agent)), console);
    let mut files = Files::new();
    for root in [Root::new(SECOND, Some(&agent)), Root::new(SICK, Some(&agent)).with(Defect::HealthHopeless)]
    {
        let release = workshop.release(&root, device.slot_size).map_err(|e| e.to_string())?;
        for image in &release.slots {
            let name = file_name(&release, image);
            let bytes =
                std::fs::read(&image.packed).map_err(|e| format!("{}: {e}", image.packed.display()))?;
            files.insert(format!("{name}.sha256"), format!("{}  {name}\n", image.packed_sha256).into());
            files.insert(name, bytes);
        }
        files.insert(format!("{}.json", release.version), document(&release).into());
    }
    device.data.extend(files.iter().map(|(name, bytes)| (format!("images/{name}"), bytes.clone())));
    let disk = workshop.disk(&device, folder).map_err(|e| e.to_string())?;
    Ok((disk, files))
}

/// A job document that names all images of a set.
fn document(release: &Release) -> String {
    let images = release.slots.iter().map(|image| {
        format!(
            "  {{\"slot\": \"{}\", \"url\": \"{SERVER}/{}\", \"compression\": \"zstd\",\n   \
             \"sha256\": \"{}\", \"size\": {},\n   \
             \"file-sha256\": \"{}\", \"file-size\": {},\n   \
             \"version\": \"{}\", \"compatible\": \"otandem-virtual\"}}",
            image.slot,
            file_name(release, image),
            image.sha256,
            image.size,
            image.packed_sha256,
            image.packed_size,
            release.version,
        )
    });
    let images = images.collect::<Vec<_>>().join(",\n");
    format!("{{\"operation\": \"fota\", \"images\": [\n{images}\n]}}\n")
}

fn agent(what: &What) -> Result<PathBuf, String> {
    match &what.agent {
        Some(path) => Ok(path.clone()),
        None => binary::find_or_build(binary::Show::Progress).map(Path::to_owned).map_err(|e| e.to_string()),
    }
}

fn file_name(release: &Release, image: &SlotImage) -> String {
    format!("{}-{}.img.zst", release.version, image.slot)
}

fn words(disk: &Disk) -> String {
    let quoted = disk.arguments(256).into_iter().map(|word| word.to_string_lossy().into_owned());
    quoted.collect::<Vec<_>>().join(" ")
}
