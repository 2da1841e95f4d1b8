//! Reads what people write: comments, blank lines, `export`, single and double quotes, bare words, lists over several
//! lines, CR LF. No expansion takes place: `$HOME` is five characters. What is no assignment is refused with its line.

use super::super::names;
use super::{Assignments, Words, value};

/// Line and what is wrong with it.
type Fault = (usize, String);

/// Reads the whole text.
pub(super) fn read(text: &str) -> Result<Assignments, Fault> {
    let mut reader = Reader { text, at: 0 };
    let mut found = Assignments::new();
    loop {
        reader.between_statements();
        if reader.rest().is_empty() {
            return Ok(found);
        }
        let statement = reader.statement().map_err(|(at, what)| (line(text, at), what))?;
        if let Some((name, words)) = statement {
            found.insert(name, value(words));
        }
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count()
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// Offset and what is wrong there.
type At = (usize, String);

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fault<T>(&self, what: impl Into<String>) -> Result<T, At> {
        Err((self.at, what.into()))
    }

    fn take(&mut self, prefix: &str) -> bool {
        let there = self.rest().starts_with(prefix);
        self.at += if there { prefix.len() } else { 0 };
        there
    }

    fn skip(&mut self, set: &[char]) {
        self.at = self.text.len() - self.rest().trim_start_matches(set).len();
    }

    /// Blanks, joined lines, and a comment where one may begin.
    fn blanks_and_comment(&mut self) {
        self.skip(&[' ', '\t']);
        while self.take("\\\n") || self.take("\\\r\n") {
            self.skip(&[' ', '\t']);
        }
        if self.rest().starts_with('#') {
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn between_statements(&mut self) {
        loop {
            let before = self.at;
            self.skip(&['\n', '\r', ';']);
            self.blanks_and_comment();
            if self.at == before {
                return;
            }
        }
    }

    /// `name=value`, `export name=value`; `export name` has none.
    fn statement(&mut self) -> Result<Option<(String, Words)>, At> {
        let exported = ["export ", "export\t"].iter().any(|word| self.take(word));
        self.skip(if exported { &[' ', '\t'] } else { &[] });
        let (begin, rest) = (self.at, self.rest());
        let length = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let name = &rest[..length];
        if !names::is_name(name) {
            return self.fault("no assignment; write NAME='value', and comments behind #");
        }
        self.at += length;
        let word = if self.take("=(") {
            Some(self.list(begin)?)
        } else if self.take("=") {
            Some(self.word(false)?.1)
        } else if exported {
            None
        } else {
            return self.fault(format!("{name} is not followed by =; a file of settings has no commands"));
        };
        self.blanks_and_comment();
        if !ends_statement(self.rest()) {
            return self
                .fault(format!("something follows the value of {name}; put the whole value in quotes"));
        }
        Ok(word.map(|word| (name.to_owned(), word)))
    }

    /// The elements of a list, and its `)`.
    fn list(&mut self, begin: usize) -> Result<Words, At> {
        let mut texts = Vec::new();
        loop {
            loop {
                let before = self.at;
                self.skip(&['\n', '\r']);
                self.blanks_and_comment();
                if self.at == before {
                    break;
                }
            }
            if self.take(")") {
                return Ok(Words::Many(texts));
            }
            if self.rest().is_empty() {
                return Err((begin, "a list without its )".to_owned()));
            }
            let (source, word) = self.word(true)?;
            if source.is_empty() || (source.starts_with('[') && source.contains("]=")) {
                return self.fault("a list whose elements are not words; write ('a' 'b')");
            }
            texts.push(if let Words::One(text) = word { text } else { String::new() });
        }
    }

    /// One word as the shell sees it, joined of its quoted and bare parts; with it, how it is written.
    fn word(&mut self, in_list: bool) -> Result<(&'a str, Words), At> {
        let begin = self.at;
        let mut value = String::new();
        while let Some(next) = self.rest().chars().next() {
            match next {
                '\'' => self.single(&mut value, in_list)?,
                '"' => self.double(&mut value)?,
                '\\' if self.take("\\\n") || self.take("\\\r\n") => {}
                '\\' => {
                    self.at += 1;
                    let escaped = self.rest().chars().next();
                    value.extend(escaped.or(Some('\\')));
                    self.at += escaped.map_or(0, char::len_utf8);
                }
                ' ' | '\t' => break,
                ')' if in_list => break,
                _ if ends_statement(self.rest()) => break,
                other => {
                    value.push(other);
                    self.at += other.len_utf8();
                }
            }
        }
        let source = &self.text[begin..self.at];
        let word = if source.is_empty() || source == "\"\"" { Words::Nothing } else { Words::One(value) };
        Ok((source, word))
    }

    /// What stands in single quotes. A quote behind a backslash ends them, as in a shell, where that makes sense of
    /// what follows; elsewhere it is chariotd's way to write a quote.
    fn single(&mut self, value: &mut String, in_list: bool) -> Result<(), At> {
        let begin = self.at;
        self.at += 1;
        loop {
            let Some(length) = self.rest().find('\'') else {
                return Err((begin, "a ' without its second one".to_owned()));
            };
            let part = &self.rest()[..length];
            self.at += length + 1;
            match part.strip_suffix('\\') {
                Some(part) if !self.ends_quotes(in_list) => {
                    value.push_str(part);
                    value.push('\'');
                }
                _ => {
                    value.push_str(part);
                    return Ok(());
                }
            }
        }
    }

    /// Whether what follows a quote can follow the end of a value.
    fn ends_quotes(&self, in_list: bool) -> bool {
        let rest = self.rest();
        let next = rest.trim_start_matches([' ', '\t']);
        let element =
            in_list && (next.starts_with(')') || (next.len() < rest.len() && next.starts_with('\'')));
        let comment = next.len() < rest.len() && next.starts_with('#');
        rest.starts_with(r"\''") || element || comment || ends_statement(next)
    }

    /// What stands in double quotes.
    fn double(&mut self, value: &mut String) -> Result<(), At> {
        let begin = self.at;
        self.at += 1;
        while let Some(next) = self.rest().chars().next() {
            self.at += next.len_utf8();
            match next {
                '"' => return Ok(()),
                '\\' if self.take("\n") => {}
                // The shell would keep the backslash before a single quote; nobody who writes it wants it.
                '\\' => match self.rest().chars().next() {
                    Some(escaped @ ('"' | '\\' | '$' | '`' | '\'')) => {
                        self.at += 1;
                        value.push(escaped);
                    }
                    _ => value.push('\\'),
                },
                other => value.push(other),
            }
        }
        Err((begin, "a \" without its second one".to_owned()))
    }
}

fn ends_statement(text: &str) -> bool {
    text.is_empty() || text.starts_with(['\n', ';']) || text == "\r" || text.starts_with("\r\n")
}
