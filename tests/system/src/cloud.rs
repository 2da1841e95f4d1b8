//! The cloud of one device in a test: jobs, what the device says about them, and what must hold at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use otandem_lab::{Counters, HttpFault, JobSpec, Lab, Position, Rule, Status};
use serde_json::Value;

/// A lab, and the device whose jobs are meant. It panics where something does not go as it must: it is for tests.
pub struct CloudSide {
    /// The cloud.
    pub lab: Lab,
    /// The device's name.
    pub thing: String,
    /// How long anything is waited for: only a failure takes this long.
    pub limit: Duration,
}

/// An image on the image server.
#[derive(Debug, Clone)]
pub struct Published {
    /// `bucket/key`.
    pub path: String,
    /// Of the bytes on the server.
    pub file_sha256: String,
    /// Number of bytes on the server.
    pub file_size: usize,
    /// A job document that installs it, complete.
    pub document: Value,
}

impl CloudSide {
    /// Creates a job for the device.
    pub fn job(&self, id: &str, document: &Value) {
        self.lab.create_job(&JobSpec::new(id, &self.thing, &document.to_string())).unwrap();
    }

    /// Lets the next download of this image stand still after `percent` of the file; the byte where it does.
    #[must_use]
    pub fn stall(&self, published: &Published, percent: usize) -> u64 {
        let at = (published.file_size * percent / 100) as u64;
        self.lab.fault(Rule::once(HttpFault::StallAt(Position::Object(at))).path(&published.path));
        at
    }

    /// Creates a job whose download stands still after `percent` of the file, and waits until it does.
    pub fn job_stalled(&self, id: &str, published: &Published, percent: usize) {
        let at = self.stall(published, percent);
        self.job(id, &published.document);
        self.wait_sent(&published.path, at);
    }

    /// Waits until the job has this status.
    pub fn wait_status(&self, id: &str, status: Status) {
        self.wait_lab(&format!("job {id} {}", status.name()), |lab| {
            (lab.status(&self.thing, id) == Some(status)).then_some(())
        });
    }

    /// Waits until the job is at its end, however it ended: the status and the reason.
    pub fn wait_end(&self, id: &str) -> (Status, String) {
        self.wait_lab(&format!("the end of job {id}"), |lab| {
            let execution = lab.jobs.execution(&self.thing, id)?;
            let details = execution.details.clone().unwrap_or_default();
            let reason = details.get("reason").cloned().unwrap_or_default();
            execution.status.is_terminal().then_some((execution.status, reason))
        })
    }

    /// Waits until the job has ended so, with this in the reason.
    pub fn expect_end(&self, id: &str, status: Status, reason: &str) {
        let (got, why) = self.wait_end(id);
        assert!(
            got == status && why.contains(reason),
            "job {id} ended {} ({why}), not {} ({reason})",
            got.name(),
            status.name()
        );
    }

    /// Creates a job and waits until it ended so.
    pub fn run(&self, id: &str, document: &Value, status: Status, reason: &str) {
        self.job(id, document);
        self.expect_end(id, status, reason);
    }

    /// What the device said last about the job.
    #[must_use]
    pub fn details(&self, id: &str) -> BTreeMap<String, String> {
        self.lab.inspect(|lab| {
            lab.jobs.execution(&self.thing, id).and_then(|e| e.details.clone()).unwrap_or_default()
        })
    }

    /// Waits until the device has connected so many times.
    pub fn wait_connected(&self, times: u64) {
        self.wait_lab(&format!("connection {times}"), |lab| {
            (lab.counters.connects.get(&self.thing).copied().unwrap_or_default() >= times).then_some(())
        });
    }

    /// Waits until the device is in a session with the broker, or in none.
    pub fn wait_session(&self, there: bool) {
        self.wait_lab(if there { "a session" } else { "the end of the session" }, |lab| {
            (lab.connected.contains(&self.thing) == there).then_some(())
        });
    }

    /// Waits until the server has sent so many bytes of an object.
    pub fn wait_sent(&self, path: &str, bytes: u64) {
        self.wait_lab(&format!("{bytes} bytes of {path}"), |lab| {
            (lab.counters.path(path).body_bytes >= bytes).then_some(())
        });
    }

    /// Waits for something in the lab.
    pub fn wait_lab<T>(
        &self,
        what: &str,
        condition: impl FnMut(&otandem_lab::Snapshot<'_>) -> Option<T>,
    ) -> T {
        match self.lab.wait_map(condition, self.limit) {
            Ok(found) => found,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// The lab's totals.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lab.inspect(|lab| lab.counters.clone())
    }

    /// What must hold at the end of every scenario: the device kept to its policy and to the broker's limits, and each
    /// execution had one end.
    pub fn assert_kept_the_rules(&self) {
        let counters = self.counters();
        assert_eq!(counters.violations, [], "the device left its policy");
        assert_eq!(counters.offences, [], "the device broke a limit of the broker");
        self.assert_one_end_for_each_job();
    }

    /// The last lines of what was said to and by the cloud.
    #[must_use]
    pub fn said(&self, lines: usize) -> String {
        let last = self.lab.inspect(|lab| {
            lab.transcript.iter().rev().take(lines).rev().map(ToString::to_string).collect::<Vec<_>>()
        });
        last.join("\n")
    }

    /// No execution got two different outcomes, and none went on after its outcome.
    fn assert_one_end_for_each_job(&self) {
        let mut ends: BTreeMap<(String, i64), Vec<String>> = BTreeMap::new();
        self.lab.inspect(|lab| {
            for entry in lab.messages(otandem_lab::Direction::In, "/update") {
                let job = entry.topic.rsplit('/').nth(1).unwrap_or_default().to_owned();
                let payload = entry.json();
                let key = (job, payload["executionNumber"].as_i64().unwrap_or_default());
                let status = payload["status"].as_str().unwrap_or_default().to_owned();
                let said = ends.entry(key).or_default();
                if said.last() != Some(&status) {
                    said.push(status);
                }
            }
        });
        for ((job, number), said) in ends {
            let end = said.iter().position(|status| status != "IN_PROGRESS");
            assert!(
                end.is_none_or(|end| end + 1 == said.len()),
                "job {job}, execution {number}: the device said {said:?}"
            );
        }
    }
}
