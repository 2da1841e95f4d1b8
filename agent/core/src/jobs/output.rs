//! What a job's processes wrote, as it goes into statusDetails: the end of it, bounded, of characters that the
//! service takes.

use super::wire::{Details, MAX_DETAIL, is_invisible};
use crate::gather::Gather as _;

/// Members of a query string that are as good as a password for as long as they live. The first is the end of
/// `X-Amz-Signature=`, and what CloudFront and older signatures of S3 have.
const SECRETS: [&str; 3] = ["Signature=", "X-Amz-Security-Token=", "X-Amz-Credential="];
/// Bytes of each stream that are worth keeping while a job runs: a character has at most four.
pub const KEPT: usize = 8 * MAX_DETAIL;

/// The ends of both streams over all steps of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    stdout: String,
    stderr: String,
}

impl Output {
    /// Adds what one more step wrote.
    pub fn add(&mut self, stdout: &str, stderr: &str) {
        append(&mut self.stdout, stdout);
        append(&mut self.stderr, stderr);
    }

    /// The details of a job's end beside its reason; streams that are empty are left out.
    #[must_use]
    pub fn details(&self, include_stdout: bool) -> Details {
        let stdout = ("stdout", self.stdout.as_str());
        let stderr = ("stderr", self.stderr.as_str());
        let told = [Some(stderr), include_stdout.then_some(stdout)].into_iter().flatten();
        told.filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name.to_owned(), end_of(text))).gather()
    }
}

/// Details that were told in two parts, as one: the end of each stream.
#[must_use]
pub fn joined(mut earlier: Details, later: Details) -> Details {
    for (name, text) in later {
        let kept = earlier.entry(name).or_default();
        kept.push_str(&text);
        *kept = end_of(kept);
    }
    earlier
}

fn append(kept: &mut String, more: &str) {
    kept.push_str(more);
    let mut surplus = kept.len().saturating_sub(KEPT);
    while !kept.is_char_boundary(surplus) {
        surplus += 1;
    }
    kept.drain(..surplus);
}

/// The last [`MAX_DETAIL`] characters. Lines stay lines; what the service does not take becomes a blank.
fn end_of(text: &str) -> String {
    let text = without_secrets(text);
    let from = text.char_indices().rev().nth(MAX_DETAIL - 1).map_or(0, |(at, _)| at);
    let taken = |c: char| c == '\n' || !(c.is_control() || is_invisible(c));
    text[from..].chars().map(|c| if taken(c) { c } else { ' ' }).collect()
}

/// With what signs a URL masked.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let next = SECRETS.iter().filter_map(|s| rest.find(s).map(|at| at + s.len())).min();
        let Some(at) = next else { break };
        clean.push_str(&rest[..at]);
        clean.push_str("...");
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "%-_.~+/=".contains(c));
    }
    clean.push_str(rest);
    clean
}

/// As plain as can be, on one line: for a service that refused the other.
#[must_use]
pub fn plain(text: &str) -> String {
    let blank = |c: char| c.is_control() || c == ' ';
    text.chars()
        .map(|c| {
            if blank(c) {
                ' '
            } else if c.is_ascii_graphic() {
                c
            } else {
                '?'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stderr(text: &str) -> String {
        let mut output = Output::default();
        output.add("", text);
        output.details(false).remove("stderr").unwrap_or_default()
    }

    #[test]
    fn the_end_is_kept_with_its_lines() {
        assert_eq!(stderr("mv: cannot stat\n"), "mv: cannot stat\n");
        let long = format!("first\n{}\nlast\n", "x".repeat(3000));
        let kept = stderr(&long);
        assert_eq!(kept.chars().count(), 1024);
        assert!(kept.ends_with("x\nlast\n"));
        assert_eq!(stderr("a\tb\u{1b}[0m\0c\u{202e}d\r\n"), "a b [0m c d \n");
    }

    #[test]
    fn characters_are_counted_not_bytes() {
        let kept = stderr(&"ö€😀".repeat(1000));
        assert_eq!(kept.chars().count(), 1024);
        assert!(kept.ends_with("ö€😀"));
    }

    #[test]
    fn standard_output_is_told_only_where_it_is_asked_for_and_both_over_all_steps() {
        let mut output = Output::default();
        output.add("one\n", "");
        output.add("two\n", "err\n");
        assert!(!output.details(false).contains_key("stdout"));
        let details = output.details(true);
        assert_eq!((details["stdout"].as_str(), details["stderr"].as_str()), ("one\ntwo\n", "err\n"));
        assert!(Output::default().details(true).is_empty());
    }

    #[test]
    fn parts_of_a_job_are_told_as_one() {
        let part = |text: &str| Details::from([("stderr".to_owned(), text.to_owned())]);
        assert_eq!(joined(part("one\n"), part("two\n")), part("one\ntwo\n"));
        assert_eq!(joined(part("one\n"), Details::new()), part("one\n"));
        let long = joined(part(&"a".repeat(1024)), part("end"));
        assert_eq!(long["stderr"].chars().count(), 1024);
        assert!(long["stderr"].ends_with("aend"));
    }

    #[test]
    fn what_signs_a_url_is_masked() {
        let url = "GET https://b/k?X-Amz-Algorithm=A&X-Amz-Credential=AK%2F1&X-Amz-Signature=0123abcd failed";
        assert_eq!(
            stderr(url),
            "GET https://b/k?X-Amz-Algorithm=A&X-Amz-Credential=...&X-Amz-Signature=... failed"
        );
    }

    #[test]
    fn what_signs_a_url_of_cloudfront_is_masked() {
        let url = "https://d1.cloudfront.net/i?Expires=9&Signature=ab~-_c__&Key-Pair-Id=K";
        assert_eq!(stderr(url), "https://d1.cloudfront.net/i?Expires=9&Signature=...&Key-Pair-Id=K");
    }

    #[test]
    fn the_plain_form_is_one_line_of_ascii() {
        assert_eq!(plain("a\nb\u{e9}"), "a b?");
    }

    proptest! {
        #[test]
        fn the_service_takes_whatever_was_written(pieces in proptest::collection::vec(".{0,400}", 0..12)) {
            let mut output = Output::default();
            pieces.iter().for_each(|p| output.add(p, p));
            for text in output.details(true).values() {
                let n = text.chars().count();
                prop_assert!((1..=MAX_DETAIL).contains(&n));
                prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
            }
        }
    }
}
