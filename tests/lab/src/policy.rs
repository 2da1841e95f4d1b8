//! IoT policies, as AWS evaluates them on a connection.
//!
//! A resource is text in which `*` stands for any characters (slashes too) and `?` for one;
//! `${iot:Connection.Thing.ThingName}` stands for the thing of the connection. A subscribe filter is compared as text:
//! its `+` is a character like any other, which the `*` of the policy happens to cover.

use serde_json::Value;

/// What a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// CONNECT; the resource is the client id.
    Connect,
    /// PUBLISH; the resource is the topic.
    Publish,
    /// SUBSCRIBE; the resource is the filter.
    Subscribe,
    /// A delivery to the device; the resource is the topic.
    Receive,
}

impl Action {
    const ALL: [Self; 4] = [Self::Connect, Self::Publish, Self::Subscribe, Self::Receive];

    /// Name in a policy document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "iot:Connect",
            Self::Publish => "iot:Publish",
            Self::Subscribe => "iot:Subscribe",
            Self::Receive => "iot:Receive",
        }
    }

    const fn resource(self) -> &'static str {
        match self {
            Self::Connect => ":client/",
            Self::Publish | Self::Receive => ":topic/",
            Self::Subscribe => ":topicfilter/",
        }
    }
}

/// The text is not a policy that the lab can enforce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a policy document: {0}; compare with the one in the documentation of AWS IoT")]
pub struct PolicyError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    allow: bool,
    action: Action,
    pattern: String,
}

/// What a device may do. Everything else closes its connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    statements: Vec<Statement>,
}

const THING: &str = "${iot:Connection.Thing.ThingName}";

