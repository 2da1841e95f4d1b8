//! chariotd's certificate store: `endpoint.txt`, a directory for each certificate, and `preferred`, which names one of them.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::config::Credentials;
use crate::config::chariotd::Endpoint;

const ENDPOINT: &str = "endpoint.txt";
const PREFERRED: &str = "preferred";
/// While it is made.
const NEW: &str = ".preferred.new";
/// Bytes of `endpoint.txt`.
const MOST: u64 = 4096;

/// A store, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// Where it connects to.
    pub endpoint: Endpoint,
    /// Of certificates, in the order in which they are tried.
    names: Vec<String>,
}

impl Store {
    /// Reads what is there.
    ///
    /// # Errors
    /// One line: there is no store, or no endpoint in it.
    pub fn open(directory: &Path) -> Result<Self, String> {
        let file = directory.join(ENDPOINT);
        let mut text = String::new();
        let read = fs::File::open(&file).and_then(|f| f.take(MOST).read_to_string(&mut text));
        read.map_err(|e| format!("{}: {e}", file.display()))?;
        let endpoint = Endpoint::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            // A link is none, and `preferred` is one.
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort_unstable();
        Ok(Self { directory: directory.to_owned(), endpoint, names })
    }

    /// The certificate to use; it is `preferred` from now on. `None`: there is none.
    ///
    /// # Errors
    /// One line: the link cannot be made.
    pub fn preferred(&self) -> Result<Option<Credentials>, String> {
        let Some(first) = self.names.first() else { return Ok(None) };
        let name = match self.linked() {
            Some(name) => name,
            None => {
                self.prefer(first)?;
                first
            }
        };
        let file = |end: &str| self.directory.join(name).join(format!("{name}-{end}"));
        let key = file("private.pem.key");
        tighten(&key);
        Ok(Some(Credentials::Files { cert: file("certificate.pem.crt"), key }))
    }

    /// Prefers the certificate behind the preferred one; `None`: there is no other.
    ///
    /// # Errors
    /// One line: the link cannot be made.
    pub fn rotate(&self) -> Result<Option<&str>, String> {
        if self.names.len() < 2 {
            return Ok(None);
        }
        let at =
            self.linked().and_then(|linked| self.names.iter().position(|name| name == linked)).unwrap_or(0);
        let next = &self.names[(at + 1) % self.names.len()];
        self.prefer(next)?;
        Ok(Some(next))
    }

    fn linked(&self) -> Option<&str> {
        let target = fs::read_link(self.directory.join(PREFERRED)).ok()?;
        self.names.iter().map(String::as_str).find(|name| target.file_name().is_some_and(|to| to == *name))
    }

    fn prefer(&self, name: &str) -> Result<(), String> {
        let (new, link) = (self.directory.join(NEW), self.directory.join(PREFERRED));
        let made = match fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => symlink(name, &new).and_then(|()| fs::rename(&new, &link)),
        };
        made.map_err(|e| format!("{}: {e}; the certificate store must be writable", link.display()))
    }
}

/// chariotd leaves keys that everybody can read, and such a key is not used.
fn tighten(key: &Path) {
    let Ok(meta) = fs::symlink_metadata(key) else { return };
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        // Who may not do it hears from whoever reads the key.
        let _ = fs::set_permissions(key, fs::Permissions::from_mode(0o600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(names: &[&str], preferred: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ENDPOINT), "localhost:8884\n").unwrap();
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        if let Some(to) = preferred {
            symlink(to, dir.path().join(PREFERRED)).unwrap();
        }
        dir
    }

    fn link(dir: &tempfile::TempDir) -> PathBuf {
        fs::read_link(dir.path().join(PREFERRED)).unwrap()
    }

    #[test]
    fn the_preferred_certificate_is_used_and_a_link_to_none_is_made_anew() {
        for (preferred, used) in [(None, "aa"), (Some("bb"), "bb"), (Some("cc"), "aa"), (Some("aa/"), "aa")] {
            let dir = store(&["bb", "aa", ".hidden"], preferred);
            let opened = Store::open(dir.path()).unwrap();
            assert_eq!((opened.endpoint.host.as_str(), opened.endpoint.port), ("localhost", 8884));
            let cert = dir.path().join(used).join(format!("{used}-certificate.pem.crt"));
            let key = dir.path().join(used).join(format!("{used}-private.pem.key"));
            assert_eq!(opened.preferred(), Ok(Some(Credentials::Files { cert, key })), "{preferred:?}");
            assert_eq!(link(&dir).file_name().unwrap(), used);
        }
        assert_eq!(Store::open(store(&[], None).path()).unwrap().preferred(), Ok(None));
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open(dir.path()).unwrap_err().contains("endpoint.txt"));
    }

    #[test]
    fn a_key_that_chariotd_left_readable_is_its_owners_alone() {
        let dir = store(&["aa"], None);
        let key = dir.path().join("aa/aa-private.pem.key");
        fs::write(&key, "").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        Store::open(dir.path()).unwrap().preferred().unwrap();
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn rotation_goes_round_and_needs_two() {
        let dir = store(&["aa", "bb", "cc"], Some("bb"));
        let opened = Store::open(dir.path()).unwrap();
        for next in ["cc", "aa", "bb"] {
            assert_eq!(opened.rotate(), Ok(Some(next)));
            assert_eq!(link(&dir), Path::new(next));
        }
        let dir = store(&["aa"], Some("aa"));
        assert_eq!(Store::open(dir.path()).unwrap().rotate(), Ok(None));
    }
}
