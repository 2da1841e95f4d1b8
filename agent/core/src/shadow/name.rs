//! The topics of one shadow.

/// A shadow: the classic one of a thing, or a named one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The thing.
    pub thing: String,
    /// The name; `None` for the classic shadow.
    pub shadow: Option<String>,
}

/// What a message on a topic of a shadow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The shadow, as asked for.
    Got,
    /// It was asked for and is not given.
    NotGot,
    /// It was changed, by us or by others.
    Updated,
    /// It is not changed.
    NotUpdated,
    /// What is desired and not reported.
    Delta,
}

/// As the service allows it for a named shadow.
#[must_use]
pub fn is_shadow_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"$_:-".contains(&b))
}

const ANSWERS: [(&str, Answer); 5] = [
    ("/get/accepted", Answer::Got),
    ("/get/rejected", Answer::NotGot),
    ("/update/accepted", Answer::Updated),
    ("/update/rejected", Answer::NotUpdated),
    ("/update/delta", Answer::Delta),
];

impl Name {
    fn prefix(&self) -> String {
        let Self { thing, shadow } = self;
        match shadow {
            None => format!("$aws/things/{thing}/shadow"),
            Some(shadow) => format!("$aws/things/{thing}/shadow/name/{shadow}"),
        }
    }

    /// Topics to subscribe to.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let prefix = self.prefix();
        ANSWERS.iter().map(|(end, _)| format!("{prefix}{end}")).collect()
    }

    /// What a message on `topic` is; `None` if it is of another shadow.
    #[must_use]
    pub fn answer(&self, topic: &str) -> Option<Answer> {
        let end = topic.strip_prefix(&self.prefix())?;
        ANSWERS.iter().find(|(known, _)| *known == end).map(|(_, answer)| *answer)
    }

    /// Where the shadow is asked for.
    #[must_use]
    pub fn get(&self) -> String {
        self.prefix() + "/get"
    }

    /// Where it is changed.
    #[must_use]
    pub fn update(&self) -> String {
        self.prefix() + "/update"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_classic_and_named_shadows_are_told_apart() {
        let classic = Name { thing: "t".into(), shadow: None };
        let named = Name { shadow: Some("get".into()), ..classic.clone() };
        assert_eq!(classic.get(), "$aws/things/t/shadow/get");
        assert_eq!(named.update(), "$aws/things/t/shadow/name/get/update");
        for topic in classic.topics() {
            assert!(classic.answer(&topic).is_some() && named.answer(&topic).is_none(), "{topic}");
        }
        for topic in named.topics() {
            assert!(named.answer(&topic).is_some() && classic.answer(&topic).is_none(), "{topic}");
        }
        assert_eq!(classic.answer("$aws/things/t/shadow/update/delta"), Some(Answer::Delta));
        assert_eq!(classic.answer("$aws/things/t/shadow/update/documents"), None);
    }
}
