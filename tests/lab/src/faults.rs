//! Faults by rule: what goes wrong, where, and how many times.

use std::time::Duration;

use bytes::Bytes;

use crate::images::Scheme;
use crate::jobs::request::Code;

/// A request of the Jobs service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// start-next
    StartNext,
    /// update
    Update,
    /// get
    GetPending,
    /// `<job>/get`
    Describe,
}

/// A place in a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Byte of the object: a ranged answer that does not reach it is left alone.
    Object(u64),
    /// Byte of each body, wherever in the object it starts.
    Body(u64),
}

/// What goes wrong on the image server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFault {
    /// The connection is cut before this byte.
    CutAt(Position),
    /// Nothing comes from this byte on until [`crate::Lab::release_stalls`].
    StallAt(Position),
    /// This byte is inverted.
    WrongByteAt(Position),
    /// The connection is cut before this byte, and every URL signed until then is expired from then on.
    ExpireAt(Position),
    /// A signed URL is refused as expired once it is this old, by the lab's time.
    ExpireAfter(Duration),
    /// Every k-th request is answered with `status`.
    ErrorEvery {
        /// k; 1 = each.
        every: u64,
        /// Such as 500 or 503.
        status: u16,
    },
    /// Range is ignored: 200 and the whole object.
    IgnoreRange,
    /// If-Range is ignored: 206 of whatever the object is now.
    IgnoreIfRange,
    /// If-Match is ignored.
    IgnoreIfMatch,
    /// Content-Range of a 206 says that the body starts this many bytes later than asked.
    WrongContentRange(u64),
    /// At most so many bytes per second, in real time.
    Slow(u64),
    /// The body has so many bytes more than Content-Length of the object; sent without a length.
    OverLong(u64),
    /// The request is redirected so many times, the last hop being of this scheme.
    Redirect {
        /// Number of redirects.
        hops: u32,
        /// Where to.
        to: Scheme,
    },
}

/// What goes wrong on the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MqttFault {
    /// The request is served, its answer lost.
    DropAnswer(Operation),
    /// The request is served and answered, its PUBACK lost.
    DropPuback(Operation),
    /// The request is not served but refused: RequestThrottled, InternalError.
    Reject(Operation, Code),
    /// The request is served and answered with these bytes.
    ReplaceAnswer(Operation, Bytes),
    /// The connection is closed before the request is served.
    KickBefore(Operation),
    /// The connection is closed after the request was served, before the answer.
    KickAfter(Operation),
    /// notify-next comes twice.
    DuplicateNotifyNext,
    /// notify-next waits and is sent after the one that follows.
    HoldNotifyNext,
    /// notify-next is lost.
    DropNotifyNext,
    /// CONNECT is answered with this code (1 to 5) and the connection closed.
    RefuseConnect(u8),
    /// The connection is closed on CONNECT, without an answer.
    CloseConnect,
}

/// A fault of one of the two servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Image server.
    Http(HttpFault),
    /// Broker.
    Mqtt(MqttFault),
}

impl From<HttpFault> for Fault {
    fn from(fault: HttpFault) -> Self {
        Self::Http(fault)
    }
}

impl From<MqttFault> for Fault {
    fn from(fault: MqttFault) -> Self {
        Self::Mqtt(fault)
    }
}

/// A fault with its address and its count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    fault: Fault,
    path: Option<String>,
    thing: Option<String>,
    job: Option<String>,
    skip: u64,
    left: u64,
    seen: u64,
}

impl Rule {
    /// Happens once, to whoever comes first.
    #[must_use]
    pub fn once(fault: impl Into<Fault>) -> Self {
        Self { fault: fault.into(), path: None, thing: None, job: None, skip: 0, left: 1, seen: 0 }
    }

    /// Happens until it is cleared.
    #[must_use]
    pub fn always(fault: impl Into<Fault>) -> Self {
        Self::once(fault).times(u64::MAX)
    }

    /// How many times.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.left = n;
        self
    }

    /// Not the first `n` times.
    #[must_use]
    pub fn after(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Only this object of the image server, such as `bucket/key`.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(path.trim_start_matches('/').to_owned());
        self
    }

    /// Only this thing.
    #[must_use]
    pub fn thing(mut self, thing: &str) -> Self {
        self.thing = Some(thing.to_owned());
        self
    }

    /// Only this job.
    #[must_use]
    pub fn job(mut self, job: &str) -> Self {
        self.job = Some(job.to_owned());
        self
    }

    /// Counts the rule down; true if it happens now.
    fn fire(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.left != u64::MAX {
            self.left -= 1;
        }
        true
    }
}

fn fits(wanted: &Option<String>, got: Option<&str>) -> bool {
    wanted.as_deref().is_none_or(|wanted| got == Some(wanted))
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
}

impl Faults {
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// The broker's faults that happen now, among those that `applies` chooses.
    pub fn mqtt(
        &mut self,
        thing: &str,
        job: Option<&str>,
        applies: impl Fn(&MqttFault) -> bool,
    ) -> Vec<MqttFault> {
        let mut hit = Vec::new();
        for rule in &mut self.rules {
            let Fault::Mqtt(fault) = &rule.fault else { continue };
            let fault = fault.clone();
            if applies(&fault) && fits(&rule.thing, Some(thing)) && fits(&rule.job, job) && rule.fire() {
                hit.push(fault);
            }
        }
        hit
    }

    /// The image server's faults that happen now, among those that `applies` chooses.
    pub fn http(&mut self, path: &str, applies: impl Fn(&HttpFault) -> bool) -> Vec<HttpFault> {
        let mut hit = Vec::new();
        for rule in &mut self.rules {
            let Fault::Http(fault) = &rule.fault else { continue };
            let fault = fault.clone();
            if !fits(&rule.path, Some(path)) || !applies(&fault) {
                continue;
            }
            if let HttpFault::ErrorEvery { every, .. } = fault {
                rule.seen += 1;
                if !rule.seen.is_multiple_of(every.max(1)) {
                    continue;
                }
            }
            if rule.fire() {
                hit.push(fault);
            }
        }
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_skips_then_happens_its_number_of_times_where_it_is_addressed() {
        let mut faults = Faults::default();
        faults.add(Rule::once(HttpFault::IgnoreRange).path("/b/k").after(1).times(2));
        let mut hits = |path: &str| faults.http(path, |f| *f == HttpFault::IgnoreRange).len();
        assert_eq!([hits("b/k"), hits("other"), hits("b/k"), hits("b/k"), hits("b/k")], [0, 0, 1, 1, 0]);
    }

    #[test]
    fn every_third_request_is_every_third() {
        let mut faults = Faults::default();
        faults.add(Rule::always(HttpFault::ErrorEvery { every: 3, status: 500 }));
        let hits: Vec<_> = (0..6).map(|_| faults.http("x", |_| true).len()).collect();
        assert_eq!(hits, [0, 0, 1, 0, 0, 1]);
    }
}
