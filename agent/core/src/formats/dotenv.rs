//! DOTENV: `NAME=value` lines, for systemd's `EnvironmentFile=` and `--env-file` of container engines.
//!
//! The engines take everything behind `=` as it is; systemd knows quotes and backslashes. So values are written bare
//! where both then see the same, and in double quotes for systemd where they would not. A value with a line break is
//! refused: to an engine its second line would be another variable.

use serde_json::Value;

use super::names::{self, Assignments};
use super::scalar;
use super::{ArrayStyle, Format, FormatError};

const BLANKS: [char; 2] = [' ', '\t'];

/// The lines, sorted; an object without values is one empty line.
pub(super) fn print(value: &Value) -> Result<String, FormatError> {
    let mut text = String::new();
    for (name, assigned) in &names::flatten(Format::Dotenv, value, ArrayStyle::Indexed)? {
        let value = assigned.as_str().unwrap_or_default();
        text.push_str(name);
        if is_bare(value) {
            text.push_str(value);
        } else {
            push_quoted(&mut text, value);
        }
        text.push('\n');
    }
    Ok(if text.is_empty() { "\n".to_owned() } else { text })
}

/// Whether all readers take `text` as it is.
fn is_bare(text: &str) -> bool {
    !text.starts_with(['\'', '"']) && text.trim_matches(BLANKS).len() == text.len() && !text.contains('\\')
}

fn push_quoted(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

/// Reads the file as systemd does: comments behind `#` or `;` at the beginning of a line, quotes around a value or
/// parts of it, a backslash before what stands for itself. `export` before a name is skipped.
pub(super) fn parse(text: &str) -> Result<Value, FormatError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Assignments::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            break;
        }
        if rest.starts_with(['#', ';']) {
            rest = rest.split_once('\n').map_or("", |(_, next)| next);
            continue;
        }
        let fault = |what: String| {
            let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
            FormatError::Syntax { format: Format::Dotenv, line, what }
        };
        let end = rest.find(['=', '\n']).unwrap_or(rest.len());
        let name = rest[..end].trim_end_matches([' ', '\t', '\r']);
        let name = name.strip_prefix("export ").map_or(name, |name| name.trim_start_matches(BLANKS));
        if !names::is_name(name) {
            return Err(fault(format!("{name:?} is no name of a variable; write NAME=value")));
        }
        let Some(right) = rest[end..].strip_prefix('=') else {
            return Err(fault(format!("{name} has no value; write {name}=value")));
        };
        let (value, next) = value(right)
            .ok_or_else(|| fault(format!("the value of {name} has a quote without its second one")))?;
        found.insert(name.to_owned(), scalar::typed(&value));
        rest = next;
    }
    names::nest(&found).map_err(|what| FormatError::Malformed { format: Format::Dotenv, what })
}

/// One value and what follows its line; `None` without the second of two quotes.
fn value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(BLANKS);
        if let Some(inner) = rest.strip_prefix('\'') {
            let (part, next) = inner.split_once('\'')?;
            value.push_str(part);
            rest = next;
        } else if let Some(inner) = rest.strip_prefix('"') {
            rest = double(inner, &mut value)?;
        } else {
            let (part, next) = bare(rest);
            return Some((value + &part, next));
        }
    }
}

/// What stands in double quotes, and what follows them.
fn double<'a>(text: &'a str, value: &mut String) -> Option<&'a str> {
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(chars.as_str()),
            '\\' => match chars.next()? {
                '\n' => {}
                escaped @ ('"' | '\\' | '$' | '`') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
}

/// What stands without quotes, up to the end of the line.
fn bare(text: &str) -> (String, &str) {
    let mut value = String::new();
    // Blanks at the end are no part of it, unless they are escaped.
    let mut kept = 0;
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '\n' => break,
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => {
                    value.push(escaped);
                    kept = value.len();
                }
            },
            ' ' | '\t' | '\r' => value.push(next),
            other => {
                value.push(other);
                kept = value.len();
            }
        }
    }
    value.truncate(kept);
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_bare_unless_systemd_would_change_them() {
        let value = json!({
            "A": "plain words # all of them", "B": "", "C": " led by a blank", "D": r"C:\dir", "E": "\"q\"",
            "F": "it's 5$ `x` \"y\"", "G": true, "H": 1.0, "I": null, "J": {}, "L": ["a", 2], "N": {"M": "x"},
            "UID": 1000, "O": "both\\ \"$x\"",
        });
        let text = print(&value).unwrap();
        assert_eq!(
            text,
            "A=plain words # all of them\nB=\nC=\" led by a blank\"\nD=\"C:\\\\dir\"\nE=\"\\\"q\\\"\"\n\
             F=it's 5$ `x` \"y\"\nG=true\nH=1\nL_0=a\nL_1=2\nL__count=2\nN_M=x\nO=\"both\\\\ \\\"\\$x\\\"\"\nUID=1000\n"
        );
        let mut back = value;
        for gone in ["I", "J"] {
            back.as_object_mut().unwrap().remove(gone);
        }
        back["H"] = json!(1);
        assert_eq!(parse(&text).unwrap(), back);
    }

    #[test]
    fn what_would_be_another_variable_or_choose_code_is_refused() {
        for (value, path) in [
            (json!({"A": "x\nLD_PRELOAD=/tmp/x.so"}), "$.A"),
            (json!({"A": "x\rB=1"}), "$.A"),
            (json!({"A": "\u{0}"}), "$.A"),
            (json!({"LD_PRELOAD": "x"}), "$.LD_PRELOAD"),
            (json!({"LD": {"AUDIT": "x"}}), "$.LD.AUDIT"),
            (json!({"PATH": "x"}), "$.PATH"),
            (json!({"a-b": 1}), "$[\"a-b\"]"),
            (json!({"a": [[1]]}), "$.a[0]"),
            (json!("text"), "$"),
        ] {
            let FormatError::NoPlace { path: found, .. } = print(&value).unwrap_err() else {
                panic!("{value}")
            };
            assert_eq!(found, path);
        }
    }

    #[test]
    fn files_for_systemd_are_read_as_systemd_reads_them() {
        let text = "\u{feff}# comment\n; another\r\n\n A = bare word \r\nexport B='single $x \\'\nC=\"a \\\"b\\\" \\$ \\x\"\n\
                    D='a'\"b\" c\nE=C:\\\\dir\\ \nF=one \\\ntwo\nG=\"two\nlines\"\nH=5\nI=it's\nJ=\n";
        let read = parse(text).unwrap();
        let wanted = json!({
            "A": "bare word", "B": "single $x \\", "C": "a \"b\" $ \\x", "D": "abc", "E": "C:\\dir ", "F": "one two",
            "G": "two\nlines", "H": 5, "I": "it's", "J": "",
        });
        assert_eq!(read, wanted);
    }

    #[test]
    fn a_line_that_is_no_assignment_is_named() {
        for (text, line) in
            [("A=1\nreboot\n", 2), ("A='x\n\n", 1), ("\n\n1A=x", 3), ("=x", 1), ("A=1\nB=\"", 2)]
        {
            let FormatError::Syntax { line: found, .. } = parse(text).unwrap_err() else { panic!("{text}") };
            assert_eq!(found, line, "{text}");
        }
    }
}
