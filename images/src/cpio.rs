//! Initial RAM file systems: the "newc" form of cpio that the kernel reads, packed with Zstandard.

use crate::ImageError;
use crate::packed::frame;
use crate::tools::EPOCH;
use crate::tree::{Node, Tree};

/// A tree as an initial RAM file system, owned by root.
///
/// # Errors
/// [`ImageError::Recipe`] for a file that is too large for this form.
pub(crate) fn initrd(tree: &Tree) -> Result<Vec<u8>, ImageError> {
    frame(&archive(tree)?, 19)
}

fn archive(tree: &Tree) -> Result<Vec<u8>, ImageError> {
    let mut out = Vec::new();
    let mut inode = 0;
    for (path, node) in tree.nodes() {
        inode += 1;
        let (mode, bytes): (u32, &[u8]) = match node {
            Node::Folder => (0o040_755, &[]),
            Node::File { bytes, mode } => (0o100_000 | mode, bytes),
            Node::Link(to) => (0o120_777, to.as_bytes()),
        };
        entry(&mut out, inode, mode, path, bytes)?;
    }
    entry(&mut out, 0, 0, "TRAILER!!!", &[])?;
    Ok(out)
}

fn entry(out: &mut Vec<u8>, inode: u32, mode: u32, path: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let size = u32::try_from(bytes.len());
    let size = size.map_err(|_| ImageError::Recipe(format!("{path}: too large for a RAM file system")))?;
    let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let time = u32::try_from(EPOCH).unwrap_or(0);
    // inode, mode, uid, gid, links, time, size, device (4 numbers), length of the name, checksum
    let fields = [inode, mode, 0, 0, 1, time, size, 0, 0, 0, 0, name, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    #[test]
    fn cpio_lists_what_was_put_in() {
        if tools::find("cpio").is_none() {
            println!("skipped: no cpio");
            return;
        }
        let mut tree = Tree::default();
        tree.text("bin/one", "#!/bin/sh\n").link("bin/two", "one").file("odd", 0o600, "abc");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        std::fs::write(&path, archive(&tree).unwrap()).unwrap();
        let list = tools::run(tools::command("cpio").args(["-itv", "-F"]).arg(&path)).unwrap();
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 4, "{list}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" bin"), "{list}");
        assert!(lines[1].starts_with("-rwxr-xr-x"), "{list}");
        assert!(lines[2].ends_with("bin/two -> one"), "{list}");
        assert!(lines[3].starts_with("-rw-------") && lines[3].contains(" 3 "), "{list}");
    }
}
