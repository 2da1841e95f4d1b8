//! Files that a command is given.

use std::io::Read;
use std::path::{Path, PathBuf};

use otandem_core::image::Sha256;

use crate::cli::{Document, Install};
use crate::control::InstallRequest;
use crate::exit::Exit;

/// Bytes of a document that are read: a little more than is ever taken, so that too much is seen as such.
const MOST: u64 = otandem_core::fota::MAX_DOCUMENT as u64 + 1;

type Refusal = (Exit, String);

/// A job document from a file or standard input.
pub fn document(document: &Document) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    let (name, read) = match &document.document {
        Some(path) if path.as_os_str() != "-" => (
            path.display().to_string(),
            std::fs::File::open(path).and_then(|f| f.take(MOST).read_to_end(&mut bytes)),
        ),
        _ => ("standard input".to_owned(), std::io::stdin().take(MOST).read_to_end(&mut bytes)),
    };
    read.map_err(|e| (Exit::NoInput, format!("{name}: {e}")))?;
    if bytes.len() as u64 == MOST {
        // Refused for its size, wherever it was cut.
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes).map_err(|_| (Exit::Data, format!("{name}: not UTF-8, so no job document")))
}

/// A job document as it is, from a file or, named `-`, from standard input.
pub fn bytes(path: &Path) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MOST).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes))
    };
    read.map_err(|e| no_input(path, &e))?;
    Ok(bytes)
}

/// What `install` asks for.
pub fn install(install: &Install) -> Result<InstallRequest, Refusal> {
    let remote = ["http://", "https://"].iter().any(|s| install.source.starts_with(s));
    let mut request = InstallRequest {
        source: install.source.clone(),
        document: None,
        slot: install.slot.clone(),
        sha256: install.sha256,
        file_sha256: None,
        set: install.set,
        reboot: install.reboot,
        no_digest: install.no_digest,
    };
    if remote {
        return Ok(request);
    }
    let path = absolute(&install.source)?;
    request.source = path.to_string_lossy().into_owned();
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        request.document = Some(document(&Document { document: Some(path) })?);
        return Ok(request);
    }
    let given = match install.sha256 {
        None if !install.no_digest => beside(&path)?,
        given => given,
    };
    if let Some(wanted) = given {
        // A digest may be of the packed file or of what is in it.
        let packed = is_packed(&path).map_err(|e| no_input(&path, &e))?;
        let of_file =
            packed && otandem_device::install::sha256_of(&path).map_err(|e| no_input(&path, &e))?.0 == wanted;
        (request.sha256, request.file_sha256) =
            if of_file { (None, Some(wanted)) } else { (Some(wanted), None) };
    }
    Ok(request)
}

fn no_input(path: &Path, e: &std::io::Error) -> Refusal {
    (Exit::NoInput, format!("{}: {e}", path.display()))
}

fn absolute(source: &str) -> Result<PathBuf, Refusal> {
    std::fs::canonicalize(source).map_err(|e| no_input(Path::new(source), &e))
}

/// `FILE.sha256`, as `sha256sum` writes it.
fn beside(path: &Path) -> Result<Option<Sha256>, Refusal> {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    let name = PathBuf::from(name);
    let mut text = String::new();
    match std::fs::File::open(&name) {
        Ok(file) => file.take(4096).read_to_string(&mut text).map_err(|e| no_input(&name, &e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(no_input(&name, &e)),
    };
    let word = text.split_whitespace().next().unwrap_or_default();
    // What is there and cannot be read is never taken for nothing.
    word.parse().map(Some).map_err(|e| (Exit::Data, format!("{}: {e}", name.display())))
}

fn is_packed(path: &Path) -> std::io::Result<bool> {
    let mut magic = [0; 6];
    let n = std::fs::File::open(path)?.read(&mut magic)?;
    let magics: [&[u8]; 3] = [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    Ok(magics.iter().any(|m| magic[..n].starts_with(m)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(source: &Path, no_digest: bool) -> Install {
        Install {
            source: source.to_string_lossy().into_owned(),
            slot: None,
            sha256: None,
            set: None,
            reboot: false,
            no_digest,
        }
    }

    #[test]
    fn the_digest_beside_a_file_is_used_and_a_broken_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("i.img");
        std::fs::write(&image, b"image").unwrap();
        assert_eq!(install(&command(&image, false)).unwrap().sha256, None);
        let beside = dir.path().join("i.img.sha256");
        let (digest, _) = otandem_device::install::sha256_of(&image).unwrap();
        std::fs::write(&beside, format!("{digest}  i.img\n")).unwrap();
        assert_eq!(install(&command(&image, false)).unwrap().sha256, Some(digest));
        assert_eq!(install(&command(&image, true)).unwrap().sha256, None);
        std::fs::write(&beside, "").unwrap();
        assert_eq!(install(&command(&image, false)).unwrap_err().0, Exit::Data);
    }

    #[test]
    fn a_digest_of_a_packed_file_is_told_from_one_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("i.gz");
        std::fs::write(&image, b"\x1f\x8bpacked").unwrap();
        let (of_file, _) = otandem_device::install::sha256_of(&image).unwrap();
        let other: Sha256 = "ab".repeat(32).parse().unwrap();
        for (given, file, raw) in [(of_file, Some(of_file), None), (other, None, Some(other))] {
            let request = install(&Install { sha256: Some(given), ..command(&image, false) }).unwrap();
            assert_eq!((request.file_sha256, request.sha256), (file, raw));
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let (exit, why) = install(&command(Path::new("/nonexistent/i.img"), false)).unwrap_err();
        assert_eq!(exit, Exit::NoInput);
        assert!(why.contains("/nonexistent/i.img"), "{why}");
    }
}