/// Minimum permissions of the Jobs feature, as the manufacturer's documentation prints them.
const JOBS: &[(Action, &str)] = &[
    (Action::Connect, "${iot:Connection.Thing.ThingName}"),
    (Action::Publish, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next"),
    (Action::Publish, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update"),
    (Action::Subscribe, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/accepted"),
    (Action::Subscribe, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/rejected"),
    (Action::Subscribe, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/accepted"),
    (Action::Subscribe, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/rejected"),
    (Action::Subscribe, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/notify-next"),
    (Action::Receive, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/accepted"),
    (Action::Receive, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/rejected"),
    (Action::Receive, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/accepted"),
    (Action::Receive, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/rejected"),
    (Action::Receive, "$aws/things/${iot:Connection.Thing.ThingName}/jobs/notify-next"),
];

impl Policy {
    /// The minimum that the Jobs feature needs: start-next, update, their answers, and notify-next.
    #[must_use]
    pub fn jobs() -> Self {
        JOBS.iter().fold(Self::default(), |policy, (action, pattern)| policy.allow(*action, pattern))
    }

    /// Allows one more resource: a client id, topic or filter without the ARN before it.
    #[must_use]
    pub fn allow(mut self, action: Action, pattern: &str) -> Self {
        self.statements.push(Statement { allow: true, action, pattern: pattern.to_owned() });
        self
    }

    /// Adds a request topic below `$aws/things/<thing>/jobs/` and its two answers, such as `*/get`
    /// (DescribeJobExecution) or `get` (GetPendingJobExecutions).
    #[must_use]
    pub fn with_request(self, suffix: &str) -> Self {
        let topic = format!("$aws/things/{THING}/jobs/{suffix}");
        [format!("{topic}/accepted"), format!("{topic}/rejected")]
            .iter()
            .fold(self.allow(Action::Publish, &topic), |policy, answer| {
                policy.allow(Action::Subscribe, answer).allow(Action::Receive, answer)
            })
    }

    /// Adds a topic below `$aws/things/<thing>/jobs/` that the cloud pushes, such as `notify`.
    #[must_use]
    pub fn with_push(self, suffix: &str) -> Self {
        let topic = format!("$aws/things/{THING}/jobs/{suffix}");
        self.allow(Action::Subscribe, &topic).allow(Action::Receive, &topic)
    }

    /// Adds what a claim needs: any client id that ends in `-fp`, certificates with and without a request, and the
    /// registration by one template.
    #[must_use]
    pub fn with_provisioning(self, template: &str) -> Self {
        let register = format!("$aws/provisioning-templates/{template}/provision/json");
        let asked = ["$aws/certificates/create/json", "$aws/certificates/create-from-csr/json", &register];
        asked.iter().fold(self.allow(Action::Connect, "*-fp"), |policy, topic| {
            policy
                .allow(Action::Publish, topic)
                .allow(Action::Subscribe, &format!("{topic}/*"))
                .allow(Action::Receive, &format!("{topic}/*"))
        })
    }

    /// Reads a policy document. Region and account are not looked at; conditions are not known to the lab and are
    /// refused rather than ignored.
    ///
    /// # Errors
    /// [`PolicyError`] with what is wrong with the document.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        let document: Value = serde_json::from_str(json).map_err(|e| PolicyError(e.to_string()))?;
        let mut policy = Self::default();
        for statement in one_or_many(&document["Statement"]) {
            if statement.get("Condition").is_some() {
                return Err(PolicyError("conditions are not supported here".into()));
            }
            let allow = match statement["Effect"].as_str() {
                Some("Allow") => true,
                Some("Deny") => false,
                other => return Err(PolicyError(format!("Effect is {other:?}, not Allow or Deny"))),
            };
            for action in one_or_many(&statement["Action"]) {
                let known = Action::ALL.into_iter().find(|known| action.as_str() == Some(known.name()));
                let Some(action) = known else { continue };
                for resource in one_or_many(&statement["Resource"]) {
                    let text =
                        resource.as_str().ok_or_else(|| PolicyError("a resource is not text".into()))?;
                    let pattern = match text.split_once(action.resource()) {
                        Some((_, pattern)) => pattern,
                        None if text == "*" => "*",
                        None => continue,
                    };
                    policy.statements.push(Statement { allow, action, pattern: pattern.to_owned() });
                }
            }
        }
        if policy.statements.is_empty() {
            return Err(PolicyError("it allows nothing".into()));
        }
        Ok(policy)
    }

    /// Whether `thing` may do this: some statement allows it and none denies it.
    #[must_use]
    pub fn permits(&self, thing: &str, action: Action, resource: &str) -> bool {
        let mut allowed = false;
        for statement in self.statements.iter().filter(|s| s.action == action) {
            if wildcard(&statement.pattern.replace(THING, thing), resource) {
                if !statement.allow {
                    return false;
                }
                allowed = true;
            }
        }
        allowed
    }
}

fn one_or_many(value: &Value) -> &[Value] {
    match value {
        Value::Array(many) => many,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

/// `*` any characters, `?` one character. Linear in practice: only the last `*` is ever tried again.
fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            retry = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            p = star + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUBLISHED: &str = r#"{"Version":"2012-10-17","Statement":[
      {"Effect":"Allow","Action":"iot:Connect","Resource":"arn:aws:<region>:<accountId>:client/${iot:Connection.Thing.ThingName}"},
      {"Effect":"Allow","Action":"iot:Publish","Resource":[
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next",
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update"]},
      {"Effect":"Allow","Action":"iot:Subscribe","Resource":[
        "arn:aws:iot:<region>:<accountId>:topicfilter/$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/accepted",
        "arn:aws:iot:<region>:<accountId>:topicfilter/$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/rejected",
        "arn:aws:iot:<region>:<accountId>:topicfilter/$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/accepted",
        "arn:aws:iot:<region>:<accountId>:topicfilter/$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/rejected",
        "arn:aws:iot:<region>:<accountId>:topicfilter/$aws/things/${iot:Connection.Thing.ThingName}/jobs/notify-next"]},
      {"Effect":"Allow","Action":"iot:Receive","Resource":[
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/accepted",
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/start-next/rejected",
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/accepted",
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/*/update/rejected",
        "arn:aws:iot:<region>:<accountId>:topic/$aws/things/${iot:Connection.Thing.ThingName}/jobs/notify-next"]}]}"#;

    #[test]
    fn built_in_policy_is_the_published_one() {
        assert_eq!(Policy::parse(PUBLISHED).unwrap(), Policy::jobs());
    }

    #[test]
    fn star_covers_the_plus_of_a_filter_and_nothing_wider() {
        let policy = Policy::jobs();
        let may = |filter| policy.permits("dev", Action::Subscribe, filter);
        assert!(may("$aws/things/dev/jobs/+/update/accepted"));
        assert!(may("$aws/things/dev/jobs/j1/update/rejected"));
        assert!(!may("$aws/things/dev/jobs/#"));
        assert!(!may("$aws/things/dev/jobs/+/update/#"));
        assert!(!may("$aws/things/+/jobs/notify-next"));
        assert!(!may("$aws/things/dev/jobs/notify"));
        assert!(!may("$aws/things/other/jobs/notify-next"));
    }

    #[test]
    fn publish_is_for_start_next_and_update_only() {
        let policy = Policy::jobs();
        let may = |topic| policy.permits("dev", Action::Publish, topic);
        assert!(may("$aws/things/dev/jobs/start-next"));
        assert!(may("$aws/things/dev/jobs/j1/update"));
        assert!(!may("$aws/things/dev/jobs/j1/get"));
        assert!(!may("$aws/things/dev/jobs/get"));
        assert!(!may("$aws/things/other/jobs/start-next"));
        assert!(policy.clone().with_request("*/get").permits(
            "dev",
            Action::Publish,
            "$aws/things/dev/jobs/$next/get"
        ));
    }

    #[test]
    fn deny_wins_over_allow() {
        let json = r#"{"Statement":[{"Effect":"Allow","Action":["iot:Publish"],"Resource":"*"},
            {"Effect":"Deny","Action":"iot:Publish","Resource":"arn:aws:iot:r:1:topic/secret/*"}]}"#;
        let policy = Policy::parse(json).unwrap();
        assert!(policy.permits("t", Action::Publish, "open/x"));
        assert!(!policy.permits("t", Action::Publish, "secret/x"));
    }

    /// The obvious exponential matcher, as a model.
    fn model(p: &[char], t: &[char]) -> bool {
        match (p.first(), t.first()) {
            (None, None) => true,
            (Some('*'), _) => model(&p[1..], t) || (!t.is_empty() && model(p, &t[1..])),
            (Some('?'), Some(_)) => model(&p[1..], &t[1..]),
            (Some(a), Some(b)) if a == b => model(&p[1..], &t[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn wildcard_agrees_with_its_model(p in "[ab*?]{0,8}", t in "[ab]{0,8}") {
            let (pc, tc): (Vec<char>, Vec<char>) = (p.chars().collect(), t.chars().collect());
            prop_assert_eq!(wildcard(&p, &t), model(&pc, &tc));
        }

        #[test]
        fn any_text_as_policy_is_answered(text in "\\PC{0,200}") {
            let _ = Policy::parse(&text);
        }
    }
}
