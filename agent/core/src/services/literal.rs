//! Reads `module.exports = {..}` where everything in it is a literal.
//!
//! Service definitions of chariotd are CommonJS modules, and nearly all of them are one object literal. That much is read
//! without an engine: comments, `'use strict'`, strings in single or double quotes, keys with and without quotes,
//! numbers, booleans, null, undefined, lists, objects, trailing commas. Whatever computes something is refused; the
//! program `otandem-js`, where it is installed, runs that.

use serde_json::{Map, Number, Value};

/// A module that is more than a literal, or broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: {what}; a definition that is more than literals needs the program otandem-js on the device"
)]
pub struct LiteralError {
    /// From 1.
    pub line: usize,
    /// What stands there, or what does not.
    pub what: String,
}

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 32;

/// The object that the module exports. Members that are undefined are left out.
///
/// # Errors
/// It is not written as a literal.
pub fn parse(text: &str) -> Result<Value, LiteralError> {
    let mut reader = Reader { rest: text.strip_prefix('\u{feff}').unwrap_or(text) };
    reader.module().map_err(|what| {
        let at = text.len() - reader.rest.len();
        LiteralError { line: 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count(), what }
    })
}

struct Reader<'a> {
    rest: &'a str,
}

type Read<T> = Result<T, String>;

impl<'a> Reader<'a> {
    fn module(&mut self) -> Read<Value> {
        self.blanks()?;
        for strict in ["'use strict'", "\"use strict\""] {
            if self.take(strict) {
                self.blanks()?;
                self.take(";");
            }
        }
        for word in ["module", ".", "exports", "="] {
            self.expect(word)?;
        }
        self.blanks()?;
        if !self.rest.starts_with('{') {
            return Err(self.unexpected("module.exports is no object literal"));
        }
        let Some(exported) = self.value(0)? else { return Err("module.exports is undefined".into()) };
        self.blanks()?;
        while self.take(";") {
            self.blanks()?;
        }
        if self.rest.is_empty() { Ok(exported) } else { Err(self.unexpected("more follows the object")) }
    }

