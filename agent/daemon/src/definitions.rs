//! Definitions of services as they lie in a directory: one file each, of which a bad one costs nobody else anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use otandem_core::formats::ArrayStyle;
use otandem_core::services::definition::{self, Definition};
use otandem_device::run::Stop;
use otandem_device::services::OutfileError;
use otandem_device::services::module::{Engine, ModuleError};
use serde_json::{Value, json};

use crate::formats::read_toml;

/// Definitions in a directory, at most.
const MAX_DEFINITIONS: usize = 256;

/// Why a file defines no service.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{0}; check its owner and mode")]
    File(#[from] OutfileError),
    /// It went away.
    #[error("it is gone")]
    Gone,
    /// It says something else, or cannot be run.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// No file descriptor is left to run it.
    #[error("nothing can be run: {0}")]
    System(#[source] std::io::Error),
}

/// A file in a directory of definitions.
#[derive(Debug)]
pub struct Found {
    /// Its name in the directory.
    pub name: String,
    /// What it defines.
    pub definition: Result<Definition, ReadError>,
}

/// Reads one definition.
///
/// # Errors
/// The file cannot be read, or defines no service.
pub fn definition(path: &Path) -> Result<Definition, ReadError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = otandem_device::services::read(path)?.ok_or(ReadError::Gone)?;
    let engine = Engine::installed(Stop::new().map_err(ReadError::System)?);
    Ok(engine.definition(&name, &text, read_toml)?)
}

/// All definitions of a directory, in the order of their names.
///
/// # Errors
/// One line: the directory cannot be read, or has too many of them.
pub fn directory(path: &Path) -> Result<Vec<Found>, String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let mut names = vec![];
    for entry in std::fs::read_dir(path).map_err(failed)? {
        // A name that is no UTF-8 ends in none of the endings.
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        if definition::is_definition(&name) {
            names.push(name);
        }
        if names.len() > MAX_DEFINITIONS {
            return Err(format!(
                "{} has more than {MAX_DEFINITIONS} definitions; one is needed for each service",
                path.display()
            ));
        }
    }
    names.sort_unstable();
    let found = |name: String| Found { definition: definition(&path.join(&name)), name };
    Ok(names.into_iter().map(found).collect())
}

/// What definitions have taken: no two may have the same key in one shadow, or the same outfile anywhere.
#[derive(Debug, Default)]
pub struct Taken {
    keys: BTreeMap<(String, String), String>,
    outfiles: BTreeMap<PathBuf, String>,
}

impl Taken {
    /// Takes what `definition` wants. `shadow`: a name for its shadow; `file`: what to call it.
    ///
    /// # Errors
    /// One line: which other one has it.
    pub fn take(&mut self, file: &str, shadow: &str, definition: &Definition) -> Result<(), String> {
        let key = (shadow.to_owned(), definition.key.clone());
        if let Some(other) = self.keys.get(&key) {
            return Err(format!("the key {:?} is that of {other}; one of them must go", definition.key));
        }
        let outfile = definition.outfile.as_ref().filter(|file| !file.is_null()).map(|file| real(&file.path));
        if let Some((path, other)) = outfile.as_ref().and_then(|path| self.outfiles.get_key_value(path)) {
            return Err(format!("the outfile {} is that of {other}; use another one", path.display()));
        }
        self.keys.insert(key, file.to_owned());
        self.outfiles.extend(outfile.map(|path| (path, file.to_owned())));
        Ok(())
    }
}

/// The same file by two names is the same file.
fn real(path: &Path) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    let beside = parent.zip(path.file_name()).map(|(parent, name)| parent.join(name));
    path.canonicalize().ok().or(beside).unwrap_or_else(|| path.to_owned())
}

/// A definition as it is understood, in the native form.
#[must_use]
pub fn as_json(definition: &Definition) -> Value {
    let Definition { key, shadow, outfile, informat, notifycmd, .. } = definition;
    let mut value = json!({
        "key": key,
        "informat": informat.name(),
        "notifycmd": notifycmd,
        "timeout": definition.timeout.as_secs_f64(),
        "initialnotify": definition.initialnotify,
    });
    if definition.validate.is_some() {
        value["validate"] = true.into();
    }
    match outfile {
        None => value["ephemeraldata"] = true.into(),
        Some(file) => {
            value["outfile"] = file.path.to_string_lossy().into();
            value["outformat"] = file.format.name().into();
            value["array-style"] = match file.arrays {
                ArrayStyle::Bash => "bash",
                ArrayStyle::Indexed => "indexed",
            }
            .into();
        }
    }
    for (name, given) in [("outkeys", &definition.outkeys), ("notifykeys", &definition.notifykeys)] {
        if let Some(keys) = given {
            value[name] = json!(keys);
        }
    }
    if let Some(shadow) = shadow {
        value["shadow"] = shadow.as_str().into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use otandem_core::services::definition::from_value;
    use std::fs;

    fn service(key: &str, outfile: &Path) -> Value {
        json!({"key": key, "outfile": outfile, "outformat": "SHELL", "notifycmd": "true"})
    }

    #[test]
    fn what_is_understood_is_a_definition_itself_and_says_the_same() {
        for given in [
            service("foo", Path::new("/x")),
            json!({"key": "foo", "shadow": "net", "outfile": "/dev/null", "outformat": "DOTENV", "informat": "toml",
                   "array-style": "indexed", "notifycmd": "true", "outkeys": ["a"], "notifykeys": [],
                   "initialnotify": true, "timeout": 1.5}),
            json!({"key": "foo", "notifycmd": "true", "ephemeraldata": true}),
        ] {
            let definition = from_value(&given).unwrap();
            assert_eq!(from_value(&as_json(&definition)), Ok(definition), "{given}");
        }
    }

    #[test]
    fn a_bad_file_costs_no_other_one_anything() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("b.json", &service("b", Path::new("/b")).to_string());
        put("a.js", "module.exports = { key: 'a', outfile: '/a', outformat: 'JSON', notifycmd: 'true' }");
        put("c.toml", "key = ");
        put("README", "none");
        fs::create_dir(dir.path().join("d.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("e.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("f.json")).unwrap();
        let found = directory(dir.path()).unwrap();
        let shown: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.definition.is_ok())).collect();
        assert_eq!(
            shown,
            [
                ("a.js", true),
                ("b.json", true),
                ("c.toml", false),
                ("d.json", false),
                ("e.json", false),
                ("f.json", false)
            ]
        );
        assert!(found[2].definition.as_ref().unwrap_err().to_string().contains("not TOML"));
        assert!(directory(&dir.path().join("gone")).unwrap_err().contains("gone"));
    }

    #[test]
    fn one_key_or_one_file_is_for_one_service() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("x", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let (x, link) = (dir.path().join("x"), dir.path().join("link"));
        let mut taken = Taken::default();
        let mut take = |file: &str, shadow: &str, value: Value| {
            taken.take(file, shadow, &from_value(&value).unwrap()).err().unwrap_or_default()
        };
        assert_eq!(take("one", "t", service("foo", &x)), "");
        assert!(take("two", "t", service("foo", Path::new("/y"))).contains("\"foo\" is that of one"));
        assert!(take("three", "u", service("foo", &link)).contains("is that of one"));
        assert_eq!(take("four", "u", service("foo", Path::new("/dev/null"))), "");
        assert_eq!(take("five", "u", service("bar", Path::new("/dev/null"))), "");
    }
}
