//! Images: real file systems made of this machine's files where the tool is there, else deterministic ones.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::error::file;
use crate::loader::PLAIN;

/// What the health check of the device in a folder looks for in the image that booted.
pub const MARK: &str = "otandem-health=";
/// Files that go into a real image, in bytes at most.
const FILES: u64 = 44 << 20;
/// Size of the images of the demo.
const SIZE: u64 = 64 << 20;
/// Where a real image's files come from: there on any machine that can build this.
const SOURCES: [&str; 3] = ["/usr/share", "/usr/lib", "/usr/bin"];

/// What an image's health check will say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Good,
    /// No, each time it is asked.
    Bad,
    /// No, and there is no use in asking again.
    Hopeless,
}

impl Health {
    /// Exit code of the check.
    #[must_use]
    pub const fn exit(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Bad => 1,
            Self::Hopeless => 100,
        }
    }

    fn mark(self) -> String {
        format!("{MARK}{}\n", self.exit())
    }
}

/// A raw image.
#[derive(Debug, Clone)]
pub struct Image {
    /// For people.
    pub version: String,
    /// The whole image.
    pub bytes: Bytes,
    /// Its SHA-256 in hex.
    pub sha256: String,
    /// What it is: `ext4`, `squashfs` or `plain`.
    pub kind: &'static str,
}

impl Image {
    fn new(version: &str, bytes: Vec<u8>, kind: &'static str) -> Self {
        let sha256 = sha256(&bytes);
        Self { version: version.to_owned(), bytes: bytes.into(), sha256, kind }
    }

    /// A deterministic image of so many bytes, half of which can be compressed away; no two versions share a block.
    #[must_use]
    pub fn plain(version: &str, health: Health, size: usize) -> Self {
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(PLAIN);
        bytes.extend_from_slice(format!("version={version}\n{}", health.mark()).as_bytes());
        let mut random = 0x9E37_79B9_7F4A_7C15
            ^ version.bytes().fold(1, |n: u64, b| n.wrapping_mul(131).wrapping_add(b.into()));
        while bytes.len() < size {
            for _ in 0..256 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                bytes.extend_from_slice(&random.to_le_bytes());
            }
            bytes.resize(bytes.len() + 2048, b'.');
        }
        bytes.truncate(size);
        Self::new(version, bytes, "plain")
    }

    /// An image of 64 MiB: ext4 with real files of this machine, else squashfs of them, else plain. `folder` is for
    /// what the tools need on the way.
    ///
    /// # Errors
    /// [`Error::File`] when the files cannot be gathered. A tool that fails only makes the next kind be tried.
    pub fn real(version: &str, health: Health, folder: &Path) -> Result<Self, Error> {
        let Some(tool) = Tool::ALL.into_iter().find(|tool| tool.is_there()) else {
            return Ok(Self::plain(version, health, 64 << 20));
        };
        let tree = folder.join("tree");
        if !tree.is_dir() {
            gather(&tree)?;
        }
        let etc = tree.join("etc");
        fs::create_dir_all(&etc).map_err(file("create", &etc))?;
        let release = format!("ID=otandem-demo\nVERSION_ID={version}\n");
        for (name, text) in [("os-release", release), ("health", health.mark())] {
            let path = etc.join(name);
            fs::write(&path, text).map_err(file("write", &path))?;
        }
        let target = folder.join("image.tmp");
        let made = tool.make(&tree, &target);
        let bytes = fs::read(&target);
        let _ = fs::remove_file(&target);
        match (made, bytes) {
            (true, Ok(bytes)) if !bytes.is_empty() => Ok(Self::new(version, bytes, tool.kind())),
            _ => Ok(Self::plain(version, health, 64 << 20)),
        }
    }

    /// MD5 in hex, for documents of the old form.
    #[must_use]
    pub fn md5(&self) -> String {
        hex(&Md5::digest(&self.bytes))
    }
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[derive(Clone, Copy)]
enum Tool {
    Ext4,
    Squashfs,
}

