//! What a service is: its key in a shadow, its file, and the command that is told of a change.
//!
//! One definition is one file: native as TOML or JSON, or a module of chariotd that is one object literal
//! ([`super::literal`]). The keys are the same in all three and are chariotd's; `shadow` and `array-style` are ours.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::literal::{self, LiteralError};
use crate::formats::{self, ArrayStyle, Format, FormatError, ReadToml};
use crate::shadow::is_shadow_name;

/// The file that is not there: nothing is written, and every change notifies.
pub const NULL: &str = "/dev/null";
/// Time of a notify command without `timeout`, or with one below a second, as in chariotd.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time of a notify command.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// The key under which the agent itself reports.
pub const OWN_KEY: &str = "otandem";

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Top-level key of the shadow that holds its settings.
    pub key: String,
    /// A named shadow; without, that of the table in the configuration, which is the classic one unless it says otherwise.
    pub shadow: Option<String>,
    /// Where its settings are written; `None` for `ephemeraldata`, which is passed on and never kept or reported.
    pub outfile: Option<Outfile>,
    /// Format of update files.
    pub informat: Format,
    /// Command line for `/bin/sh -c`.
    pub notifycmd: String,
    /// Only these members are written.
    pub outkeys: Option<Vec<String>>,
    /// Only a change of these members notifies.
    pub notifykeys: Option<Vec<String>>,
    /// Also notify of the first contents after a start.
    pub initialnotify: bool,
    /// Most time of the notify command.
    pub timeout: Duration,
    /// Keys that mean nothing here; they are ignored, as chariotd does, and worth a warning.
    pub unknown: Vec<String>,
    /// The text of a module whose `validate` settings must pass; never from a key.
    pub validate: Option<String>,
}

/// A file of settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outfile {
    /// Absolute.
    pub path: PathBuf,
    /// How it is written and read.
    pub format: Format,
    /// How lists are written.
    pub arrays: ArrayStyle,
}

impl Outfile {
    /// Whether nothing is to be written at all.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.path.as_os_str() == NULL
    }
}

/// Why a file defines no service.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DefinitionError {
    /// Neither `.toml` nor `.json` nor `.js`.
    #[error("{0}: no definition; name it *.toml, *.json or *.js")]
    Name(String),
    /// TOML or JSON that is none.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A module that is more than a literal.
    #[error(transparent)]
    Literal(#[from] LiteralError),
    /// Not a set of keys.
    #[error("not an object; write one key for each property of the service")]
    NoObject,
    /// A key that every service needs.
    #[error("{key} is missing; {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it is for.
        remedy: &'static str,
    },
    /// A key with a value that it cannot have.
    #[error("{key} is {value}; {remedy}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value as JSON.
        value: Value,
        /// What it can be.
        remedy: String,
    },
}

/// Whether a file of this name is to be read as a definition.
#[must_use]
pub fn is_definition(name: &str) -> bool {
    !name.starts_with('.') && [".toml", ".json", ".js"].iter().any(|end| name.ends_with(end))
}

/// Reads the file `name` with the contents `text`.
///
/// # Errors
/// It is not of the format that its name says, or defines no service.
pub fn read(name: &str, text: &[u8], read_toml: ReadToml) -> Result<Definition, DefinitionError> {
    let value = match name.rsplit_once('.').map(|(_, end)| end) {
        Some("toml") => formats::parse(Format::Toml, text, read_toml)?,
        Some("json") => formats::parse(Format::Json, text, read_toml)?,
        Some("js") => {
            // Its bounds are those of every other text.
            let text = formats::parse(Format::Plaintext, text, read_toml)?;
            literal::parse(text.as_str().unwrap_or_default())?
        }
        _ => return Err(DefinitionError::Name(name.to_owned())),
    };
    from_value(&value)
}

