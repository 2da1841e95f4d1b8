//! ext4 file systems out of a tree, the same bytes each time.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use crate::error::file;
use crate::tools::{self, EPOCH};
use crate::tree::{Node, Tree};
use crate::{ImageError, files};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Inodes beyond those that are used: for a person who tries things on a file system that can be written.
const SPARE_INODES: usize = 64;

/// What a file system is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A slot: mounted read-only, without a journal, its inodes counted.
    Slot,
    /// Data: with a journal, inodes by the default ratio.
    Data,
}

/// Writes a file system of `size` bytes with the content of `tree` to `out`.
///
/// # Errors
/// [`ImageError::TooSmall`] when the tree does not fit, [`ImageError::Tool`] for anything else that mke2fs says.
pub(crate) fn make(tree: &Tree, use_as: Use, label: &str, size: u64, out: &Path) -> Result<(), ImageError> {
    let folder = tempfile::tempdir().map_err(file("create a folder for", out))?;
    tree.unfold(folder.path())?;
    match format(tree, folder.path(), use_as, label, size, out) {
        Err(ImageError::Tool { said, .. }) if is_full(&said) => {
            let needed = needed(tree, folder.path(), use_as, label, size, out);
            let _ = std::fs::remove_file(out);
            Err(ImageError::TooSmall { what: format!("file system {label:?}"), size, needed: needed? })
        }
        Err(other) => Err(other),
        Ok(()) => settle(tree, out),
    }
}

fn is_full(said: &str) -> bool {
    ["Could not allocate", "No space", "not enough space", "too small", "too big for"]
        .iter()
        .any(|words| said.contains(words))
}

/// The size at which it fits, found by doubling and then by what is free in that one.
fn needed(
    tree: &Tree,
    folder: &Path,
    use_as: Use,
    label: &str,
    size: u64,
    out: &Path,
) -> Result<u64, ImageError> {
    let mut larger = size.max(1 << 20);
    for _ in 0..10 {
        larger *= 2;
        match format(tree, folder, use_as, label, larger, out) {
            Err(ImageError::Tool { said, .. }) if is_full(&said) => {}
            Err(other) => return Err(other),
            Ok(()) => {
                let text = tools::run(tools::command("dumpe2fs").arg("-h").arg(out))?;
                let free = text.lines().find_map(|line| line.strip_prefix("Free blocks:"));
                let free: u64 = free.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
                return Ok((larger - (free * BLOCK).min(larger)).max(size + BLOCK));
            }
        }
    }
    Ok(larger)
}

fn format(
    tree: &Tree,
    folder: &Path,
    use_as: Use,
    label: &str,
    size: u64,
    out: &Path,
) -> Result<(), ImageError> {
    let empty = File::create(out).map_err(file("create", out))?;
    empty.set_len(size).map_err(file("enlarge", out))?;
    let uuid = files::uuid(label);
    let mut command = tools::command("mke2fs");
    // The bootloaders of the virtual device read neither of these two features.
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-U", &uuid]);
    match use_as {
        Use::Slot => {
            let inodes = tree.nodes().count() + SPARE_INODES;
            command.args([
                "-O",
                "^metadata_csum,^64bit,^has_journal,^resize_inode",
                "-N",
                &inodes.to_string(),
            ])
        }
        Use::Data => command.args(["-O", "^metadata_csum,^64bit,^resize_inode"]),
    };
    command.arg("-E").arg(format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,no_copy_xattrs"));
    command.arg("-d").arg(folder).arg(out).arg(format!("{}k", size >> 10));
    tools::run(&mut command).map(drop)
}

/// Owner and times, which mke2fs took from the building machine.
fn settle(tree: &Tree, out: &Path) -> Result<(), ImageError> {
    let mut script = String::new();
    let paths = tree.nodes().map(|(path, _)| path).chain(["", "lost+found"]);
    for path in paths {
        for (field, value) in [("uid", 0), ("gid", 0), ("atime", EPOCH), ("ctime", EPOCH), ("mtime", EPOCH)] {
            let at = if field.ends_with("time") { "@" } else { "" };
            let _ = writeln!(script, "sif \"/{path}\" {field} {at}{value}");
        }
    }
    // With a set umask, or another owner, mke2fs would differ; the mode was set on the files themselves.
    debug_assert!(
        tree.nodes().all(|(_, node)| !matches!(node, Node::File { mode, .. } if mode & !0o7777 != 0))
    );
    let script_file = tempfile::NamedTempFile::new().map_err(file("create a file beside", out))?;
    std::fs::write(script_file.path(), script).map_err(file("write", script_file.path()))?;
    tools::run(tools::command("debugfs").arg("-w").arg("-f").arg(script_file.path()).arg(out)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there() -> bool {
        let there =
            ["mke2fs", "debugfs", "dumpe2fs", "e2fsck"].iter().all(|tool| tools::find(tool).is_some());
        if !there {
            println!("skipped: no e2fsprogs");
        }
        there
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.text("etc/one", "#!/bin/sh\n").link("bin", "usr/bin").file("usr/bin/x", 0o755, vec![7; 300_000]);
        tree
    }

    #[test]
    fn the_same_tree_makes_the_same_bytes_with_no_time_of_today_and_passes_fsck() {
        if !there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for use_as in [Use::Slot, Use::Data] {
            let (one, two) = (folder.path().join("one"), folder.path().join("two"));
            make(&tree(), use_as, "x", 16 << 20, &one).unwrap();
            make(&tree(), use_as, "x", 16 << 20, &two).unwrap();
            let same = std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap();
            assert!(same, "{use_as:?}");
            tools::run(tools::command("e2fsck").args(["-fn"]).arg(&one)).unwrap();
            let stat = tools::run(tools::command("debugfs").args(["-R", "stat /etc/one"]).arg(&one)).unwrap();
            assert!(stat.contains("User:     0") && stat.contains("Mode:  0755"), "{stat}");
            let times: Vec<&str> = stat.lines().filter(|line| line.contains("time: 0x")).collect();
            assert!(times.len() >= 3 && times.iter().all(|line| line.contains("2023")), "{stat}");
        }
    }

    #[test]
    fn a_tree_that_does_not_fit_says_how_much_it_needs() {
        if !there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("x");
        let mut large = tree();
        large.file("large", 0o644, vec![1; 3 << 20]);
        let error = make(&large, Use::Slot, "x", 2 << 20, &out).unwrap_err();
        let ImageError::TooSmall { needed, size, .. } = error else { panic!("{error}") };
        assert_eq!(size, 2 << 20);
        assert!((3 << 20..5 << 20).contains(&needed), "{needed}");
        assert!(!out.exists());
        // It is the truth, but for what a larger file system needs for itself.
        make(&large, Use::Slot, "x", needed + (64 << 10), &out).unwrap();
    }
}
