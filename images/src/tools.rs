//! Programs of this machine, found, and run with a fixed environment.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ImageError;

/// All times in images: a second that no clock set to it by chance would show.
pub(crate) const EPOCH: u64 = 1_700_000_000;

/// A program or file that an image needs, and the Debian package that has it.
pub(crate) type Need = (&'static str, &'static str);

/// The program that every guest consists of.
pub(crate) const BUSYBOX: Need = ("/bin/busybox", "busybox-static");
/// Needs that every image has.
pub(crate) const ALWAYS: &[Need] = &[
    ("sfdisk", "fdisk"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("dumpe2fs", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mmd", "mtools"),
    ("strip", "binutils"),
    ("ldd", "libc-bin"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    BUSYBOX,
];

/// The program of that name in `PATH` or the folders of system programs, which not everybody's `PATH` has; a name with
/// a slash is the file itself.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| name.into());
    }
    search(name, &std::env::var_os("PATH").unwrap_or_default())
}

fn search(name: &str, path: &OsStr) -> Option<PathBuf> {
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let candidates = std::env::split_paths(path).chain(system).map(|folder| folder.join(name));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

/// That all of `needs` are there.
///
/// # Errors
/// [`ImageError::Missing`] with all that are not.
pub(crate) fn check(needs: &[Need]) -> Result<(), ImageError> {
    let gone = needs.iter().filter(|(name, _)| find(name).is_none());
    let missing: Vec<_> = gone.map(|(name, package)| ((*name).to_owned(), *package)).collect();
    if missing.is_empty() { Ok(()) } else { Err(ImageError::Missing { missing }) }
}

/// A command with a clock that stands still, in a locale that everybody has.
pub(crate) fn command(program: &str) -> Command {
    let found = find(program);
    let mut command = Command::new(found.unwrap_or_else(|| program.into()));
    let epoch = EPOCH.to_string();
    command.env("SOURCE_DATE_EPOCH", &epoch).env("E2FSPROGS_FAKE_TIME", &epoch);
    command.env("LC_ALL", "C").env("TZ", "UTC").env("MTOOLS_SKIP_CHECK", "1").env_remove("MTOOLSRC");
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end; what it printed.
///
/// # Errors
/// [`ImageError::Tool`] when it could not be started or did not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<String, ImageError> {
    let output = spawn(command)?;
    finish(command, &output)
}

/// As [`run`], with `input` on its standard input.
///
/// # Errors
/// [`ImageError::Tool`] when it could not be started or did not exit with 0.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<String, ImageError> {
    use io::{Seek as _, Write as _};
    // A file and not a pipe: neither side can wait for the other.
    let fed = || {
        let mut file = tempfile::tempfile()?;
        file.write_all(input.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    let file = fed().map_err(|e: io::Error| failed(command, "not started", e.to_string()))?;
    command.stdin(file);
    run(command)
}

fn spawn(command: &mut Command) -> Result<std::process::Output, ImageError> {
    command.output().map_err(|e| failed(command, "not started", e.to_string()))
}

fn finish(command: &Command, output: &std::process::Output) -> Result<String, ImageError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let tail: Vec<&str> = said.trim().lines().rev().take(8).collect();
    let said = tail.into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(failed(command, &output.status.to_string(), said))
}

fn failed(command: &Command, status: &str, said: String) -> ImageError {
    let mut program = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args().take(4) {
        program.push(' ');
        program.push_str(&word.to_string_lossy());
    }
    ImageError::Tool { program, status: status.to_owned(), said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_programs_are_found_without_a_path() {
        assert!(search("sh", OsStr::new("")).is_some());
        assert!(search("no-such-program-anywhere", OsStr::new("/bin")).is_none());
    }

    #[test]
    fn a_missing_tool_is_told_with_its_package_and_the_ones_that_are_there_are_not() {
        let error = check(&[("sh", "dash"), ("no-such-program", "that-package"), ("/no/such/file", "other")]);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("no-such-program, /no/such/file") && text.contains("other that-package"),
            "{text}"
        );
        assert!(!text.contains("dash"), "{text}");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error =
            run(command("sh").args(["-c", "echo out; echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("out; why"), "{error}");
    }
}
