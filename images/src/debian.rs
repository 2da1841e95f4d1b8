//! What comes out of Debian packages: the cloud kernel (downloaded and unpacked, never installed) and the libraries of
//! dynamic programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::file;
use crate::tree::Tree;
use crate::{ImageError, modinfo, tools};

/// The package that depends on the current kernel of that flavour.
const META: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel that was unpacked into `folder` before, else the current one, downloaded.
    ///
    /// # Errors
    /// [`ImageError::Kernel`] when the package cannot be had.
    pub(crate) fn get(folder: &Path) -> Result<Self, ImageError> {
        if let Some(kernel) = Self::unpacked(folder) {
            return Ok(kernel);
        }
        let package = current_package()?;
        let parent = folder.parent().unwrap_or(folder);
        let temporary = tempfile::tempdir_in(parent).map_err(file("create a folder in", parent))?;
        let download = || {
            tools::run(
                tools::command("apt-get").args(["-q", "download", &package]).current_dir(temporary.path()),
            )
        };
        download().map_err(|e| {
            ImageError::Kernel(format!("{e}; is there a network, and was apt-get update run?"))
        })?;
        let deb = fs::read_dir(temporary.path()).map_err(file("read", temporary.path()))?;
        let deb =
            deb.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
        let deb =
            deb.ok_or_else(|| ImageError::Kernel(format!("apt-get download {package} left no file")))?;
        let tree = temporary.path().join("tree");
        tools::run(tools::command("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
        fs::rename(&tree, folder).map_err(file("create", folder))?;
        Self::unpacked(folder)
            .ok_or_else(|| ImageError::Kernel(format!("{package} has no boot/vmlinuz; what is it?")))
    }

    fn unpacked(folder: &Path) -> Option<Self> {
        let names = fs::read_dir(folder.join("boot")).ok()?.flatten().map(|entry| entry.file_name());
        let mut releases: Vec<String> =
            names.filter_map(|name| name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)).collect();
        releases.sort();
        Some(Self { release: releases.pop()?, folder: folder.to_owned() })
    }

    /// Where the kernel itself is.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The kernel itself.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be read.
    pub(crate) fn image(&self) -> Result<Vec<u8>, ImageError> {
        let path = self.path();
        fs::read(&path).map_err(file("read", &path))
    }

    /// The modules `wanted` with what they need, in the order in which to load them.
    ///
    /// # Errors
    /// [`ImageError::Kernel`] for a module that is not there.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
        let mut paths = BTreeMap::new();
        collect(&self.folder.join("lib/modules").join(&self.release), &mut paths)?;
        let load = |name: &str| fs::read(paths.get(name)?).ok();
        modinfo::closure(wanted, load)
            .map_err(|why| ImageError::Kernel(format!("{why} in the package of {}", self.release)))
    }
}

/// The package on which [`META`] depends.
fn current_package() -> Result<String, ImageError> {
    let text = tools::run(tools::command("apt-cache").args(["depends", META]))
        .map_err(|e| ImageError::Kernel(format!("{e}; was apt-get update run?")))?;
    let mut words = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = words.find(|name| name.starts_with("linux-image-"));
    package
        .map(str::to_owned)
        .ok_or_else(|| ImageError::Kernel(format!("{META} depends on no kernel: {text}")))
}

/// Name (with `_`) and path of every module below.
fn collect(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(file("read", folder))? {
        let path = entry.map_err(file("read", folder))?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, paths)?;
        } else if let Some(name) =
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".ko"))
        {
            paths.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Puts a program of this machine at `path`, stripped, with the libraries that it needs where it looks for them.
///
/// # Errors
/// [`ImageError`] when the program or one of its libraries is not there.
pub(crate) fn program(tree: &mut Tree, path: &str, from: &Path) -> Result<(), ImageError> {
    let stripped = tempfile::NamedTempFile::new().map_err(file("create a file beside", from))?;
    tools::run(tools::command("strip").arg("-o").arg(stripped.path()).arg(from))?;
    tree.copy(path, 0o755, stripped.path())?;
    for library in libraries(from)? {
        let place = library.display().to_string();
        if tree.bytes(&place).is_none() {
            tree.copy(&place, 0o755, &library)?;
        }
    }
    Ok(())
}

/// The shared libraries of a program and its loader; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, ImageError> {
    match tools::run(tools::command("ldd").arg(program)) {
        Ok(text) => parse_ldd(&text).map_err(|name| {
            ImageError::Recipe(format!("{} needs {name}, which is not on this machine", program.display()))
        }),
        Err(ImageError::Tool { said, .. }) if said.contains("not a dynamic executable") => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}

/// Paths in what `ldd` prints; the name of one that it did not find is the error.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place.starts_with("not found") {
            return Err(name.to_owned());
        }
        let place = place.split(" (").next().unwrap_or_default();
        if place.starts_with('/') {
            paths.push(PathBuf::from(place));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ldd_is_understood() {
        let text =
            "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(parse_ldd(text).unwrap(), [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld.so.2")]);
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert_eq!(parse_ldd("\tlibx.so => not found\n").unwrap_err(), "libx.so");
    }

    #[test]
    fn a_dynamic_program_comes_with_its_libraries() {
        if tools::find("strip").is_none() || tools::find("ldd").is_none() {
            println!("skipped: no strip or no ldd");
            return;
        }
        let mut tree = Tree::default();
        program(&mut tree, "/bin/ls", Path::new("/bin/ls")).unwrap();
        let has = |part: &str| tree.nodes().any(|(path, _)| path.contains(part));
        assert!(
            has("bin/ls") && has("libc.so") && has("ld-"),
            "{:?}",
            tree.nodes().map(|n| n.0).collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn no_output_of_ldd_makes_it_panic(text: String) {
            let _ = parse_ldd(&text);
        }
    }
}
