//! Topic filters: which messages a subscription means, by the rules of MQTT 3.1.1 and the limits of the broker.
//!
//! A level of a filter is a text, `+` (any one level) or, as the last one, `#` (any levels, none included). Topics that
//! begin with `$` are the broker's own: a wildcard in the first level does not mean them.

use crate::messages::{MAX_SLASHES, MAX_TOPIC};

/// What is in front of a topic of the cloud, and its slashes that count for nothing.
const RESERVED: (&str, usize) = ("$aws/", 3);

/// A valid topic filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

/// A text is no topic filter that the broker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// There is nothing.
    #[error("is empty: name a topic, with + for any one level and # for all that follow")]
    Empty,
    /// More bytes than the broker takes.
    #[error("has {0} bytes; the broker takes {MAX_TOPIC}")]
    Long(usize),
    /// More levels than the broker takes.
    #[error("has {0} slashes; the broker takes {MAX_SLASHES} (behind $aws/things/NAME/ where it begins so)")]
    Deep(usize),
    /// A character that no topic has.
    #[error("has a NUL character, which no topic has")]
    Nul,
    /// `a+/b`
    #[error("has a + beside other characters: it stands for a whole level, as in a/+/b")]
    Plus,
    /// `a#`, `a/#/b`
    #[error("has a # that is not the whole of the last level: it stands for all that follow, as in a/#")]
    Hash,
    /// `$share/GROUP/...`
    #[error(
        "is a shared subscription, which hands each message to one device of many: subscribe to the topic itself"
    )]
    Shared,
}

