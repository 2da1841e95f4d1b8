//! What the head of an HTTP answer means for a download that wants the bytes from some offset on. Pure: a table.

use std::time::Duration;

use super::FetchError;

/// The longest that a server may make us wait by `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

/// What identifies the object that was begun, as far as the server told.
///
/// With an `ETag` (every object store has one), each later answer must carry the same one. Without, `Last-Modified`
/// and the size must stay as they were; where there is neither, nothing but the digests at the end can tell that the
/// object was replaced, and they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub total: Option<u64>,
    pub etag: Option<String>,
    pub modified: Option<String>,
}

/// The head of an answer, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub status: u16,
    pub length: Option<u64>,
    pub content_range: Option<String>,
    pub etag: Option<String>,
    pub modified: Option<String>,
    pub retry_after: Option<String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Read the body: leave out `skip` bytes, then up to `left` (unknown: to its end) are ours.
    Body { skip: u64, left: Option<u64>, object: Object },
    /// There is nothing after `from`.
    End(Object),
    /// The URL is no longer valid; ask for a fresh one.
    Renew(String),
    /// May pass; at least after the given time.
    Retry(String, Option<Duration>),
    /// Will not pass.
    Final(FetchError),
}

/// Judges the answer to a request for the bytes of `known` from `from` on.
pub(super) fn judge(from: u64, known: &Object, answer: &Answer) -> Verdict {
    match answer.status {
        200 => whole(from, known, answer),
        206 => part(from, known, answer),
        412 => changed("the server says that it is no longer the same object (412)"),
        416 => beyond(from, known, answer),
        // 400 is what object stores say to an expired session token.
        400 | 401 | 403 => Verdict::Renew(format!("the server answered {}", answer.status)),
        404 | 410 => Verdict::Final(FetchError::Failed {
            reason: format!("the server answered {}: there is no such file", answer.status),
        }),
        status => Verdict::Retry(format!("the server answered {status}"), retry_after(answer)),
    }
}

/// A whole object, though perhaps a part was asked for: servers may ignore `Range`.
fn whole(from: u64, known: &Object, answer: &Answer) -> Verdict {
    let object = match same(known, answer, answer.length) {
        Ok(object) => object,
        Err(verdict) => return verdict,
    };
    match object.total.map(|total| total.checked_sub(from)) {
        Some(None) => changed("the object is shorter than what was already read"),
        Some(Some(0)) => Verdict::End(object),
        Some(left) => Verdict::Body { skip: from, left, object },
        None => Verdict::Body { skip: from, left: None, object },
    }
}

fn part(from: u64, known: &Object, answer: &Answer) -> Verdict {
    let range = answer.content_range.as_deref().unwrap_or_default();
    let Some((first, last, total)) = parse_range(range) else {
        return nonsense("a part without a valid Content-Range");
    };
    if from == 0 {
        return nonsense("a part, though the whole was asked for");
    }
    if first != from || total.is_some_and(|t| last >= t) {
        return nonsense("another part than was asked for");
    }
    let span = last - first + 1;
    if answer.length.is_some_and(|l| l != span) {
        return nonsense("a part whose length is not that of its Content-Range");
    }
    match same(known, answer, total) {
        Ok(object) => Verdict::Body { skip: 0, left: Some(span), object },
        Err(verdict) => verdict,
    }
}

fn beyond(from: u64, known: &Object, answer: &Answer) -> Verdict {
    let total =
        answer.content_range.as_deref().and_then(|r| r.strip_prefix("bytes */")).and_then(|t| t.parse().ok());
    match total.or(known.total) {
        // Some servers send neither tag nor date with a 416, so only the size is compared.
        Some(total) if total == from => Verdict::End(Object { total: Some(total), ..known.clone() }),
        Some(total) if total < from => changed("the object is shorter than what was already read"),
        _ => nonsense("416 to a range inside the object"),
    }
}

/// The object, if it may be the one that was begun.
fn same(known: &Object, answer: &Answer, total: Option<u64>) -> Result<Object, Verdict> {
    if total.is_some_and(|t| i64::try_from(t).is_err()) {
        return Err(Verdict::Final(FetchError::Rejected {
            reason: "the server names a size above 2^63 bytes".into(),
        }));
    }
    if let Some(etag) = &known.etag {
        match &answer.etag {
            Some(now) if now == etag => {}
            Some(_) => return Err(changed("its ETag is another one")),
            None => return Err(changed("it no longer has an ETag")),
        }
    } else if let (Some(then), Some(now)) = (&known.modified, &answer.modified)
        && then != now
    {
        return Err(changed("it was modified"));
    }
    if let (Some(then), Some(now)) = (known.total, total)
        && then != now
    {
        return Err(changed(&format!("its size is {now} bytes, it was {then}")));
    }
    Ok(Object {
        total: total.or(known.total),
        etag: known.etag.clone().or_else(|| answer.etag.clone()),
        modified: known.modified.clone().or_else(|| answer.modified.clone()),
    })
}

fn changed(reason: &str) -> Verdict {
    Verdict::Final(FetchError::Changed { reason: reason.to_owned() })
}

/// Broken proxies and servers get well again, so this is tried again like an outage.
fn nonsense(what: &str) -> Verdict {
    Verdict::Retry(format!("the server sent {what}"), None)
}

