//! Which file is sent when: in order, at a rate, a few at a time, again after a loss, given up when it is the file's
//! own fault.
//!
//! Being offline is no fault: what was on its way goes back into the queue. A file is at fault when the broker closes
//! the connection and this message alone was on its way, or when its acknowledgement stays away while later ones come. It is tried again after a pause in which all others go on; after the last try it is given up.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use super::queue::{Place, Queue};
use crate::time::Boottime;

/// Sent ahead of an even spacing.
const BURST: Duration = Duration::from_millis(100);
/// Until a message whose acknowledgement stays away, while later ones come, is sent again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
/// Until a connection without any acknowledgement is given up.
const JAM: Duration = Duration::from_secs(300);
/// First and longest pause after a failed try.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Files that are remembered to have failed; of more, all but these begin anew.
const MAX_TRIED: usize = 4096;

/// How fast, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Messages on their way at once, at least 1.
    pub concurrency: usize,
    /// Messages per second; 0 = no limit.
    pub rate: u32,
    /// Tries after the first.
    pub retries: u32,
}

/// What time, or the end of a session, decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// Not tried any more: id, and why.
    pub given_up: Vec<(u64, String)>,
    /// The broker acknowledges nothing any more: the session is to begin anew.
    pub reconnect: bool,
}

#[derive(Debug)]
struct Flight {
    id: u64,
    place: Place,
    sent: Boottime,
}

/// The decisions for one directory.
#[derive(Debug)]
pub struct Sender {
    pace: Pace,
    up: bool,
    queue: Queue,
    /// In the order of sending, which is that of their ids, and mostly that of their acknowledgements.
    flying: VecDeque<Flight>,
    /// Pausing, and until when: hardly ever more than a few.
    resting: Vec<(Boottime, Place)>,
    /// Failed tries: hardly ever more than a few.
    tries: Vec<(OsString, u32)>,
    /// When the next message is due by the rate.
    due: Boottime,
    last_acknowledged: Boottime,
    jam_told: Boottime,
    last_id: u64,
}

impl Sender {
    /// Nothing is known of the directory, and there is no session.
    #[must_use]
    pub const fn new(pace: Pace) -> Self {
        let never = Boottime(Duration::ZERO);
        Self {
            pace,
            up: false,
            queue: Queue::new(Queue::MOST),
            flying: VecDeque::new(),
            resting: Vec::new(),
            tries: Vec::new(),
            due: never,
            last_acknowledged: never,
            jam_told: never,
            last_id: 0,
        }
    }

    /// The session came or went. What was on its way is told by [`Sender::lost`].
    pub const fn session(&mut self, up: bool) {
        self.up = up;
    }

    // --- what is there ---------------------------------------------------------------------------------------------

    /// The directory is about to be read: each file comes as [`Sender::seen`].
    pub fn scan(&mut self) {
        self.queue.clear();
    }

    /// A file that a look at the whole directory shows.
    pub fn seen(&mut self, place: Place) {
        if self.is_new(&place) {
            self.queue.put(place);
        }
    }

    /// A file has come.
    pub fn came(&mut self, place: Place) {
        if self.is_new(&place) {
            self.queue.offer(place);
        }
    }

    /// A file may have come and was not seen.
    pub const fn missed(&mut self) {
        self.queue.missed();
    }

    fn is_new(&self, place: &Place) -> bool {
        let same = |other: &Place| other.name() == place.name();
        !self.flying.iter().any(|f| same(&f.place)) && !self.resting.iter().any(|(_, p)| same(p))
    }

    /// The directory is to be read: [`Sender::scan`].
    #[must_use]
    pub fn wants_scan(&self) -> bool {
        self.queue.wants_scan()
    }

