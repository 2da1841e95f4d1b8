//! What the session does with [optional groups](super::groups): subscribes to them one by one, and says what it goes
//! on without.

use tokio::time::Instant;

use super::link::{Link, advice};
use super::{Gone, Inbound, Next, Session};
use crate::cloud::channel::in_short;

impl Session {
    /// Subscribes to the group that is due. Nothing else is on its way meanwhile: so what ends the connection then is known,
    /// and nobody else's message is lost.
    pub(super) async fn optional(&mut self, link: &mut Link) -> Result<(), Gone> {
        while let Some(up) = link.up_since.filter(|_| link.closing.is_none() && link.awaiting.is_none()) {
            if !link.complete && self.groups.complete() {
                link.complete = true;
                self.config.wallet.up();
                tracing::debug!("{}: {} subscriptions in all", self.config.name, link.granted.len());
            }
            let next = self.groups.next(up);
            let due = next.filter(|(_, due)| *due <= Instant::now());
            link.wait_for_group(due.is_some(), next.map(|(_, due)| due));
            let Some((group, _)) = due.filter(|_| link.is_quiet()) else { break };
            let topics = self.groups.topics(group).iter();
            let missing: Vec<_> = topics.filter(|topic| !link.granted.contains(topic)).cloned().collect();
            if !missing.is_empty() {
                link.trying = Some(group);
                link.send_subscribe(missing, self.config.connect_timeout);
                break;
            }
            self.granted(group).await?;
        }
        Ok(())
    }

    /// The broker has answered.
    pub(super) async fn tried(&mut self, link: &mut Link, group: usize, refused: bool) -> Result<(), Gone> {
        if !refused {
            return self.granted(group).await;
        }
        if self.blames(link, group) {
            let topics = in_short(self.groups.topics(group));
            link.close(format!("the broker refuses {topics}, which another certificate may"), Next::Later);
            return Ok(());
        }
        self.groups.refused(group, Instant::now());
        self.set_aside(group, "the broker refuses it").await
    }

    /// The connection ended while one was on its way.
    pub(super) async fn ended_at(&mut self, link: &mut Link, group: usize) -> Result<(), Gone> {
        if self.blames(link, group) || !self.groups.closed(group, Instant::now()) {
            return Ok(());
        }
        let how = if link.unanswered {
            "the broker does not answer it"
        } else {
            "the broker closes the connection at it"
        };
        self.set_aside(group, how).await
    }

    /// A certificate on trial must do everything that the old one can: what worked with that is not set aside.
    fn blames(&mut self, link: &mut Link, group: usize) -> bool {
        link.blamed = self.config.wallet.on_trial() && self.groups.doubt(group);
        link.blamed
    }

    async fn granted(&mut self, group: usize) -> Result<(), Gone> {
        let at_last = self.groups.granted(group);
        let topics = self.groups.topics(group).to_vec();
        if at_last {
            tracing::info!("{}: subscribed to {} at last", self.config.name, in_short(&topics));
        }
        self.tell(Inbound::Granted(topics)).await
    }

    async fn set_aside(&self, group: usize, how: &str) -> Result<(), Gone> {
        let topics = self.groups.topics(group);
        self.go_on_without(topics.to_vec(), format!("{how}; {}", advice(&common(topics)))).await
    }

    pub(super) async fn go_on_without(&self, topics: Vec<String>, why: String) -> Result<(), Gone> {
        tracing::error!("{}: goes on without {}: {why}", self.config.name, in_short(&topics));
        self.tell(Inbound::SetAside { topics, why }).await
    }
}

/// One filter that stands for all of a group in a policy: what they begin with, up to a slash.
fn common(topics: &[String]) -> String {
    let Some((first, others)) = topics.split_first() else { return String::new() };
    if others.is_empty() {
        return first.clone();
    }
    let shared = |topic: &String| first.bytes().zip(topic.bytes()).take_while(|(a, b)| a == b).count();
    let length = others.iter().map(shared).min().unwrap_or_default();
    let end = first.bytes().take(length).rposition(|byte| byte == b'/').map_or(0, |slash| slash + 1);
    format!("{}*", first.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_for_a_group_is_what_all_its_filters_begin_with() {
        let of = |topics: &[&str]| common(&topics.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["site/+/alarm"]), "site/+/alarm");
        assert_eq!(of(&["a/b/update/accepted", "a/b/update/rejected", "a/b/get"]), "a/b/*");
        assert_eq!(of(&["é/ü", "é/ö"]), "é/*");
        assert_eq!(of(&["a", "b"]), "*");
        assert_eq!(of(&[]), "");
    }
}
