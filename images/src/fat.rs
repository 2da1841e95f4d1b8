//! FAT file systems out of a tree, the same bytes each time.

use std::fs::{self, File};
use std::path::Path;

use crate::error::file;
use crate::tree::{Node, Tree};
use crate::{ImageError, files, tools};

/// Where files get other names in the field.
const RENAMED_IN: &str = "loader/entries";
/// Names that the folder has room for beyond those that it has.
const SPARE_NAMES: usize = 24;

/// The width of a FAT's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// For small ones.
    Fat16,
    /// What EFI asks for.
    Fat32,
}

/// Writes a FAT of `size` bytes with the files of `tree` to `out`. A FAT knows neither modes nor links.
///
/// # Errors
/// [`ImageError::TooSmall`] when the files do not fit, [`ImageError::Tool`] for anything else.
pub(crate) fn make(tree: &Tree, width: Width, label: &str, size: u64, out: &Path) -> Result<(), ImageError> {
    let empty = File::create(out).map_err(file("create", out))?;
    empty.set_len(size).map_err(file("enlarge", out))?;
    let number = &files::digest_of(label.as_bytes())[..8];
    let width = if width == Width::Fat16 { "16" } else { "32" };
    // Small clusters: EFI wants at least 65525 of them in a FAT32.
    let mut format = tools::command("mkfs.vfat");
    format.args(["--invariant", "-F", width, "-i", number, "-n", label]);
    if width == "32" && size < 256 << 20 {
        format.args(["-s", "1"]);
    }
    tools::run(format.arg(out))?;
    let folder = tempfile::tempdir().map_err(file("create a folder for", out))?;
    for (path, node) in tree.nodes() {
        let place = format!("::/{path}");
        match node {
            Node::Folder => tools::run(tools::command("mmd").arg("-i").arg(out).arg(&place))?,
            Node::File { bytes, .. } => {
                let source = folder.path().join("file");
                fs::write(&source, bytes).map_err(file("write", &source))?;
                let copied = tools::run(tools::command("mcopy").arg("-i").arg(out).arg(&source).arg(&place));
                copied.map_err(|e| full(e, tree, label, size))?
            }
            Node::Link(_) => return Err(ImageError::Recipe(format!("{path}: a FAT has no links"))),
        };
    }
    if tree.nodes().any(|(path, node)| path == RENAMED_IN && matches!(node, Node::Folder)) {
        make_room(RENAMED_IN, folder.path(), out)?;
    }
    Ok(())
}

/// Lets a folder grow now, so that it need not when a file in it gets another name: growing changes the table, and a
/// power cut in between leaves a folder that firmware does not open. A FAT keeps the clusters of what is deleted.
fn make_room(path: &str, scratch: &Path, out: &Path) -> Result<(), ImageError> {
    let mut copy = tools::command("mcopy");
    copy.arg("-i").arg(out);
    let mut delete = tools::command("mdel");
    delete.arg("-i").arg(out);
    for number in 0..SPARE_NAMES {
        let name = format!("room-for-names-{number:02}");
        let source = scratch.join(&name);
        fs::write(&source, []).map_err(file("write", &source))?;
        copy.arg(source);
        delete.arg(format!("::/{path}/{name}"));
    }
    tools::run(copy.arg(format!("::/{path}")))?;
    tools::run(&mut delete).map(drop)
}

fn full(error: ImageError, tree: &Tree, label: &str, size: u64) -> ImageError {
    let ImageError::Tool { said, .. } = &error else { return error };
    if !said.contains("full") {
        return error;
    }
    let content = tree.nodes().filter_map(|(_, node)| match node {
        Node::File { bytes, .. } => Some(bytes.len() as u64),
        _ => None,
    });
    // Both copies of the table take 8 of 512 bytes.
    let content: u64 = content.sum();
    let needed = (content + content / 64 + (64 << 10)).max(size + 1);
    ImageError::TooSmall { what: format!("file system {label:?}"), size, needed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there() -> bool {
        let there = ["mkfs.vfat", "mcopy", "mmd", "mdir"].iter().all(|tool| tools::find(tool).is_some());
        if !there {
            println!("skipped: no dosfstools or no mtools");
        }
        there
    }

    #[test]
    fn the_same_tree_makes_the_same_bytes_with_no_time_of_today_and_mdir_lists_it() {
        if !there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let mut tree = Tree::default();
        tree.text("EFI/BOOT/BOOTX64.EFI", "x").text("loader/entries/otandem-a+3.conf", "title x\n");
        for (width, size) in [(Width::Fat16, 16 << 20), (Width::Fat32, 40 << 20)] {
            make(&tree, width, "ESP", size, &one).unwrap();
            make(&tree, width, "ESP", size, &two).unwrap();
            let same = std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap();
            assert!(same, "{width:?}");
            let list =
                tools::run(tools::command("mdir").args(["-/", "-b", "-i"]).arg(&one).arg("::")).unwrap();
            assert!(list.contains("::/EFI/BOOT/BOOTX64.EFI"), "{list}");
            assert!(list.contains("::/loader/entries/otandem-a+3.conf"), "{list}");
            let list = tools::run(tools::command("mdir").arg("-i").arg(&one).arg("::/EFI/BOOT")).unwrap();
            assert_eq!(list.matches("2023-11-14").count(), 3, "{list}");
        }
    }

    #[test]
    fn a_new_name_beside_the_entries_of_both_sets_does_not_let_their_folder_grow() {
        if !there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (disk, empty) = (folder.path().join("disk"), folder.path().join("empty"));
        let mut tree = Tree::default();
        for name in ["otandem-a.conf", "otandem-a.template", "otandem-b.conf", "otandem-b.template"] {
            tree.text(&format!("loader/entries/{name}"), "x");
        }
        make(&tree, Width::Fat32, "ESP", 40 << 20, &disk).unwrap();
        fs::write(&empty, []).unwrap();
        let clusters =
            || tools::run(tools::command("mshowfat").arg("-i").arg(&disk).arg("::/loader/entries")).unwrap();
        let before = clusters();
        for name in ["otandem-b+0.conf", "otandem-a+0.conf", "otandem-a.old1", "otandem-b.old1"] {
            let place = format!("::/loader/entries/{name}");
            tools::run(tools::command("mcopy").arg("-i").arg(&disk).arg(&empty).arg(place)).unwrap();
        }
        assert_eq!(clusters(), before);
        let list = tools::run(tools::command("mdir").args(["-b", "-i"]).arg(&disk).arg("::/loader/entries"));
        let list = list.unwrap();
        assert!(list.lines().count() == 8 && !list.contains("room"), "{list}");
    }

    #[test]
    fn files_that_do_not_fit_say_how_much_they_need() {
        if !there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.file("large", 0o644, vec![1; 17 << 20]);
        let error = make(&tree, Width::Fat16, "X", 16 << 20, &folder.path().join("x")).unwrap_err();
        let ImageError::TooSmall { needed, .. } = error else { panic!("{error}") };
        assert!((17 << 20..18 << 20).contains(&needed), "{needed}");
    }
}