/// The service that `value` defines.
///
/// # Errors
/// A key is missing or has a value that it cannot have.
pub fn from_value(value: &Value) -> Result<Definition, DefinitionError> {
    let Value::Object(members) = value else { return Err(DefinitionError::NoObject) };
    let mut keys = Keys { members, known: Vec::new() };
    let key = keys.needed("key", "it is the top-level key of the shadow that the service uses")?;
    if key == OWN_KEY {
        return Err(keys.wrong("key", "use another one: the agent reports its own state there"));
    }
    let ephemeral = keys.flag("ephemeraldata")?;
    let outfile = outfile(&mut keys, ephemeral)?;
    let definition = Definition {
        key,
        shadow: shadow(&mut keys)?,
        informat: keys
            .text("informat")?
            .map(|name| keys.named("informat", &name))
            .transpose()?
            .unwrap_or(Format::Json),
        notifycmd: keys.needed("notifycmd", "it is the command that is run after a change")?,
        outkeys: keys.list("outkeys")?,
        notifykeys: keys.list("notifykeys")?,
        initialnotify: keys.flag("initialnotify")?,
        timeout: timeout(&mut keys)?,
        outfile,
        unknown: keys.unknown(),
        validate: None,
    };
    let plain = definition.outfile.as_ref().is_some_and(|file| file.format == Format::Plaintext);
    if plain && definition.outkeys.is_some() {
        return Err(keys.wrong("outkeys", "leave it out: PLAINTEXT is one string without members"));
    }
    Ok(definition)
}

fn outfile(keys: &mut Keys<'_>, ephemeral: bool) -> Result<Option<Outfile>, DefinitionError> {
    // Known, and checked where they are used.
    let arrays = keys.text("array-style")?;
    let (path, format) = (keys.text("outfile")?, keys.text("outformat")?);
    if ephemeral {
        return Ok(None);
    }
    let missing = |key, remedy| DefinitionError::Missing { key, remedy };
    let path = path
        .ok_or_else(|| missing("outfile", "it is the file that gets the settings (or set ephemeraldata)"))?;
    let format = format.ok_or_else(|| missing("outformat", "use JSON, SHELL, PLAINTEXT, TOML or DOTENV"))?;
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(keys.wrong("outfile", "write the full path of a file"));
    }
    let arrays = arrays.map(|name| keys.named("array-style", &name)).transpose()?.unwrap_or_default();
    Ok(Some(Outfile { path: path.into(), format: keys.named("outformat", &format)?, arrays }))
}

/// By the rules of the shadow service for names.
fn shadow(keys: &mut Keys<'_>) -> Result<Option<String>, DefinitionError> {
    let name = keys.text("shadow")?;
    if name.as_deref().is_none_or(is_shadow_name) {
        Ok(name)
    } else {
        Err(keys.wrong(
            "shadow",
            "use 1 to 64 letters, digits, '$', '_', ':' and '-', or leave it out for the classic shadow",
        ))
    }
}

fn timeout(keys: &mut Keys<'_>) -> Result<Duration, DefinitionError> {
    let Some(value) = keys.get("timeout") else { return Ok(DEFAULT_TIMEOUT) };
    let remedy = "use a number of seconds, at most 86400";
    let seconds = value.as_f64().ok_or_else(|| keys.wrong("timeout", remedy))?;
    if seconds < 1.0 {
        return Ok(DEFAULT_TIMEOUT);
    }
    let timeout = Duration::try_from_secs_f64(seconds).ok().filter(|timeout| *timeout <= MAX_TIMEOUT);
    timeout.ok_or_else(|| keys.wrong("timeout", remedy))
}

