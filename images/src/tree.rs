//! A file system's content before it is one: paths, modes, bytes, in memory and in order.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::ImageError;
use crate::error::file;
use crate::files::hex;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Its content.
        bytes: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link(String),
}

/// Entries by their path without a slash in front; parents come before their children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// All entries in order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// A folder with its parents.
    pub(crate) fn folder(&mut self, path: &str) -> &mut Self {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.nodes.entry(path[..end].to_owned()).or_insert(Node::Folder);
        }
        self.nodes.entry(path.to_owned()).or_insert(Node::Folder);
        self
    }

    /// A file, in place of what was there.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.put(path, Node::File { bytes: bytes.into(), mode })
    }

    /// A text; one that begins with `#!` can be run.
    pub(crate) fn text(&mut self, path: &str, text: &str) -> &mut Self {
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        self.file(path, mode, text)
    }

    /// A symbolic link, in place of what was there.
    pub(crate) fn link(&mut self, path: &str, to: &str) -> &mut Self {
        self.put(path, Node::Link(to.to_owned()))
    }

    /// A copy of a file of this machine; what it is a link to, if it is one.
    pub(crate) fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<&mut Self, ImageError> {
        let bytes = fs::read(from).map_err(file("read", from))?;
        Ok(self.file(path, mode, bytes))
    }

    fn put(&mut self, path: &str, node: Node) -> &mut Self {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.nodes.insert(path.to_owned(), node);
        self
    }

    /// The content of a file.
    pub(crate) fn bytes(&self, path: &str) -> Option<&[u8]> {
        match self.nodes.get(path.trim_matches('/')) {
            Some(Node::File { bytes, .. }) => Some(bytes),
            _ => None,
        }
    }

    /// Takes an entry away; whether it was there.
    pub(crate) fn remove(&mut self, path: &str) -> bool {
        self.nodes.remove(path.trim_matches('/')).is_some()
    }

    /// Over all paths, modes and bytes.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (path, node) in &self.nodes {
            let (kind, mode, bytes): (u8, u32, &[u8]) = match node {
                Node::Folder => (0, 0o755, &[]),
                Node::File { bytes, mode } => (1, *mode, bytes),
                Node::Link(to) => (2, 0o777, to.as_bytes()),
            };
            hash.update([kind]);
            hash.update(mode.to_le_bytes());
            for part in [path.as_bytes(), bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hex(&hash.finalize())
    }

    /// Writes it all below `folder`, which exists.
    ///
    /// # Errors
    /// [`ImageError::File`] with what could not be written.
    pub(crate) fn unfold(&self, folder: &Path) -> Result<(), ImageError> {
        for (path, node) in &self.nodes {
            let at = folder.join(path);
            match node {
                Node::Folder => fs::create_dir(&at).map_err(file("create", &at))?,
                Node::Link(to) => symlink(to, &at).map_err(file("link", &at))?,
                Node::File { bytes, .. } => fs::write(&at, bytes).map_err(file("write", &at))?,
            }
            let mode = match node {
                Node::Folder => 0o755,
                Node::File { mode, .. } => *mode,
                Node::Link(_) => continue,
            };
            fs::set_permissions(&at, Permissions::from_mode(mode)).map_err(file("set the mode of", &at))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_what_comes_later_wins() {
        let mut tree = Tree::default();
        tree.text("/a/b/c", "one").text("a/b/c", "#!two").link("a/l", "b");
        let paths: Vec<&str> = tree.nodes().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/l"]);
        assert_eq!(tree.bytes("/a/b/c"), Some(&b"#!two"[..]));
        assert!(tree.remove("a/b/c") && !tree.remove("a/b/c"));
    }

    #[test]
    fn the_digest_sees_bytes_modes_and_names() {
        let of = |path: &str, mode, text: &str| Tree::default().file(path, mode, text).digest();
        let one = of("a", 0o644, "x");
        assert_eq!(one, of("a", 0o644, "x"));
        for other in [of("b", 0o644, "x"), of("a", 0o755, "x"), of("a", 0o644, "y")] {
            assert_ne!(one, other);
        }
    }
}