    /// Blanks and comments.
    fn blanks(&mut self) -> Read<()> {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.starts_with("//") {
                self.rest = self.rest.find(['\n', '\r']).map_or("", |end| &self.rest[end..]);
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                let end = comment.find("*/").ok_or("a comment without its */")?;
                self.rest = &comment[end + 2..];
            } else {
                return Ok(());
            }
        }
    }

    fn take(&mut self, token: &str) -> bool {
        let next = self.rest.strip_prefix(token);
        self.rest = next.unwrap_or(self.rest);
        next.is_some()
    }

    fn expect(&mut self, token: &str) -> Read<()> {
        self.blanks()?;
        if self.take(token) { Ok(()) } else { Err(self.unexpected(&format!("no {token} where one belongs"))) }
    }

    /// What is wrong, and what stands there instead.
    fn unexpected(&self, what: &str) -> String {
        let found: String = self.rest.chars().take_while(|c| !c.is_control()).take(20).collect();
        if found.is_empty() { format!("{what}, but the end of the line") } else { format!("{what}: {found}") }
    }

    /// The next value; `None` if it is undefined.
    fn value(&mut self, depth: usize) -> Read<Option<Value>> {
        self.blanks()?;
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        match self.rest.chars().next() {
            Some('{') => self.object(depth).map(Some),
            Some('[') => self.list(depth).map(Some),
            Some('\'' | '"') => Ok(Some(Value::String(self.string()?))),
            Some('0'..='9' | '.' | '-' | '+') => self.number().map(Some),
            _ => {
                let before = self.rest;
                Ok(match self.identifier() {
                    "true" => Some(Value::Bool(true)),
                    "false" => Some(Value::Bool(false)),
                    "null" => Some(Value::Null),
                    "undefined" => None,
                    _ => {
                        self.rest = before;
                        return Err(self.unexpected("no literal"));
                    }
                })
            }
        }
    }

    fn object(&mut self, depth: usize) -> Read<Value> {
        let mut members = Map::new();
        self.take("{");
        loop {
            self.blanks()?;
            if self.take("}") {
                return Ok(Value::Object(members));
            }
            let key = self.key()?;
            self.expect(":")?;
            match self.value(depth + 1)? {
                Some(value) => members.insert(key, value),
                None => members.remove(&key),
            };
            self.end_of_element('}')?;
        }
    }

    fn list(&mut self, depth: usize) -> Read<Value> {
        let mut elements = Vec::new();
        self.take("[");
        loop {
            self.blanks()?;
            if self.take("]") {
                return Ok(Value::Array(elements));
            }
            elements.push(self.value(depth + 1)?.unwrap_or_default());
            self.end_of_element(']')?;
        }
    }

    /// A comma, or what closes the object or list, which stays.
    fn end_of_element(&mut self, close: char) -> Read<()> {
        self.blanks()?;
        if self.take(",") || self.rest.starts_with(close) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("neither , nor {close} behind a value")))
        }
    }

    fn key(&mut self) -> Read<String> {
        let key = match self.rest.chars().next() {
            Some('\'' | '"') => self.string()?,
            Some('0'..='9') => self.number()?.to_string(),
            _ => self.identifier().to_owned(),
        };
        match key.as_str() {
            "" => Err(self.unexpected("no key where one belongs")),
            "__proto__" => Err("__proto__ is no ordinary key".into()),
            _ => Ok(key),
        }
    }

    /// Letters, digits, `_` and `$`, and whatever is beyond ASCII and no blank; may be empty.
    fn identifier(&mut self) -> &'a str {
        let ends = |c: char| !is_of_a_word(c);
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn number(&mut self) -> Read<Value> {
        let before = self.rest;
        let negative = self.take("-");
        if !negative {
            self.take("+");
        }
        let digits = self.rest;
        let end = |(at, c): (usize, char)| {
            let sign =
                matches!(c, '+' | '-') && digits[..at].ends_with(['e', 'E']) && !digits.starts_with("0x");
            !(is_of_a_word(c) || c == '.' || sign)
        };
        let length = digits.char_indices().find(|(at, c)| end((*at, *c))).map_or(digits.len(), |(at, _)| at);
        let (digits, rest) = digits.split_at(length);
        let value = number(digits, negative);
        self.rest = if value.is_some() { rest } else { before };
        value.map(Value::Number).ok_or_else(|| self.unexpected("no number"))
    }

    fn string(&mut self) -> Read<String> {
        let begin = self.rest;
        let mut chars = self.rest.chars();
        let quote = chars.next();
        let mut units: Vec<u16> = Vec::new();
        let mut value = String::new();
        loop {
            let next = match chars.next() {
                Some('\n' | '\r') | None => {
                    self.rest = begin;
                    return Err("a string without its second quote".into());
                }
                Some('\\') => {
                    self.rest = chars.as_str();
                    let escaped = self.escape()?;
                    chars = self.rest.chars();
                    escaped
                }
                next if next == quote => break,
                Some(next) => Escaped::Char(next),
            };
            match next {
                Escaped::Unit(unit) => units.push(unit),
                Escaped::Char(_) | Escaped::Nothing => {
                    flush(&mut units, &mut value)?;
                    if let Escaped::Char(c) = next {
                        value.push(c);
                    }
                }
            }
        }
        flush(&mut units, &mut value)?;
        self.rest = chars.as_str();
        Ok(value)
    }

    /// What a backslash and the characters behind it stand for.
    fn escape(&mut self) -> Read<Escaped> {
        let mut chars = self.rest.chars();
        let escape = chars.next().ok_or("a string without its second quote")?;
        self.rest = chars.as_str();
        Ok(Escaped::Char(match escape {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '0' if !self.rest.starts_with(|c: char| c.is_ascii_digit()) => '\0',
            '0'..='9' => return Err("an octal escape".into()),
            '\r' => {
                self.take("\n");
                return Ok(Escaped::Nothing);
            }
            '\n' => return Ok(Escaped::Nothing),
            'x' => return self.hex(2).map(Escaped::Unit),
            'u' if self.take("{") => {
                let (digits, rest) = self.rest.split_once('}').ok_or("\\u{ without its }")?;
                let code = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
                self.rest = rest;
                code.ok_or_else(|| format!("\\u{{{digits}}} is no character"))?
            }
            'u' => return self.hex(4).map(Escaped::Unit),
            itself => itself,
        }))
    }

    fn hex(&mut self, count: usize) -> Read<u16> {
        let digits = self.rest.get(..count).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        self.rest = if unit.is_some() { &self.rest[count..] } else { self.rest };
        unit.ok_or_else(|| format!("no {count} hexadecimal digits behind a backslash"))
    }
}

/// The tables that tell letters beyond ASCII are large, and a key of some other sign does no harm.
fn is_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !(c.is_ascii() || c.is_whitespace())
}

/// A piece of a string.
enum Escaped {
    Char(char),
    /// Of UTF-16; two may make a character.
    Unit(u16),
    Nothing,
}

fn flush(units: &mut Vec<u16>, value: &mut String) -> Read<()> {
    let text = String::from_utf16(units).map_err(|_| "half a character in \\u escapes")?;
    value.push_str(&text);
    units.clear();
    Ok(())
}