/// The keys of a definition, and which of them have been asked for.
struct Keys<'a> {
    members: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    /// The value of `key`; null is none.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.members.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &'static str, remedy: impl Into<String>) -> DefinitionError {
        let value = self.members.get(key).cloned().unwrap_or_default();
        DefinitionError::Value { key, value, remedy: remedy.into() }
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, DefinitionError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_str() {
            Some(text) if !text.is_empty() && !text.contains('\0') => Ok(Some(text.to_owned())),
            _ => Err(self.wrong(key, "use a string that is not empty")),
        }
    }

    fn needed(&mut self, key: &'static str, remedy: &'static str) -> Result<String, DefinitionError> {
        self.text(key)?.ok_or(DefinitionError::Missing { key, remedy })
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, DefinitionError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, "use true or false"))
    }

    fn list(&mut self, key: &'static str) -> Result<Option<Vec<String>>, DefinitionError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts =
            value.as_array().map(|list| list.iter().map(|element| element.as_str().map(str::to_owned)));
        let texts: Option<Vec<String>> = texts.and_then(Iterator::collect);
        texts.map(Some).ok_or_else(|| self.wrong(key, "use a list of names"))
    }

    /// What `name` is the name of.
    fn named<T: std::str::FromStr<Err = FormatError>>(
        &self,
        key: &'static str,
        name: &str,
    ) -> Result<T, DefinitionError> {
        name.parse().map_err(|error: FormatError| self.wrong(key, error.to_string()))
    }

    fn unknown(&self) -> Vec<String> {
        self.members.keys().filter(|key| !self.known.contains(&key.as_str())).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn no_toml(_: &str) -> Result<Value, String> {
        Ok(least())
    }

    /// Only what must be there.
    fn least() -> Value {
        json!({"key": "foo", "outfile": "/config/foo.rc", "outformat": "shell", "notifycmd": "sv restart foo"})
    }

    fn with(key: &str, value: Value) -> Value {
        let mut definition = least();
        definition[key] = value;
        definition
    }

    #[test]
    fn a_definition_needs_four_keys_and_the_rest_has_defaults() {
        let definition = Definition {
            key: "foo".into(),
            shadow: None,
            outfile: Some(Outfile {
                path: "/config/foo.rc".into(),
                format: Format::Shell,
                arrays: ArrayStyle::Bash,
            }),
            informat: Format::Json,
            notifycmd: "sv restart foo".into(),
            outkeys: None,
            notifykeys: None,
            initialnotify: false,
            timeout: DEFAULT_TIMEOUT,
            unknown: vec![],
            validate: None,
        };
        assert_eq!(from_value(&least()), Ok(definition.clone()));
        for (name, text) in [
            ("foo.json", least().to_string()),
            ("foo.js", format!("module.exports = {}", least())),
            ("foo.toml", "x".into()),
        ] {
            assert!(is_definition(name));
            assert_eq!(read(name, text.as_bytes(), no_toml), Ok(definition.clone()), "{name}");
        }
        for name in ["foo.jsx", "README", ".foo.js", "foo.js~"] {
            assert!(!is_definition(name), "{name}");
        }
        for missing in ["key", "outfile", "outformat", "notifycmd"] {
            for absent in [json!(null), json!({})] {
                let mut definition = with(missing, absent.clone());
                if absent.is_object() {
                    definition.as_object_mut().unwrap().remove(missing);
                }
                let error = from_value(&definition).unwrap_err();
                assert!(matches!(&error, DefinitionError::Missing { key, .. } if *key == missing), "{error}");
            }
        }
    }

    #[test]
    fn every_key_is_taken() {
        let definition = from_value(&json!({
            "key": "foo", "shadow": "net:1", "outfile": "/dev/null", "outformat": "DOTENV", "informat": "toml",
            "array-style": "indexed", "notifycmd": "true", "outkeys": ["a"], "notifykeys": ["a", "b"],
            "initialnotify": true, "timeout": 1.5, "ephemeraldata": false, "comment": "mine",
        }));
        let definition = definition.unwrap();
        let outfile = definition.outfile.unwrap();
        assert!(outfile.is_null());
        assert_eq!((outfile.format, outfile.arrays), (Format::Dotenv, ArrayStyle::Indexed));
        assert_eq!((definition.shadow.as_deref(), definition.informat), (Some("net:1"), Format::Toml));
        assert_eq!(definition.outkeys, Some(vec!["a".into()]));
        assert_eq!(definition.notifykeys, Some(vec!["a".into(), "b".into()]));
        assert_eq!((definition.initialnotify, definition.timeout), (true, Duration::from_millis(1500)));
        assert_eq!(definition.unknown, ["comment"]);
    }

    #[test]
    fn ephemeral_data_needs_no_file() {
        let definition =
            from_value(&json!({"key": "foo", "notifycmd": "true", "ephemeraldata": true})).unwrap();
        assert_eq!((definition.outfile, definition.unknown), (None, vec![]));
        assert_eq!(from_value(&with("ephemeraldata", json!(true))).unwrap().outfile, None);
    }

    #[test]
    fn timeouts_below_a_second_are_the_default() {
        for (timeout, taken) in
            [(json!(0), 10), (json!(-5), 10), (json!(0.5), 10), (json!(1), 1), (json!(86400), 86400)]
        {
            assert_eq!(from_value(&with("timeout", timeout)).unwrap().timeout, Duration::from_secs(taken));
        }
    }

    #[test]
    fn a_value_that_a_key_cannot_have_is_named() {
        for (key, value) in [
            ("key", json!(1)),
            ("key", json!("")),
            ("key", json!("otandem")),
            ("shadow", json!("a/b")),
            ("shadow", json!("x".repeat(65))),
            ("outfile", json!("foo.rc")),
            ("outfile", json!("/config/")),
            ("outfile", json!("/a\u{0}b")),
            ("outformat", json!("YAML")),
            ("informat", json!(["JSON"])),
            ("array-style", json!("ksh")),
            ("notifycmd", json!(["sv", "up"])),
            ("outkeys", json!("a")),
            ("outkeys", json!(["a", 1])),
            ("notifykeys", json!({})),
            ("initialnotify", json!("yes")),
            ("ephemeraldata", json!(1)),
            ("timeout", json!("10")),
            ("timeout", json!(86401)),
            ("timeout", json!(1e300)),
        ] {
            let error = from_value(&with(key, value.clone())).unwrap_err();
            assert!(
                matches!(&error, DefinitionError::Value { key: found, .. } if *found == key),
                "{value}: {error}"
            );
            assert!(error.to_string().starts_with(&format!("{key} is {value}; ")), "{error}");
        }
        let mut plain = with("outkeys", json!(["a"]));
        plain["outformat"] = json!("PLAINTEXT");
        assert!(from_value(&plain).unwrap_err().to_string().starts_with("outkeys is "));
        assert_eq!(from_value(&json!([])), Err(DefinitionError::NoObject));
    }

    #[test]
    fn a_module_with_a_function_says_what_it_needs() {
        let text = b"module.exports = {\n  key: 'foo',\n  validate: (cfg) => cfg,\n}";
        let error = read("foo.js", text, no_toml).unwrap_err().to_string();
        assert!(error.starts_with("line 3: ") && error.contains("otandem-js"), "{error}");
        assert!(matches!(read("foo.yaml", b"", no_toml), Err(DefinitionError::Name(_))));
        assert!(matches!(read("foo.json", b"{", no_toml), Err(DefinitionError::Format(_))));
        assert!(read("foo.js", &vec![b' '; formats::MAX_TEXT + 1], no_toml).is_err());
    }

    proptest! {
        #[test]
        fn no_value_of_a_key_ends_the_reader(
            key in prop::sample::select(vec!["key", "timeout", "outfile", "outkeys", "shadow", "informat", "array-style"]),
            number in any::<f64>(),
            text in any::<String>(),
        ) {
            for value in [json!(number), json!(text), json!([text]), json!({&text: number})] {
                if let Ok(definition) = from_value(&with(key, value)) {
                    prop_assert!(definition.timeout <= MAX_TIMEOUT && !definition.timeout.is_zero());
                    prop_assert!(definition.outfile.is_some_and(|file| file.path.is_absolute()));
                }
            }
        }
    }
}