/// Seconds alone: the form with a date needs a clock that is right.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let seconds = answer.retry_after.as_deref()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// `bytes FIRST-LAST/TOTAL`, `TOTAL` may be `*`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    // One below the top, so that the length of the range fits.
    (first <= last && last < u64::MAX).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(total: u64, etag: &str) -> Object {
        Object { total: Some(total), etag: Some(etag.into()), modified: None }
    }

    fn answer(status: u16, length: Option<u64>, range: &str, etag: &str) -> Answer {
        Answer {
            status,
            length,
            content_range: (!range.is_empty()).then(|| range.into()),
            etag: (!etag.is_empty()).then(|| etag.into()),
            ..Answer::default()
        }
    }

    fn is_changed(v: &Verdict) -> bool {
        matches!(v, Verdict::Final(FetchError::Changed { .. }))
    }

    #[test]
    fn a_part_goes_on_only_with_the_same_etag_and_exactly_where_it_was_asked_for() {
        let known = object(100, "\"a\"");
        let body = |left| Verdict::Body { skip: 0, left: Some(left), object: known.clone() };
        let part = |length, range, etag| judge(40, &known, &answer(206, length, range, etag));
        assert_eq!(part(Some(60), "bytes 40-99/100", "\"a\""), body(60));
        assert_eq!(part(None, "bytes 40-49/100", "\"a\""), body(10));
        assert_eq!(part(None, "bytes 40-99/*", "\"a\""), body(60));
        assert!(is_changed(&part(Some(60), "bytes 40-99/100", "\"b\"")));
        assert!(is_changed(&part(Some(60), "bytes 40-99/100", "")));
        assert!(is_changed(&part(Some(60), "bytes 40-99/101", "\"a\"")));
        for range in
            ["", "bytes 0-99/100", "bytes 41-99/100", "bytes 40-100/100", "bytes 40-39/100", "40-99/100", "x"]
        {
            assert!(matches!(part(None, range, "\"a\""), Verdict::Retry(..)), "{range}");
        }
        assert!(matches!(part(Some(59), "bytes 40-99/100", "\"a\""), Verdict::Retry(..)));
        let unasked = judge(0, &Object::default(), &answer(206, None, "bytes 0-99/100", "\"a\""));
        assert!(matches!(unasked, Verdict::Retry(..)));
    }

    #[test]
    fn a_server_that_ignores_the_range_is_read_from_the_start_and_skipped() {
        let known = object(100, "\"a\"");
        assert_eq!(
            judge(40, &known, &answer(200, Some(100), "", "\"a\"")),
            Verdict::Body { skip: 40, left: Some(60), object: known.clone() }
        );
        assert!(is_changed(&judge(40, &known, &answer(200, Some(100), "", "\"b\""))));
        assert!(is_changed(&judge(40, &Object::default(), &answer(200, Some(39), "", ""))));
    }

    #[test]
    fn without_an_etag_date_and_size_must_stay() {
        let known = Object { total: Some(10), etag: None, modified: Some("Mon".into()) };
        let with = |modified: &str| Answer {
            modified: Some(modified.into()),
            ..answer(206, None, "bytes 5-9/10", "")
        };
        assert!(matches!(judge(5, &known, &with("Mon")), Verdict::Body { .. }));
        assert!(is_changed(&judge(5, &known, &with("Tue"))));
        assert!(is_changed(&judge(5, &known, &answer(206, None, "bytes 5-9/11", ""))));
    }

    #[test]
    fn each_status_has_its_meaning() {
        let known = object(100, "\"a\"");
        let at = |status| judge(40, &known, &answer(status, None, "", ""));
        for status in [400, 401, 403] {
            assert!(matches!(at(status), Verdict::Renew(_)), "{status}");
        }
        for status in [404, 410] {
            assert!(matches!(at(status), Verdict::Final(FetchError::Failed { .. })), "{status}");
        }
        for status in [204, 304, 405, 408, 429, 500, 502, 503, 504, 999] {
            assert!(matches!(at(status), Verdict::Retry(..)), "{status}");
        }
        assert!(is_changed(&at(412)));
    }

    #[test]
    fn a_416_is_the_end_only_at_the_end() {
        let at = |from, range| judge(from, &object(100, "\"a\""), &answer(416, None, range, ""));
        assert_eq!(at(100, "bytes */100"), Verdict::End(object(100, "\"a\"")));
        assert_eq!(at(100, ""), Verdict::End(object(100, "\"a\"")));
        assert!(is_changed(&at(100, "bytes */99")));
        assert!(matches!(at(40, "bytes */100"), Verdict::Retry(..)));
    }

    #[test]
    fn absurd_sizes_are_rejected() {
        let huge = answer(200, Some(1 << 63), "", "");
        assert!(matches!(judge(0, &Object::default(), &huge), Verdict::Final(FetchError::Rejected { .. })));
    }

    #[test]
    fn a_server_may_ask_for_patience_but_not_for_days() {
        let wait = |v: &str| {
            let a = Answer { retry_after: Some(v.into()), ..answer(503, None, "", "") };
            match judge(0, &Object::default(), &a) {
                Verdict::Retry(_, after) => after.map(|d| d.as_secs()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("999999999"), Some(900));
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(from: u64, total: Option<u64>, status: u16, length: Option<u64>, range in "bytes [0-9*/-]{0,50}",
            etag in prop::option::of("[a-z\"]{0,4}"))
        {
            let known = Object { total, etag: etag.clone(), modified: None };
            let mut a = answer(status, length, &range, "");
            a.etag = etag;
            for status in [status, 200, 206, 416] {
                a.status = status;
                if let Verdict::Body { skip, left, .. } = judge(from, &known, &a) {
                    prop_assert!(skip == 0 || skip == from);
                    prop_assert!(left != Some(0));
                }
            }
        }
    }
}