    /// Files that are known to wait, on their way or not.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.flying.len() + self.resting.len()
    }

    // --- what is sent ----------------------------------------------------------------------------------------------

    /// A file to read and send now. It is this caller's until it is [`Sender::sent`], [`Sender::rest`]s, or is gone.
    pub fn next(&mut self, now: Boottime) -> Option<Place> {
        if !self.may_send() || now < self.due {
            return None;
        }
        for (_, place) in self.resting.extract_if(.., |(due, _)| *due <= now) {
            self.queue.put(place);
        }
        self.queue.take()
    }

    fn may_send(&self) -> bool {
        self.up && self.flying.len() < self.pace.concurrency
    }

    /// Whether a try of this file failed: nothing else should be on its way with it.
    #[must_use]
    pub fn is_suspect(&self, place: &Place) -> bool {
        self.tries.iter().any(|(name, _)| name == place.name())
    }

    /// The file is on its way, under the id that comes back.
    pub fn sent(&mut self, place: Place, now: Boottime) -> u64 {
        if let Some(gap) = Duration::from_secs(1).checked_div(self.pace.rate) {
            let earliest = Boottime(now.0.saturating_sub(BURST));
            self.due = self.due.max(earliest).after(gap);
        }
        self.last_id += 1;
        self.flying.push_back(Flight { id: self.last_id, place, sent: now });
        self.last_id
    }

    /// The file cannot be read for now.
    pub fn rest(&mut self, place: Place, now: Boottime) {
        self.resting.push((now.after(PAUSE.1), place));
    }

    /// The message has arrived: where its file stood, unless it was given up before.
    pub fn published(&mut self, id: u64, now: Boottime) -> Option<Place> {
        self.last_acknowledged = now;
        let place = self.land(id)?;
        self.forgive(place.name());
        Some(place)
    }

    fn land(&mut self, id: u64) -> Option<Place> {
        let at = self.flying.binary_search_by_key(&id, |f| f.id).ok()?;
        self.flying.remove(at).map(|f| f.place)
    }

    /// Forgets the failed tries of a file, and says how many there were.
    fn forgive(&mut self, name: &OsStr) -> u32 {
        let at = self.tries.iter().position(|(tried, _)| tried == name);
        at.map_or(0, |at| self.tries.swap_remove(at).1)
    }

    /// The message can never be sent.
    pub fn refused(&mut self, id: u64) {
        if let Some(place) = self.land(id) {
            self.forgive(place.name());
        }
    }

    /// The session ended without an acknowledgement of these. `suspect`: the one that the
    /// broker may have ended it for, and what is said about that. Nothing is sent before the next session.
    pub fn lost(&mut self, ids: &[u64], suspect: Option<&(u64, String)>, now: Boottime) -> Verdicts {
        self.up = false;
        let mut verdicts = Verdicts::default();
        for &id in ids {
            let Some(place) = self.land(id) else { continue };
            match suspect.filter(|(suspect, _)| *suspect == id) {
                Some((_, why)) => self.failed(id, place, why.clone(), now, &mut verdicts),
                None => self.queue.put(place),
            }
        }
        verdicts
    }

    fn failed(&mut self, id: u64, place: Place, why: String, now: Boottime, verdicts: &mut Verdicts) {
        let tries = self.forgive(place.name()) + 1;
        if tries > self.pace.retries {
            verdicts.given_up.push((id, format!("{why}; tried {tries} times")));
            return;
        }
        if self.tries.len() < MAX_TRIED {
            self.tries.push((place.name().to_owned(), tries));
        }
        let pause = PAUSE.0.saturating_mul(1 << (tries - 1).min(6)).min(PAUSE.1);
        self.resting.push((now.after(pause), place));
    }

    /// What time decides.
    pub fn tick(&mut self, now: Boottime) -> Verdicts {
        let mut verdicts = Verdicts::default();
        while let Some(&Flight { id, sent, .. }) = self.flying.front() {
            let waited = now.since(sent);
            if self.overtaken(sent) && waited >= ACKNOWLEDGED_WITHIN {
                let Some(place) = self.land(id) else { break };
                let seconds = ACKNOWLEDGED_WITHIN.as_secs();
                let why = format!("the broker did not acknowledge it within {seconds} s, but later ones");
                self.failed(id, place, why, now, &mut verdicts);
                continue;
            }
            if waited >= JAM && self.jam_told <= sent {
                self.jam_told = now;
                verdicts.reconnect = true;
            }
            break;
        }
        verdicts
    }

    /// Something sent at that time has no acknowledgement, and something else got one since.
    fn overtaken(&self, sent: Boottime) -> bool {
        self.last_acknowledged > sent
    }

    /// When something is to be done again without anything having happened.
    #[must_use]
    pub fn next_wake(&self) -> Option<Boottime> {
        let resting = self.resting.iter().map(|(due, _)| *due).min();
        let turn = if self.queue.is_empty() { resting } else { Some(self.due) };
        let turn = turn.or(resting).filter(|_| self.may_send());
        let answer = self.flying.front().and_then(|oldest| {
            let patience = if self.overtaken(oldest.sent) { ACKNOWLEDGED_WITHIN } else { JAM };
            (self.jam_told <= oldest.sent || patience == ACKNOWLEDGED_WITHIN)
                .then(|| oldest.sent.after(patience))
        });
        turn.into_iter().chain(answer).min()
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
