//! Reads exactly what [`super::print`] writes.

use super::{Assignments, Word, assignment};

/// `None` if any of it is anything else.
pub(super) fn read(text: &str) -> Option<Assignments> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(next) = rest.strip_prefix('\n') {
            rest = next;
            continue;
        }
        let (name, value) = assignment(rest)?;
        let (word, next) = match value.strip_prefix('(') {
            Some(elements) => many(elements)?,
            None => one(value).map(|(text, next)| (Word::One(text), next))?,
        };
        found.push((name.to_owned(), word));
        if !(next.is_empty() || next.starts_with('\n')) {
            return None;
        }
        rest = next;
    }
    Some(found)
}

fn many(text: &str) -> Option<(Word, &str)> {
    let mut texts = Vec::new();
    let mut rest = text;
    loop {
        if let Some(next) = rest.strip_prefix(')') {
            return Some((Word::Many(texts), next));
        }
        if !texts.is_empty() {
            rest = rest.strip_prefix(' ')?;
        }
        let (text, next) = one(rest)?;
        texts.push(text);
        rest = next;
    }
}

/// One value in single quotes.
fn one(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('\'')?;
    loop {
        let (part, next) = rest.split_once('\'')?;
        value.push_str(part);
        match next.strip_prefix(r"\''") {
            Some(next) => {
                value.push('\'');
                rest = next;
            }
            None => return Some((value, next)),
        }
    }
}
