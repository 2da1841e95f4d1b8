//! SHELL: a file of assignments that a shell script sources.
//!
//! What is written means the same in every POSIX shell (lists in bash form excepted): only single quotes, and `'\''`
//! for a single quote, so that no value is ever more than a value. What is read may be hand-written ([`lenient`]) or
//! come from chariotd, which writes `\'` for a single quote ([`chariotd`]); it is taken apart, never run.

mod chariotd;
mod lenient;
mod written;

use serde_json::Value;

use super::names::{self, Assignments};
use super::scalar;
use super::{ArrayStyle, Format, FormatError};

/// One `name='value'` or `name=('a' 'b')` a line, the lines sorted; an object without values is one empty line.
pub(super) fn print(value: &Value, arrays: ArrayStyle) -> Result<String, FormatError> {
    let mut text = String::new();
    for (name, assigned) in &names::flatten(Format::Shell, value, arrays)? {
        text.push_str(name);
        if let Value::Array(elements) = assigned {
            text.push('(');
            for (at, element) in elements.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { " " });
                push_quoted(&mut text, element);
            }
            text.push(')');
        } else {
            push_quoted(&mut text, assigned);
        }
        text.push('\n');
    }
    Ok(if text.is_empty() { "\n".to_owned() } else { text })
}

fn push_quoted(text: &mut String, value: &Value) {
    text.push('\'');
    text.push_str(&value.as_str().unwrap_or_default().replace('\'', r"'\''"));
    text.push('\'');
}

/// The value of a text, or of the elements of a list.
fn value(words: Words) -> Value {
    match words {
        Words::Nothing => Value::Null,
        Words::One(text) => scalar::typed(&text),
        Words::Many(texts) => Value::Array(texts.iter().map(|text| scalar::typed(text)).collect()),
    }
}

/// What stands right of `=`.
enum Words {
    /// Nothing, or `""`: chariotd's way to say that there is no value.
    Nothing,
    One(String),
    Many(Vec<String>),
}

/// Reads a file of assignments. Two ways to write a quote are about, which contradict each other after a backslash;
/// so what [`print`] writes is tried first, then what chariotd writes, then everything else.
pub(super) fn parse(text: &str) -> Result<Value, FormatError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let fault = |line, what| FormatError::Syntax { format: Format::Shell, line, what };
    let assignments = match written::read(text).or_else(|| chariotd::read(text)) {
        Some(assignments) => assignments,
        None => lenient::read(text).map_err(|(line, what)| fault(line, what))?,
    };
    names::nest(&assignments).map_err(|what| FormatError::Malformed { format: Format::Shell, what })
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
