use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::disk::{Bytes, DiskFile};

fn run(program: &str, args: &[&str], path: &Path) -> bool {
    let args = args.iter().map(|arg| if *arg == "@" { path.as_os_str() } else { arg.as_ref() });
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// A FAT that others made, with a file of 70 000 bytes and two small ones; `None` where the tools are not there.
fn made(width: &str, size: u64) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let (disk, large, small) =
        (folder.path().join("disk"), folder.path().join("large"), folder.path().join("small"));
    fs::File::create(&disk).unwrap().set_len(size).unwrap();
    fs::write(&large, (0..70_000_u32).map(|n| n.to_le_bytes()[1]).collect::<Vec<u8>>()).unwrap();
    fs::write(&small, b"small").unwrap();
    let to = |from: &Path, name: &str| {
        let target = format!("::/loader/entries/{name}");
        run("mcopy", &["-i", "@", from.to_str().unwrap(), &target], &disk)
    };
    let done = run("/sbin/mkfs.vfat", &["-F", width, "-s", "1", "-n", "LABEL", "@"], &disk)
        && run("mmd", &["-i", "@", "::/loader", "::/loader/entries"], &disk)
        && to(&large, "otandem-a+3.conf")
        && to(&small, "PLAIN.TXT")
        && to(&small, "otandem-b.conf");
    if !done {
        println!("skipped: no dosfstools or no mtools");
        return None;
    }
    Some(fs::read(&disk).unwrap())
}

#[test]
fn files_that_others_wrote_are_found_with_their_names_and_content() {
    for (width, size) in [("16", 16 << 20), ("32", 40 << 20)] {
        let Some(bytes) = made(width, size) else { return };
        let mut disk = vec![0; 4096];
        disk.extend(bytes);
        let disk = Bytes(disk);
        let fat = Fat::open(&disk, 4096).unwrap();
        let names: Vec<String> =
            fat.list("loader/entries").unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["otandem-a+3.conf", "PLAIN.TXT", "otandem-b.conf"]);
        let file = fat.find("loader/entries/otandem-a+3.conf").unwrap();
        let content = fat.content(&file).unwrap();
        assert!(content == (0..70_000_u32).map(|n| n.to_le_bytes()[1]).collect::<Vec<u8>>());
        let (start, len) = fat.extent(&file).unwrap();
        let mut there = vec![0; usize::try_from(len).unwrap()];
        disk.read(start, &mut there).unwrap();
        assert!(there == content, "where it is said to lie");
        assert_eq!(fat.list("").unwrap().len(), 1, "the label is no file");
        assert!(matches!(fat.find("loader/entries/none"), Err(FatError::Missing { .. })));
    }
}

#[test]
fn a_long_name_that_is_torn_leaves_the_short_one() {
    let Some(mut bytes) = made("32", 40 << 20) else { return };
    // A part begins with its number and five letters; its checksum is byte 13.
    let letters: Vec<u8> = "otand".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let at = bytes.windows(letters.len()).position(|part| part == letters).unwrap();
    bytes[at - 1 + 13] ^= 1;
    let disk = Bytes(bytes);
    let fat = Fat::open(&disk, 0).unwrap();
    let first = fat.list("loader/entries").unwrap().remove(0);
    assert!(first.name.contains('~') && first.name.ends_with(".CON"), "{first:?}");
}

#[test]
fn clusters_in_a_circle_are_an_error_and_not_for_ever() {
    let Some(mut bytes) = made("32", 40 << 20) else { return };
    let (file, table) = {
        let disk = Bytes(bytes.clone());
        let fat = Fat::open(&disk, 0).unwrap();
        (fat.find("loader/entries/otandem-a+3.conf").unwrap(), word(&bytes, 14) as usize * 512)
    };
    let at = table + (file.first as usize + 5) * 4;
    bytes[at..at + 4].copy_from_slice(&file.first.to_le_bytes());
    let disk = Bytes(bytes);
    let fat = Fat::open(&disk, 0).unwrap();
    assert_eq!(fat.extent(&file), None);
    let endless = Entry { len: u32::MAX, ..file };
    assert!(matches!(fat.content(&endless), Err(FatError::Chain { .. })));
}

#[test]
fn a_directory_that_grew_by_half_is_none() {
    let Some(mut bytes) = made("32", 40 << 20) else { return };
    let table = word(&bytes, 14) as usize * 512;
    let (folder, free) = {
        let disk = Bytes(bytes.clone());
        let fat = Fat::open(&disk, 0).unwrap();
        let free = fat.table.iter().rposition(|next| *next == 0).unwrap();
        (fat.list("loader").unwrap().remove(0), u32::try_from(free).unwrap())
    };
    // The next cluster is named, and is itself still free.
    let at = table + folder.first as usize * 4;
    bytes[at..at + 4].copy_from_slice(&free.to_le_bytes());
    let disk = Bytes(bytes);
    let listed = Fat::open(&disk, 0).unwrap().list("loader/entries");
    assert!(matches!(listed, Err(FatError::Chain { .. })), "{listed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_no_panic(mut noise in prop::collection::vec(any::<u8>(), 512..8192), signed: bool) {
        if signed {
            noise[510..512].copy_from_slice(&[0x55, 0xAA]);
            noise[11..13].copy_from_slice(&512_u16.to_le_bytes());
        }
        let disk = Bytes(noise.clone());
        if let Ok(fat) = Fat::open(&disk, 0) {
            let _ = fat.list("loader/entries");
        }
        for entry in entries(&noise) {
            prop_assert!(!entry.name.is_empty() || noise.len() > ENTRY);
        }
    }
}

#[test]
fn a_file_is_no_fat() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, [0; 1024]).unwrap();
    let disk = DiskFile::open(&path).unwrap();
    assert!(matches!(Fat::open(&disk, 0), Err(FatError::NoFat { .. })));
    assert!(matches!(Fat::open(&disk, 4096), Err(FatError::Disk { .. })));
}