impl Filter {
    /// Takes a text as a filter.
    ///
    /// # Errors
    /// It is none, or more than the broker takes.
    pub fn new(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() {
            return Err(FilterError::Empty);
        }
        if text.len() > MAX_TOPIC {
            return Err(FilterError::Long(text.len()));
        }
        if text.contains('\0') {
            return Err(FilterError::Nul);
        }
        if text.starts_with("$share/") {
            return Err(FilterError::Shared);
        }
        let slashes = text.matches('/').count();
        let free = if text.starts_with(RESERVED.0) { RESERVED.1 } else { 0 };
        if slashes > MAX_SLASHES + free {
            return Err(FilterError::Deep(slashes));
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.len() > 1 && level.contains('+') {
                return Err(FilterError::Plus);
            }
            if level.contains('#') && (level.len() > 1 || levels.peek().is_some()) {
                return Err(FilterError::Hash);
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a message on this topic is meant.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        // A topic has no wildcards; what has some is no topic, and nothing of the broker's.
        !topic.is_empty() && !topic.contains(['+', '#']) && self.includes(topic)
    }

    /// Whether every message that `other` means is meant by this one too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.includes(&other.0)
    }

    /// `levels`: a topic, or a filter whose wildcards are to be included.
    fn includes(&self, levels: &str) -> bool {
        if levels.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut own, mut its) = (self.0.split('/'), levels.split('/'));
        loop {
            match (own.next(), its.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(level)) if level != "#" => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
    }
}

/// The filters that are to be subscribed so that everything that `all` mean comes, and as little as possible of it twice:
/// a broker may send a message once for each subscription that means it.
#[must_use]
pub fn widest<'a>(all: impl IntoIterator<Item = &'a Filter>) -> Vec<&'a Filter> {
    let mut widest: Vec<&Filter> = vec![];
    for filter in all {
        if !widest.iter().any(|other| other.covers(filter)) {
            widest.retain(|other| !filter.covers(other));
            widest.push(filter);
        }
    }
    widest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a_filter_means_what_the_standard_says() {
        for (text, topic, meant) in [
            ("a/b", "a/b", true),
            ("a/b", "a/B", false),
            ("a", "a/b", false),
            ("a/b", "a", false),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a//c", true),
            ("a/+/c", "a/b/d", false),
            ("a/+/c", "a/b/b/c", false),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("+", "a", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("a/#", "a", true),
            ("a/#", "a/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "/", true),
            ("a/+/#", "a", false),
            ("a/+/#", "a/b", true),
            ("#", "$aws/things/t/jobs/notify", false),
            ("+/things/#", "$aws/things/t", false),
            ("$aws/things/+/jobs/#", "$aws/things/t/jobs/notify", true),
            ("a/+", "a/$b", true),
            // No topics.
            ("#", "", false),
            ("a/+", "a/+", false),
            ("a/#", "a/#", false),
        ] {
            assert_eq!(filter(text).matches(topic), meant, "{text} {topic}");
        }
    }

    #[test]
    fn what_is_no_filter_or_too_much_for_the_broker_is_refused_with_the_reason() {
        for (text, why) in [
            ("", FilterError::Empty),
            ("a#", FilterError::Hash),
            ("#/a", FilterError::Hash),
            ("a/#/b", FilterError::Hash),
            ("##", FilterError::Hash),
            ("a+/b", FilterError::Plus),
            ("++", FilterError::Plus),
            ("a\0", FilterError::Nul),
            ("$share/g/a", FilterError::Shared),
            ("1/2/3/4/5/6/7/8/9", FilterError::Deep(8)),
            ("$aws/1/2/3/4/5/6/7/8/9/10/11", FilterError::Deep(11)),
        ] {
            assert_eq!(Filter::new(text), Err(why), "{text:?}");
        }
        assert_eq!(Filter::new(&"x".repeat(257)), Err(FilterError::Long(257)));
        for good in ["$aws/1/2/3/4/5/6/7/8/9/10", "1/2/3/4/5/6/7/8", "$share", "/", "+/+/#", "ä/ /x"] {
            assert_eq!(filter(good).as_str(), good);
        }
        assert!(filter(&"x".repeat(256)).matches(&"x".repeat(256)));
    }

    #[test]
    fn only_the_widest_of_filters_are_subscribed() {
        let shown = |texts: &[&str]| {
            let filters: Vec<_> = texts.iter().map(|t| filter(t)).collect();
            widest(&filters).into_iter().map(|f| f.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["a/b", "a/+", "a/#", "a"]), ["a/#"]);
        assert_eq!(shown(&["a/b", "a/b", "c"]), ["a/b", "c"]);
        // Each means something that the other does not.
        assert_eq!(shown(&["a/+", "+/b"]), ["a/+", "+/b"]);
        assert_eq!(shown(&["#", "$aws/x", "+"]), ["#", "$aws/x"]);
        assert_eq!(shown(&["a/+", "a/#"]), ["a/#"]);
        assert_eq!(shown(&["a/+/#", "a/#"]), ["a/#"]);
    }

    /// The rule in other words: the first level, and what comes of the rest.
    fn means(filter: &[&str], topic: &[&str]) -> bool {
        match filter.split_first() {
            None => topic.is_empty(),
            Some((&"#", _)) => true,
            Some((first, rest)) => topic
                .split_first()
                .is_some_and(|(level, others)| (*first == "+" || first == level) && means(rest, others)),
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", topic in ".{0,60}") {
            if let Ok(filter) = Filter::new(&text) {
                let _ = filter.matches(&topic);
            }
        }

        #[test]
        fn matching_follows_the_rule_level_by_level(text in "[ab+#/$]{1,9}", topic in "[ab/$]{1,9}") {
            let Ok(filter) = Filter::new(&text) else { return Ok(()) };
            let levels = |text| str::split(text, '/').collect::<Vec<_>>();
            let hidden = topic.starts_with('$') && text.starts_with(['+', '#']);
            prop_assert_eq!(filter.matches(&topic), !hidden && means(&levels(&text), &levels(&topic)));
        }

        #[test]
        fn what_a_covered_filter_means_is_meant_by_the_wider_one(
            wide in "[ab+#/$]{1,7}", narrow in "[ab+#/$]{1,7}", topic in "[ab/$]{1,7}",
        ) {
            let (Ok(wide), Ok(narrow)) = (Filter::new(&wide), Filter::new(&narrow)) else { return Ok(()) };
            prop_assert!(wide.covers(&wide));
            if wide.covers(&narrow) && narrow.matches(&topic) {
                prop_assert!(wide.matches(&topic));
            }
        }
    }
}