impl Tool {
    const ALL: [Self; 2] = [Self::Ext4, Self::Squashfs];

    const fn kind(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Ext4 => "mkfs.ext4",
            Self::Squashfs => "mksquashfs",
        }
    }

    fn command(self) -> Command {
        let mut command = Command::new(self.program());
        // Not everybody's PATH has the system programs.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        // As reproducible as the version of the tool allows.
        command.env("E2FSPROGS_FAKE_TIME", "1700000000").env("SOURCE_DATE_EPOCH", "1700000000");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn is_there(self) -> bool {
        let version = match self {
            Self::Ext4 => "-V",
            Self::Squashfs => "-version",
        };
        self.command().arg(version).status().is_ok()
    }

    /// Makes `target` out of `tree`.
    fn make(self, tree: &Path, target: &Path) -> bool {
        let mut command = self.command();
        match self {
            Self::Ext4 => {
                let uuid = "6f74616e-6465-6d00-0000-000000000001";
                command.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-U", uuid]);
                command.args(["-E", &format!("hash_seed={uuid},root_owner=0:0"), "-d"]).arg(tree);
                command.arg(target).arg(format!("{}k", SIZE >> 10));
            }
            Self::Squashfs => {
                // Uncompressed, so that the job's compression has something to do and the health mark can be found.
                command.arg(tree).arg(target).args(["-noappend", "-noD", "-noF", "-noI", "-all-root"]);
            }
        }
        command.status().is_ok_and(|status| status.success())
    }
}

/// Copies real files of this machine into `tree`, always the same ones on the same machine.
fn gather(tree: &Path) -> Result<(), Error> {
    let mut left = FILES;
    let mut folders: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in entries {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() && (1..=left.min(8 << 20)).contains(&meta.len()) {
                left = left.saturating_sub(copy(&entry.path(), tree)?);
            }
        }
        if left < 1 << 20 {
            break;
        }
    }
    Ok(())
}

/// Copies one file to the same place below `tree`; one that cannot be read counts nothing. Returns its share of the
/// room, which a small file takes up in whole blocks.
fn copy(path: &Path, tree: &Path) -> Result<u64, Error> {
    let Ok(bytes) = fs::read(path) else { return Ok(0) };
    let target = tree.join(path.strip_prefix("/").unwrap_or(path));
    let parent = target.parent().unwrap_or(tree);
    fs::create_dir_all(parent).map_err(file("create", parent))?;
    let mut out = fs::File::create(&target).map_err(file("create", &target))?;
    out.write_all(&bytes).map_err(file("write", &target))?;
    let size = bytes.len() as u64;
    Ok(size.div_ceil(4096) * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::can_load;

    #[test]
    fn a_plain_image_boots_and_no_two_versions_share_their_middle() {
        let one = Image::plain("1", Health::Good, 3 << 20);
        let two = Image::plain("2", Health::Good, 3 << 20);
        assert_eq!(one.bytes.len(), 3 << 20);
        assert_ne!(one.bytes[1 << 20..(1 << 20) + 512], two.bytes[1 << 20..(1 << 20) + 512]);
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("slot");
        fs::write(&slot, &one.bytes).unwrap();
        assert!(can_load(&slot));
        fs::write(&slot, vec![0; 4096]).unwrap();
        assert!(!can_load(&slot));
        assert!(!can_load(&folder.path().join("none")));
    }

    #[test]
    fn a_real_image_boots_and_carries_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::real("1", Health::Hopeless, folder.path()).unwrap();
        let slot = folder.path().join("slot");
        fs::write(&slot, &image.bytes).unwrap();
        assert!(can_load(&slot));
        let found =
            Command::new("grep").args(["-a", "-q", "otandem-health=100"]).arg(&slot).status().unwrap();
        assert!(found.success());
        assert!(image.bytes.len() > 32 << 20);
    }
}
