//! What a user of the client said: names to values, whether they stood in a file or on the command line.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Bytes of a file at most. The client takes 5000; people have longer files with comments that it never read.
pub const MAX_FILE: usize = 64 * 1024;
/// Characters of a name that are kept.
const MAX_NAME: usize = 64;
/// Values that are objects: what is in them is no setting.
const OBJECTS: [&str; 2] = ["fleet-provisioning.template-parameters", "runtime-config.device-config"];

/// A file is none of the client's.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Too long.
    #[error("longer than {MAX_FILE} bytes: this is no configuration of the AWS IoT Device Client")]
    TooLarge,
    /// No JSON, or nested too deep.
    #[error("not JSON: {0}; mend it there")]
    NotJson(#[source] serde_json::Error),
    /// JSON, but no object.
    #[error("not a JSON object: a configuration of the AWS IoT Device Client begins with {{")]
    NotAnObject,
    /// The client takes the first of them; which that is, is not seen any more.
    #[error("{path}: written twice, in different case: keep one of them")]
    Twice {
        /// Its name.
        path: String,
    },
}

/// Everything that was said, by the path of its key, in lower case: `jobs.handler-directory`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    values: Map<String, Value>,
    /// Which of them came from which flag; all others stood in a file.
    flags: Vec<(String, &'static str)>,
}

impl Given {
    /// Reads a file. What is null or empty was not said. `prefix` keeps the keys of one kind of file apart from those of others.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn json(bytes: &[u8], prefix: &str) -> Result<Self, ReadError> {
        if bytes.len() > MAX_FILE {
            return Err(ReadError::TooLarge);
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let Value::Object(map) = serde_json::from_slice(bytes).map_err(ReadError::NotJson)? else {
            return Err(ReadError::NotAnObject);
        };
        let mut given = Self::default();
        given.take(map, prefix)?;
        Ok(given)
    }

    /// The depth is that of the parser at most.
    fn take(&mut self, map: Map<String, Value>, prefix: &str) -> Result<(), ReadError> {
        let mut seen = BTreeSet::new();
        for (name, value) in map {
            let path = format!("{prefix}{}", shown(&name));
            if !seen.insert(path.clone()) {
                return Err(ReadError::Twice { path });
            }
            match value {
                Value::Null => {}
                Value::String(text) if text.is_empty() => {}
                Value::Object(map) if !OBJECTS.contains(&path.as_str()) => {
                    self.take(map, &format!("{path}."))?;
                }
                value => drop(self.values.insert(path, value)),
            }
        }
        Ok(())
    }

    /// Takes a flag.
    pub(super) fn take_flag(&mut self, path: &str, flag: &'static str, value: String) {
        self.values.insert(path.to_owned(), Value::String(value));
        self.flags.push((path.to_owned(), flag));
    }

    /// What `later` has wins.
    pub fn extend(&mut self, later: Self) {
        self.flags.retain(|(path, _)| !later.values.contains_key(path));
        self.flags.extend(later.flags);
        self.values.extend(later.values);
    }

    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)
    }

    /// The flag that gave this; `None`: a file did, or nothing.
    pub(super) fn flag(&self, path: &str) -> Option<&'static str> {
        self.flags.iter().find(|(given, _)| given == path).map(|(_, flag)| *flag)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}

/// A name in lower case, as the client compares them, and fit to be shown. A dot in it is none that divides.
fn shown(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c.to_ascii_lowercase() };
    name.chars().take(MAX_NAME).map(plain).collect::<String>().replace('.', "\\.")
}
