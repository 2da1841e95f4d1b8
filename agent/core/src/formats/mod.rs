//! The file formats in which settings go to programs and come back from them: JSON, SHELL, PLAINTEXT, TOML, DOTENV.
//!
//! All of them carry one value of JSON; what each can hold, and which types are lost on the way back, is written down
//! in `docs/formats.md`. [`parse`] and [`print`] are bytes in, bytes out, and bounded by [`MAX_TEXT`] in both
//! directions. Nothing that is read is ever executed, and nothing is written that another program would read as
//! something else than the value: such a value is refused with its path.

mod dotenv;
mod names;
mod scalar;
mod shell;
mod toml;

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

/// Bytes of the largest text that is read or written: far above any shadow (8 kB) and any sensible file of settings.
pub const MAX_TEXT: usize = 1 << 20;

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// JSON, compact, without null members.
    Json,
    /// Assignments that every POSIX shell sources.
    Shell,
    /// One string, as it is.
    Plaintext,
    /// TOML.
    Toml,
    /// `NAME=value` lines for systemd's `EnvironmentFile=` and for `--env-file` of container engines.
    Dotenv,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Json, Self::Shell, Self::Plaintext, Self::Toml, Self::Dotenv];

    /// As it is written in a service definition.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Shell => "SHELL",
            Self::Plaintext => "PLAINTEXT",
            Self::Toml => "TOML",
            Self::Dotenv => "DOTENV",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = FormatError;

    /// By its name, in upper or lower case.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        let found = Self::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| FormatError::Unknown(name.to_owned()))
    }
}

/// How SHELL writes a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ArrayStyle {
    /// `list=('a' 'b')`: bash, and nothing smaller.
    #[default]
    Bash,
    /// `list_0='a'`, `list_1='b'`, `list__count='2'`: any shell. DOTENV always has it so.
    Indexed,
}

impl FromStr for ArrayStyle {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        match name {
            "bash" => Ok(Self::Bash),
            "indexed" => Ok(Self::Indexed),
            _ => Err(FormatError::UnknownStyle(name.to_owned())),
        }
    }
}

/// Why a text is not taken or a value not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No format has this name.
    #[error("there is no format {0:?}; use JSON, SHELL, PLAINTEXT, TOML or DOTENV")]
    Unknown(String),
    /// No array style has this name.
    #[error("there is no array style {0:?}; use bash or indexed")]
    UnknownStyle(String),
    /// More than [`MAX_TEXT`].
    #[error("more than {MAX_TEXT} bytes of {0}; split it")]
    TooLarge(Format),
    /// Bytes that are no text.
    #[error("not {format}: byte {at} is not UTF-8; convert the file to UTF-8")]
    NotUtf8 {
        /// What it should have been.
        format: Format,
        /// Offset of the first byte that is wrong.
        at: usize,
    },
    /// A text that is not of its format.
    #[error("not {format}: line {line}: {what}")]
    Syntax {
        /// What it should have been.
        format: Format,
        /// From 1.
        line: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A text that is not of its format, told by the reader of that format, which names the line itself.
    #[error("not {format}: {what}")]
    Malformed {
        /// What it should have been.
        format: Format,
        /// What is wrong.
        what: String,
    },
    /// A value that the format cannot hold.
    #[error("{format} cannot hold {path}: {why}")]
    NoPlace {
        /// Where it was to be written.
        format: Format,
        /// Place of the value: `$.a.b[2]`.
        path: String,
        /// Why, and what would be right.
        why: String,
    },
}

/// Reads TOML. That parser is not in this crate: who has it brings it along.
pub type ReadToml = fn(&str) -> Result<Value, String>;

/// Reads `text`.
///
/// # Errors
/// It is too large, or not of this format: with the line where that is known.
pub fn parse(format: Format, text: &[u8], read_toml: ReadToml) -> Result<Value, FormatError> {
    if text.len() > MAX_TEXT {
        return Err(FormatError::TooLarge(format));
    }
    let text = std::str::from_utf8(text)
        .map_err(|error| FormatError::NotUtf8 { format, at: error.valid_up_to() })?;
    let malformed = |what| FormatError::Malformed { format, what };
    match format {
        Format::Json => serde_json::from_slice(text.as_bytes()).map_err(|error| malformed(error.to_string())),
        Format::Shell => shell::parse(text),
        Format::Plaintext => Ok(Value::String(text.to_owned())),
        Format::Toml => read_toml(text).map_err(malformed),
        Format::Dotenv => dotenv::parse(text),
    }
}

/// Writes `value`; `arrays` only matters to SHELL. The result is the whole file: SHELL, TOML and DOTENV end with a line
/// feed, JSON and PLAINTEXT are as they are.
///
/// # Errors
/// The format cannot hold the value, or it would be too large. Nothing is written in part.
pub fn print(format: Format, value: &Value, arrays: ArrayStyle) -> Result<Vec<u8>, FormatError> {
    let text = match format {
        Format::Json => without_null_members(value).to_string(),
        Format::Shell => shell::print(value, arrays)?,
        Format::Plaintext => match value {
            Value::String(text) => text.clone(),
            _ => {
                let why = "it is no string; use another format".to_owned();
                return Err(FormatError::NoPlace { format, path: "$".to_owned(), why });
            }
        },
        Format::Toml => toml::print(value)?,
        Format::Dotenv => dotenv::print(value)?,
    };
    if text.len() > MAX_TEXT {
        return Err(FormatError::TooLarge(format));
    }
    Ok(text.into_bytes())
}

/// A null in a shadow means that there is nothing.
fn without_null_members(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut kept = Map::new();
            for (key, member) in members {
                if !member.is_null() {
                    kept.insert(key.clone(), without_null_members(member));
                }
            }
            Value::Object(kept)
        }
        Value::Array(elements) => Value::Array(elements.iter().map(without_null_members).collect()),
        other => other.clone(),
    }
}

/// A step of the way to a value.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Deepest value that is written: as deep as JSON is read.
const MAX_DEPTH: usize = 128;

/// Where a writer is, so that it can say so.
#[derive(Debug)]
struct Way<'a> {
    format: Format,
    steps: Vec<Step<'a>>,
}

impl<'a> Way<'a> {
    fn new(format: Format) -> Self {
        Self { format, steps: Vec::new() }
    }

    /// One step further; what ends with an error needs not [`Self::leave`].
    fn enter(&mut self, step: Step<'a>) -> Result<(), FormatError> {
        self.steps.push(step);
        if self.steps.len() > MAX_DEPTH {
            return Err(self.refusal("it is nested too deep; make it flatter"));
        }
        Ok(())
    }

    /// One step back.
    fn leave(&mut self) {
        self.steps.pop();
    }

    /// The value here is refused.
    fn refusal(&self, why: impl Into<String>) -> FormatError {
        FormatError::NoPlace { format: self.format, path: self.to_string(), why: why.into() }
    }
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("$")?;
        for step in &self.steps {
            match step {
                Step::Key(key) if names::is_name(key) => write!(f, ".{key}")?,
                Step::Key(key) => write!(f, "[{key:?}]")?,
                Step::Index(at) => write!(f, "[{at}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
