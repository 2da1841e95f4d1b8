//! Optional subscriptions: which group is tried when. A broker that does not allow one closes the connection without a
//! word, so each is tried alone, and one that ends connections is set aside.
//!
//! Whoever shares the session pays for a try that fails with a connection. So what was granted before comes first, then
//! what was not, after a pause that is longer after each connection that was lost in this way; and of all that was set
//! aside one group at a time is tried again, after a minute to an hour.

use std::time::Duration;

use tokio::time::Instant;

use super::{MAX_FILTERS, MAX_SUBSCRIPTIONS};

/// A connection that ended at a try lets the next one wait no longer than this.
const PAUSE: Duration = Duration::from_secs(60);
/// Until one of what was set aside is tried again, first and at most; also between two times that somebody asks for it.
const ASIDE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// That is not how a connection begins.
const SETTLED: Duration = Duration::from_secs(10);

/// What the broker makes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not known.
    New,
    /// It was granted.
    Proven,
    /// A connection ended at it, which may have been chance; or it is to have another try.
    Suspect,
    /// It is not allowed.
    Aside,
}

struct Group {
    topics: Vec<String>,
    standing: Standing,
    /// On this connection.
    granted: bool,
    /// On some connection, and it was not set aside since.
    worked: bool,
}

/// See the module.
pub(super) struct Groups {
    all: Vec<Group>,
    /// After a connection ended at a try: from the next one's beginning to the next try, first and at most.
    pause: (Duration, Duration),
    /// Connections that ended at one since nothing was left to find out.
    ended: u32,
    /// Tries in vain of what was set aside.
    vain: u32,
    /// When the next of those is tried.
    retry: Option<Instant>,
    /// The first of them that may be next.
    turn: usize,
    asked: Option<Instant>,
}

/// A group that can never be had, and why.
pub(super) type Never = (Vec<String>, String);

impl Groups {
    /// `needed`: what is subscribed to beside them. `pause`: first and longest wait between two failures.
    pub(super) fn new(
        needed: &[String],
        optional: Vec<Vec<String>>,
        pause: (Duration, Duration),
    ) -> (Self, Vec<Never>) {
        let (mut all, mut never) = (vec![], vec![]);
        let mut subscribed = needed.to_vec();
        for topics in optional {
            let mut with = subscribed.clone();
            with.extend(topics.iter().filter(|topic| !subscribed.contains(topic)).cloned());
            if topics.len() > MAX_FILTERS || !topics.iter().all(|topic| rumqttc::valid_filter(topic)) {
                never.push((topics, "not a valid topic filter".to_owned()));
            } else if with.len() > MAX_SUBSCRIPTIONS {
                let why = format!(
                    "the broker allows {MAX_SUBSCRIPTIONS} subscriptions for a connection; take another one out of the \
                     configuration"
                );
                never.push((topics, why));
            } else {
                subscribed = with;
                all.push(Group { topics, standing: Standing::New, granted: false, worked: false });
            }
        }
        let pause = (pause.0, pause.1.min(PAUSE));
        (Self { all, pause, ended: 0, vain: 0, retry: None, turn: 0, asked: None }, never)
    }

    /// A new connection: nothing is subscribed.
    pub(super) fn begin(&mut self) {
        self.all.iter_mut().for_each(|group| group.granted = false);
    }

    /// All are granted but what was set aside.
    pub(super) fn complete(&self) -> bool {
        self.all.iter().all(|group| group.granted || group.standing == Standing::Aside)
    }

    /// It was not granted, and has another try in any case if it ever was.
    pub(super) fn doubt(&mut self, group: usize) -> bool {
        let worked = self.all[group].worked;
        if worked {
            self.all[group].standing = Standing::Suspect;
            self.ended = self.ended.saturating_add(1);
        }
        worked
    }

    pub(super) fn topics(&self, group: usize) -> &[String] {
        &self.all[group].topics
    }

    /// The next one to subscribe to, and not before when. `up`: since when the connection is.
    pub(super) fn next(&self, up: Instant) -> Option<(usize, Instant)> {
        let first = |standing| self.all.iter().position(|group| !group.granted && group.standing == standing);
        if let Some(group) = first(Standing::Proven) {
            return Some((group, up));
        }
        if let Some(group) = first(Standing::Suspect).or_else(|| first(Standing::New)) {
            let pause = match self.ended {
                0 => Duration::ZERO,
                n => doubled(self.pause, n - 1),
            };
            return Some((group, up + pause));
        }
        let turns = (self.turn..self.all.len()).chain(0..self.turn.min(self.all.len()));
        let group = turns.into_iter().find(|at| self.all[*at].standing == Standing::Aside)?;
        Some((group, self.retry?.max(up + SETTLED)))
    }

    /// The broker has granted it; `true`: not at the first try. What else was set aside is tried, too: the policy may have
    /// been changed.
    pub(super) fn granted(&mut self, group: usize) -> bool {
        let was = std::mem::replace(&mut self.all[group].standing, Standing::Proven);
        (self.all[group].granted, self.all[group].worked) = (true, true);
        if was == Standing::Aside {
            self.try_all();
        }
        self.look();
        matches!(was, Standing::Suspect | Standing::Aside)
    }

    /// The connection ended at it; `true`: it is set aside.
    pub(super) fn closed(&mut self, group: usize, now: Instant) -> bool {
        self.ended = self.ended.saturating_add(1);
        let again = matches!(self.all[group].standing, Standing::Suspect | Standing::Aside);
        if again {
            self.refused(group, now);
        } else {
            self.all[group].standing = Standing::Suspect;
        }
        again
    }

