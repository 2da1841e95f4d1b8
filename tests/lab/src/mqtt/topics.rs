//! Topic names and filters.

/// Whether the text is a filter: `#` only as the last level, wildcards only as whole levels.
#[must_use]
pub fn is_filter(filter: &str) -> bool {
    let levels: Vec<_> = filter.split('/').collect();
    let good = |(index, level): (usize, &&str)| match *level {
        "#" => index + 1 == levels.len(),
        "+" => true,
        text => !text.contains(['#', '+', '\0']),
    };
    !filter.is_empty() && levels.iter().enumerate().all(good)
}

/// Whether the text is a topic name.
#[must_use]
pub fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['#', '+', '\0'])
}

/// Whether a message on `topic` goes to a subscription of `filter`. A wildcard in the first level does not match
/// topics that start with `$`.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// Slashes that count towards the limit: those after `$aws/things/<thing>/` are free.
#[must_use]
pub fn counted_slashes(topic: &str) -> usize {
    let slashes = topic.matches('/').count();
    if topic.starts_with("$aws/") { slashes.saturating_sub(3) } else { slashes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a", true),
            ("#", "$aws/things/t/jobs", false),
            ("+/things", "$aws/things", false),
            ("$aws/things/+/jobs/#", "$aws/things/t/jobs/notify", true),
            ("a", "a/b", false),
            ("a/b", "a", false),
            ("a/+", "a", false),
            ("a/+", "a/", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn malformed_filters_and_topics_are_told_apart() {
        assert!(is_filter("$aws/things/t/jobs/+/update/accepted") && is_filter("#") && is_filter("a/#"));
        assert!(!is_filter("") && !is_filter("a/#/b") && !is_filter("a+/b") && !is_filter("a#"));
        assert!(is_topic("a/b") && !is_topic("a/+") && !is_topic(""));
    }
}