/// A number of JavaScript without its sign: decimal or hexadecimal.
fn number(digits: &str, negative: bool) -> Option<Number> {
    let signed = |size: u64| match (negative, i64::try_from(size)) {
        (false, _) => Some(Number::from(size)),
        (true, Ok(size)) => Some(Number::from(-size)),
        (true, Err(_)) => None,
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let plain = hex.bytes().all(|b| b.is_ascii_hexdigit());
        return u64::from_str_radix(hex, 16).ok().filter(|_| plain).and_then(signed);
    }
    let known = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-');
    // 010 is 8 to some and 10 to others.
    let octal = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    if octal || !digits.bytes().all(known) || !digits.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if let Some(number) = digits.parse().ok().and_then(signed) {
        return Some(number);
    }
    let real: f64 = digits.parse().ok()?;
    Number::from_f64(if negative { -real } else { real })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn exported(literal: &str) -> Result<Value, LiteralError> {
        parse(&format!("module.exports = {literal}"))
    }

    #[test]
    fn the_definitions_of_chariotds_documentation_are_read() {
        let text = "\nmodule.exports = {\n  key: 'firmware',\n  outfile: '/config/firmware.rc',\n  outformat: 'SHELL',\n  \
                    informat: 'SHELL',\n  notifycmd: 'sv up firmware',\n}\n";
        let value = json!({
            "key": "firmware", "outfile": "/config/firmware.rc", "outformat": "SHELL", "informat": "SHELL",
            "notifycmd": "sv up firmware",
        });
        assert_eq!(parse(text), Ok(value));
    }

    #[test]
    fn literals_mean_what_they_mean_in_javascript() {
        for (literal, value) in [
            ("{}", json!({})),
            (
                "{a:1,'b c':-2.5,\"d\":[true,false,null,],}",
                json!({"a": 1, "b c": -2.5, "d": [true, false, null]}),
            ),
            ("{ // one\n /* two\n three */ $a_1 /**/ : /**/ 0x1F }; // end", json!({"$a_1": 31})),
            (
                "{1:'a', é:'b', a:undefined, true: 1, c: [undefined]}\n;;\n",
                json!({"1": "a", "é": "b", "true": 1, "c": [null]}),
            ),
            ("{a:1, a:2, b:3, b:undefined}", json!({"a": 2})),
            (r#"{a:'\'\"\\\n\x41\u0042\u{1F600}\ud83d\ude00\q\0'}"#, json!({"a": "'\"\\\nAB😀😀q\0"})),
            ("{a:'one\\\ntwo\\\r\nthree'}", json!({"a": "onetwothree"})),
            (
                "{a:.5,b:5.,c:+1,d:1e3,e:1E-3,f:0,g:-0x10,h:0.5}",
                json!({"a": 0.5, "b": 5.0, "c": 1, "d": 1e3, "e": 1e-3, "f": 0, "g": -16, "h": 0.5}),
            ),
            ("{a:{b:{c:[[1],{d:2}]}}}", json!({"a": {"b": {"c": [[1], {"d": 2}]}}})),
        ] {
            assert_eq!(exported(literal), Ok(value), "{literal}");
        }
        assert!(parse("\u{feff}'use strict';\nmodule . exports={}").is_ok());
    }

    #[test]
    fn what_computes_something_is_refused_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("const x = 1;\nmodule.exports = {}", 1),
            ("module.exports = make()", 1),
            ("module.exports = [1]", 1),
            ("module.exports = {\n  validate(cfg) { return cfg; },\n}", 2),
            ("module.exports = {\n  a: 1,\n  validate: function (c) { return c; },\n}", 3),
            ("module.exports = {\n  validate: cfg => cfg }", 2),
            ("module.exports = {\n  a: process.env.HOME }", 2),
            ("module.exports = {\n  a: 'x' + 'y' }", 2),
            ("module.exports = {\n\n  a: `x` }", 3),
            ("module.exports = { a }", 1),
            ("module.exports = { ...a }", 1),
            ("module.exports = { ['a']: 1 }", 1),
            ("module.exports = { get a() {} }", 1),
            ("module.exports = { __proto__: {} }", 1),
            ("module.exports = { a: 1 }\nmodule.exports.b = 2", 2),
            ("module.exports = { a: 1 ", 1),
            ("module.exports = { a: 'x\n' }", 1),
            ("module.exports = { a: '\\u12' }", 1),
            ("module.exports = { a: '\\ud83d' }", 1),
            ("module.exports = { a: 010 }", 1),
            ("module.exports = { a: 1_000 }", 1),
            ("module.exports = { a: 10n }", 1),
            ("module.exports = { a: 1e999 }", 1),
            ("module.exports = { a: -Infinity }", 1),
            ("module.exports = { a: [1,,2] }", 1),
            ("module.exports = { /* a", 1),
            ("module.exports == {}", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.to_string().contains("otandem-js"), "{error}");
        }
        assert!(exported(&format!("{{a:{}{}}}", "[".repeat(100_000), "]".repeat(100_000))).is_err());
    }

    fn values() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
        ];
        scalar.prop_recursive(4, 16, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
            let object = prop::collection::btree_map(".{1,4}", inner, 0..4);
            prop_oneof![list, object.prop_map(|members| Value::Object(members.into_iter().collect()))]
        })
    }

    proptest! {
        /// JSON is JavaScript.
        #[test]
        fn every_object_of_json_is_a_literal(members in prop::collection::btree_map(".{1,4}", values(), 0..4)) {
            let value = Value::Object(members.into_iter().collect());
            prop_assert_eq!(exported(&value.to_string()), Ok(value.clone()));
            prop_assert_eq!(exported(&format!("{value:#}")), Ok(value));
        }

        #[test]
        fn no_text_ends_the_reader(text in "[{}\\[\\]a:,'\"\\\\ux0-9./*\n;é+-]{0,40}", any in any::<String>()) {
            let _ = exported(&text);
            let _ = exported(&format!("{{{text}}}"));
            let _ = parse(&any);
        }
    }
}
