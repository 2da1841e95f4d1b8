//! SHELL: a file of assignments that a shell script sources.
//!
//! What is written means the same in every POSIX shell (lists in bash form excepted): only single quotes, and `'\''`
//! for a single quote, so that no value is ever more than a value. What is read may be hand-written ([`lenient`]) or
//! come from chariotd, which writes `\'` for a single quote ([`chariotd`]); it is taken apart, never run.

mod chariotd;
mod lenient;
mod written;

use serde_json::Value;

use super::names::{self, Assigned};
use super::scalar;
use super::{ArrayStyle, Format, FormatError};

/// One `name='value'` or `name=('a' 'b')` a line, the lines sorted; an object without values is one empty line.
pub(super) fn print(value: &Value, arrays: ArrayStyle) -> Result<String, FormatError> {
    let flat = names::flatten(Format::Shell, value, arrays)?;
    let line = |(name, assigned): (&String, &Assigned)| match assigned {
        Assigned::One(text) => format!("{name}={}", quoted(text)),
        Assigned::Many(texts) => {
            let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
            format!("{name}=({})", texts.join(" "))
        }
    };
    let mut lines: Vec<_> = flat.iter().map(line).collect();
    lines.sort_unstable();
    Ok(lines.join("\n") + "\n")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What stands right of `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// Nothing, or `""`: chariotd's way to say that there is no value.
    Nothing,
    One(String),
    Many(Vec<String>),
}

impl Word {
    fn value(self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::One(text) => scalar::typed(&text),
            Self::Many(texts) => Value::Array(texts.iter().map(|text| scalar::typed(text)).collect()),
        }
    }
}

type Assignments = Vec<(String, Word)>;

/// Reads a file of assignments. Two ways to write a quote are about, which contradict each other after a backslash;
/// so what [`print`] writes is tried first, then what chariotd writes, then everything else.
pub(super) fn parse(text: &str) -> Result<Value, FormatError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let fault = |line, what| FormatError::Syntax { format: Format::Shell, line, what };
    let assignments = match written::read(text).or_else(|| chariotd::read(text)) {
        Some(assignments) => assignments,
        None => lenient::read(text).map_err(|(line, what)| fault(line, what))?,
    };
    let values = assignments.into_iter().map(|(name, word)| (name, word.value()));
    names::nest(values).map_err(|what| FormatError::Malformed { format: Format::Shell, what })
}

/// A name and `=` at the beginning of `text`, and what follows.
fn assignment(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'))?;
    let (name, rest) = text.split_at(end);
    Some((name, rest.strip_prefix('=')?)).filter(|(name, _)| names::is_name(name))
}

#[cfg(test)]
mod tests;
