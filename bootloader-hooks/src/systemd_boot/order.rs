//! How the loader compares versions and matches patterns: the version order of the UAPI group, which goes through both
//! texts segment by segment, and file name patterns.

use std::cmp::Ordering;

/// The order of two versions; greater is newer. A `~` makes older than nothing at all; a `-`, `^` or `.` in front of a
/// segment older than none, in this order; digits are newer than letters, and longer is newer.
#[must_use]
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (relevant(a), relevant(b));
        if let Some(order) = separator(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return b.is_empty().cmp(&a.is_empty());
        }
        for mark in *b"-^." {
            if let Some(order) = separator(&mut a, &mut b, mark) {
                return order;
            }
        }
        let order = if starts_with_digit(a) || starts_with_digit(b) {
            numbers(segment(&mut a, u8::is_ascii_digit), segment(&mut b, u8::is_ascii_digit))
        } else {
            // Byte by byte, and a longer one is newer than its beginning: how slices compare.
            segment(&mut a, u8::is_ascii_alphabetic).cmp(segment(&mut b, u8::is_ascii_alphabetic))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Without leading bytes that no version is made of.
fn relevant(text: &[u8]) -> &[u8] {
    let counts = |b: &u8| b.is_ascii_alphanumeric() || b"~-^.".contains(b);
    let from = text.iter().position(counts).unwrap_or(text.len());
    &text[from..]
}

fn starts_with_digit(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit)
}

/// If only one text has the mark, it is the older one; if both have, it is taken away.
fn separator(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (a.first() == Some(&mark), b.first() == Some(&mark)) {
        (true, true) => {
            (*a, *b) = (&a[1..], &b[1..]);
            None
        }
        (false, false) => None,
        (older, _) => Some(if older { Ordering::Less } else { Ordering::Greater }),
    }
}

/// Takes the leading bytes that are of one kind.
fn segment<'a>(text: &mut &'a [u8], kind: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|b| !kind(b)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

/// Digits of any length. No digits at all are older than 0.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let digits = |text: &[u8]| {
        let zeros = text.iter().take_while(|b| **b == b'0').count();
        text[zeros..].to_vec()
    };
    let present = b.is_empty().cmp(&a.is_empty());
    let (a, b) = (digits(a), digits(b));
    present.then(a.len().cmp(&b.len())).then(a.cmp(&b))
}

/// Whether `text` fits a pattern with `*`, `?`, `[a-z]` and `\`. Both in lower case, as the loader has them.
#[must_use]
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Where the last `*` was, and how much of the text it has taken: enough to go back to.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() || p < pattern.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
            continue;
        }
        match text.get(t).and_then(|c| one(&pattern[p..], *c)) {
            Some(used) => (p, t) = (p + used, t + 1),
            None => match star {
                Some((at, taken)) if taken < text.len() => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    true
}

/// How much of the pattern stands for `c`; `None` if it does not.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '\\' => (pattern.get(1) == Some(&c)).then_some(2),
        '[' => {
            let end = 1 + pattern.iter().skip(1).position(|p| *p == ']')?;
            let set = &pattern[1..end];
            let range = set.windows(3).any(|w| w[1] == '-' && (w[0]..=w[2]).contains(&c));
            (range || set.contains(&c)).then_some(end + 1)
        }
        p => (p == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_ordered_as_the_specification_lists_them() {
        // The list of the version format specification, and what the back end relies on.
        let ascending = [
            "~bad",
            "~bad2",
            "",
            "v2.0",
            "0",
            "1",
            "2",
            "9",
            "10",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
            "18446744073709551616",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        for (a, b) in [("00123", "123"), ("123_a", "123a"), ("1", "1_")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, fits) in [
            ("otandem-*", "otandem-a+1.conf", true),
            ("otandem-*", "debian.conf", false),
            ("otandem-b*", "otandem-b+0-1.conf", true),
            ("otandem-?.conf", "otandem-b.conf", true),
            ("otandem-?.conf", "otandem-b+1.conf", false),
            ("*[a-b]*.conf", "xbx.conf", true),
            ("otandem-b+1.conf", "otandem-b+1.conf", true),
            ("otandem-b", "otandem-b.conf", false),
            ("*", "", true),
            ("", "", true),
            ("a*b*c", "a1b2b3c", true),
            ("[", "[", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_any_two_texts_is_the_reverse_of_the_other_way_round(a: String, b: String) {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert!(matches("*", &a));
            prop_assert!(!matches(&a, &b) || a.contains(['*', '?', '[', '\\']) || a == b);
        }
    }
}