    /// It is set aside.
    pub(super) fn refused(&mut self, group: usize, now: Instant) {
        let was = std::mem::replace(&mut self.all[group].standing, Standing::Aside);
        self.vain = if was == Standing::Aside { self.vain.saturating_add(1) } else { 0 };
        self.all[group].worked = false;
        self.turn = group + 1;
        let aside = self.all.iter().filter(|group| group.standing == Standing::Aside).count();
        // Each has its turn within the longest time.
        let most = ASIDE.1 / u32::try_from(aside).unwrap_or(u32::MAX).max(1);
        self.retry = Some(now + doubled((ASIDE.0, most.max(ASIDE.0)), self.vain));
        self.look();
    }

    /// Somebody wants what was set aside to be tried now.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.asked.is_none_or(|before| now >= before + ASIDE.0) {
            self.asked = Some(now);
            self.try_all();
        }
    }

    fn try_all(&mut self) {
        for group in self.all.iter_mut().filter(|group| group.standing == Standing::Aside) {
            group.standing = Standing::Suspect;
        }
    }

    /// Whether there is something to find out.
    fn look(&mut self) {
        if !self.all.iter().any(|group| matches!(group.standing, Standing::New | Standing::Suspect)) {
            self.ended = 0;
        }
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn groups(count: usize) -> Groups {
        let optional = (0..count).map(|n| vec![format!("g/{n}")]).collect();
        let (groups, never) = Groups::new(&[], optional, (SECOND, 300 * SECOND));
        assert_eq!(never, []);
        groups
    }

    #[test]
    fn whatever_a_broker_allows_is_subscribed_to_and_each_group_that_it_forbids_costs_two_connections() {
        for allowed in 0..64_usize {
            let mut groups = groups(6);
            let (mut now, mut lost, mut up) = (Instant::now(), 0, Instant::now());
            while let Some((group, due)) = groups.next(up) {
                if groups.all[group].standing == Standing::Aside {
                    break;
                }
                now = now.max(due);
                if allowed & (1 << group) != 0 {
                    groups.granted(group);
                } else {
                    groups.closed(group, now);
                    groups.begin();
                    (lost, up) = (lost + 1, now + SECOND);
                }
            }
            let granted = (0..6).filter(|n| groups.all[*n].granted).map(|n| 1 << n).sum::<usize>();
            assert_eq!((granted, lost), (allowed, 2 * (6 - allowed.count_ones())));
        }
    }

    #[test]
    fn after_a_connection_was_lost_others_have_their_time_on_the_next_one_and_more_after_each() {
        let mut groups = groups(10);
        let up = Instant::now();
        groups.granted(0);
        let mut pauses = vec![];
        for _ in 0..9 {
            assert_eq!(groups.next(up).map(|(group, _)| group), Some(1 + pauses.len() / 2));
            groups.closed(1 + pauses.len() / 2, up);
            groups.begin();
            // What worked before is there at once.
            assert_eq!(groups.next(up), Some((0, up)));
            groups.granted(0);
            pauses.push((groups.next(up).unwrap().1 - up).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn what_is_set_aside_has_its_turn_after_a_minute_and_then_within_the_hour() {
        let mut groups = groups(3);
        let start = Instant::now();
        groups.granted(1);
        [0, 2].into_iter().for_each(|group| groups.refused(group, start));
        let (mut now, mut seen) = (start, vec![]);
        for _ in 0..8 {
            let (group, due) = groups.next(start).unwrap();
            seen.push((group, (due - now).as_secs() / 60));
            now = due;
            groups.closed(group, now);
            groups.begin();
            groups.granted(1);
        }
        assert_eq!(seen, [(0, 1), (2, 2), (0, 4), (2, 8), (0, 16), (2, 30), (0, 30), (2, 30)]);
        assert_eq!(groups.next(now + 7200 * SECOND), Some((0, now + 7200 * SECOND + SETTLED)));
        // One that works lets the other one be tried too.
        groups.granted(0);
        assert_eq!(groups.next(now), Some((2, now)));
        groups.refused(2, now);
        assert_eq!(groups.next(start), Some((2, now + ASIDE.0)));
    }

    #[test]
    fn who_asks_for_a_try_gets_one_at_once_and_not_more_than_one_in_a_minute() {
        let mut groups = groups(1);
        let start = Instant::now();
        groups.refused(0, start);
        groups.retry(start + SECOND);
        assert_eq!(groups.next(start), Some((0, start)));
        groups.refused(0, start + SECOND);
        groups.retry(start + 2 * SECOND);
        assert_eq!(groups.next(start), Some((0, start + SECOND + ASIDE.0)));
        groups.retry(start + SECOND + ASIDE.0);
        assert_eq!(groups.next(start), Some((0, start)));
    }

    #[test]
    fn what_is_needed_has_the_first_claim_on_the_limit_and_what_does_not_fit_is_left_out_whole() {
        let needed: Vec<_> = (0..45).map(|n| format!("n/{n}")).collect();
        let five = |name: &str| (0..5).map(|n| format!("{name}/{n}")).collect::<Vec<_>>();
        let mut four = five("b");
        four.truncate(4);
        let optional =
            vec![four, five("a"), vec!["n/0".into(), "b/0".into()], vec!["#/x".into()], vec!["c".into()]];
        let (groups, never) = Groups::new(&needed, optional, (SECOND, SECOND));
        assert_eq!(groups.all.iter().map(|group| group.topics.len()).collect::<Vec<_>>(), [4, 2, 1]);
        assert_eq!(never.len(), 2);
        assert!(never[0].0 == five("a") && never[0].1.contains("50 subscriptions"), "{never:?}");
        assert!(never[1].1.contains("filter"), "{never:?}");
    }
}
