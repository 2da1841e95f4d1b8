//! Reads exactly what [`super::print`] writes.

use super::{Assignments, Words, assignment, value};

/// `None` if any of it is anything else.
pub(super) fn read(text: &str) -> Option<Assignments> {
    let mut found = Assignments::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(next) = rest.strip_prefix('\n') {
            rest = next;
            continue;
        }
        let (name, right) = assignment(rest)?;
        let (words, next) = match right.strip_prefix('(') {
            Some(elements) => many(elements)?,
            None => one(right).map(|(text, next)| (Words::One(text), next))?,
        };
        found.insert(name.to_owned(), value(words));
        if !(next.is_empty() || next.starts_with('\n')) {
            return None;
        }
        rest = next;
    }
    Some(found)
}

fn many(text: &str) -> Option<(Words, &str)> {
    let mut texts = Vec::new();
    let mut rest = text;
    loop {
        if let Some(next) = rest.strip_prefix(')') {
            return Some((Words::Many(texts), next));
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
