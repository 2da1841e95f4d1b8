//! Reads what chariotd writes: `name='value'` and `name=('a' 'b')` lines in which a single quote is `\'` and everything
//! else, line feeds too, stands as it is. That is no shell as soon as there is a quote, but it is what lies on devices.

use super::{Assignments, Words, assignment, value};

/// `None` if it is anything else.
pub(super) fn read(text: &str) -> Option<Assignments> {
    let mut found = Assignments::new();
    let mut rest = text.trim_start_matches('\n');
    while !rest.is_empty() {
        let (name, right) = assignment(rest)?;
        let (open, close) = if right.starts_with('(') { ('(', ')') } else { ('\'', '\'') };
        let right = right.strip_prefix(open)?;
        let (inner, next) = up_to_the_next(right, close)?;
        let words = if open == '(' { Words::Many(elements(inner)?) } else { Words::One(unescaped(inner)?) };
        found.insert(name.to_owned(), value(words));
        rest = next;
    }
    Some(found)
}

/// A value goes on until its end is followed by another assignment, or by the end of the file.
fn up_to_the_next(text: &str, close: char) -> Option<(&str, &str)> {
    let ends = text.match_indices(close).map(|(at, _)| at);
    let mut ends = ends.filter_map(|at| {
        let next = &text[at + 1..];
        let next = if next.is_empty() { next } else { next.strip_prefix('\n')? };
        let begins = |next| {
            assignment(next)
                .is_some_and(|(_, value)| ["'", "('", "()"].iter().any(|head| value.starts_with(head)))
        };
        (next.is_empty() || begins(next)).then_some((&text[..at], next))
    });
    ends.next()
}

/// Every quote in `inner` must be `\'`.
fn unescaped(inner: &str) -> Option<String> {
    let parts: Vec<_> = inner.split(r"\'").collect();
    parts.iter().all(|part| !part.contains('\'')).then(|| parts.join("'"))
}

/// `'a' 'b'`
fn elements(inner: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = inner;
    while !rest.is_empty() {
        if !found.is_empty() {
            rest = rest.strip_prefix(' ')?;
        }
        rest = rest.strip_prefix('\'')?;
        let mut quotes = rest.match_indices('\'').map(|(at, _)| at);
        let end = quotes.find(|at| !rest[..*at].ends_with('\\'))?;
        found.push(unescaped(&rest[..end])?);
        rest = &rest[end + 1..];
    }
    Some(found)
}
