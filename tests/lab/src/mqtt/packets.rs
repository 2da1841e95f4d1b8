//! What the broker makes of each packet of an open session: limits, policy, services.

use bytes::{Bytes, BytesMut};
use mqttbytes::QoS;
use mqttbytes::v4::{Packet, PubAck, Publish, SubAck, Subscribe, SubscribeReasonCode, UnsubAck, Unsubscribe};

use super::topics;
use crate::faults::{MqttFault, Operation};
use crate::jobs::device::Answer;
use crate::jobs::request::{Body, Code, Rejection, Topic, parse_topic};
use crate::policy::Action;
use crate::record::Direction;
use crate::world::{Closing, Inbound, Link, To, World, sign_url};

impl World {
    /// Serves a packet of an open session; `Err` closes it.
    pub fn packet(&mut self, link: &Link, packet: Packet) -> Result<(), Closing> {
        if self.session(link).is_none() {
            return Err(Closing::ByLab);
        }
        match packet {
            Packet::Publish(publish) => self.publish(link, publish),
            Packet::Subscribe(subscribe) => self.subscribe(link, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(link, &unsubscribe),
            Packet::PingReq => {
                self.reply(link, &[0xD0, 0]);
                Ok(())
            }
            Packet::PubAck(_) => Ok(()),
            other => Err(Closing::Offence(format!("unexpected packet {}", name_of(&other)))),
        }
    }

    fn reply(&mut self, link: &Link, bytes: &[u8]) {
        if let Some(session) = self.session(link) {
            let _ = session.outbox.send(bytes.to_vec());
        }
    }

    fn subscribe(&mut self, link: &Link, subscribe: Subscribe) -> Result<(), Closing> {
        let offence = |text: String| Err(Closing::Offence(text));
        let asked = subscribe.filters.len();
        if asked == 0 || asked > self.limits.filters_per_subscribe {
            return offence(format!("{asked} filters in one SUBSCRIBE"));
        }
        for filter in &subscribe.filters {
            self.check_topic(&filter.path, topics::is_filter(&filter.path))?;
            if filter.qos == QoS::ExactlyOnce {
                return offence(format!("QoS 2 for {}", filter.path));
            }
            if !self.policy.permits(&link.thing, Action::Subscribe, &filter.path) {
                return Err(Closing::Violation(format!("subscribe {}", filter.path)));
            }
        }
        let most = self.limits.subscriptions;
        let Some(session) = self.session(link) else { return Err(Closing::ByLab) };
        for filter in &subscribe.filters {
            session.subscriptions.retain(|(path, _)| *path != filter.path);
            session.subscriptions.push((filter.path.clone(), filter.qos));
        }
        if session.subscriptions.len() > most {
            return offence(format!("{} subscriptions", session.subscriptions.len()));
        }
        let granted = subscribe.filters.iter().map(|f| SubscribeReasonCode::Success(f.qos)).collect();
        let mut bytes = BytesMut::new();
        let _ = SubAck::new(subscribe.pkid, granted).write(&mut bytes);
        let _ = session.outbox.send(bytes.to_vec());
        for filter in &subscribe.filters {
            self.event(&link.thing, "subscribe", &filter.path);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, link: &Link, unsubscribe: &Unsubscribe) -> Result<(), Closing> {
        let Some(session) = self.session(link) else { return Err(Closing::ByLab) };
        session.subscriptions.retain(|(path, _)| !unsubscribe.topics.contains(path));
        let mut bytes = BytesMut::new();
        let _ = UnsubAck::new(unsubscribe.pkid).write(&mut bytes);
        self.reply(link, &bytes);
        Ok(())
    }

    fn check_topic(&self, topic: &str, well_formed: bool) -> Result<(), Closing> {
        let broken = if !well_formed {
            "malformed topic"
        } else if topic.len() > self.limits.topic {
            "topic too long"
        } else if topics::counted_slashes(topic) > self.limits.slashes {
            "too many topic levels"
        } else {
            return Ok(());
        };
        Err(Closing::Offence(format!("{broken}: {}", topic.chars().take(300).collect::<String>())))
    }

    fn publish(&mut self, link: &Link, publish: Publish) -> Result<(), Closing> {
        let Publish { topic, payload, qos, pkid, .. } = publish;
        self.check_topic(&topic, topics::is_topic(&topic))?;
        if qos == QoS::ExactlyOnce {
            return Err(Closing::Offence(format!("QoS 2 on {topic}")));
        }
        if payload.len() > self.limits.payload {
            return Err(Closing::Offence(format!("payload of {} bytes on {topic}", payload.len())));
        }
        if !self.policy.permits(&link.thing, Action::Publish, &topic) {
            return Err(Closing::Violation(format!("publish {topic}")));
        }
        let now = self.clock.now();
        self.record.message(now, Direction::In, &link.thing, &topic, payload.clone());
        let request = parse_topic(&topic).map(|(thing, request)| (thing.to_owned(), request));
        let faults = self.faults_of(link, request.as_ref());
        if faults.iter().any(|f| matches!(f, MqttFault::KickBefore(_))) {
            return Err(Closing::ByLab);
        }
        if qos == QoS::AtLeastOnce && !faults.iter().any(|f| matches!(f, MqttFault::DropPuback(_))) {
            let mut bytes = BytesMut::new();
            let _ = PubAck::new(pkid).write(&mut bytes);
            self.reply(link, &bytes);
        }
        let in_rate = self.take_allowance(link);
        match request {
            Some((thing, request)) => {
                self.serve_jobs(link, &thing, &request, &topic, &payload, &faults, in_rate)?
            }
            None if in_rate => self.serve_others(link, topic, payload),
            None => self.record.counters.throttled += 1,
        }
        self.push_notices();
        Ok(())
    }

    /// Takes one publish off the rate limit; false when there is none left.
    fn take_allowance(&mut self, link: &Link) -> bool {
        let rate = f64::from(self.limits.publishes_per_second);
        let Some(session) = self.session(link) else { return false };
        let now = std::time::Instant::now();
        let earned = now.duration_since(session.reckoned).as_secs_f64() * rate;
        session.allowance = (session.allowance + earned).min(rate);
        session.reckoned = now;
        let in_rate = session.allowance >= 1.0;
        if in_rate {
            session.allowance -= 1.0;
        }
        in_rate
    }

    /// Faults of this request, counted down.
    fn faults_of(
        &mut self,
        link: &Link,
        request: Option<&(String, Result<Topic, Rejection>)>,
    ) -> Vec<MqttFault> {
        let Some((thing, Ok(topic))) = request else { return Vec::new() };
        let next = || self.jobs.pending(thing).first().map(|e| e.job.clone());
        let (operation, job) = match topic {
            Topic::StartNext => (Operation::StartNext, next()),
            Topic::Update(job) => (Operation::Update, Some(job.clone())),
            Topic::GetPending => (Operation::GetPending, None),
            Topic::Describe(job) => (Operation::Describe, job.clone().or_else(next)),
        };
        self.faults.mqtt(&link.thing, job.as_deref(), |fault| match fault {
            MqttFault::DropAnswer(op)
            | MqttFault::DropPuback(op)
            | MqttFault::Reject(op, _)
            | MqttFault::ReplaceAnswer(op, _)
            | MqttFault::KickBefore(op)
            | MqttFault::KickAfter(op) => *op == operation,
            _ => false,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one request with all that is known of it, used once")]
    fn serve_jobs(
        &mut self,
        link: &Link,
        thing: &str,
        request: &Result<Topic, Rejection>,
        topic: &str,
        payload: &Bytes,
        faults: &[MqttFault],
        in_rate: bool,
    ) -> Result<(), Closing> {
        let now = self.clock.now();
        let refused =
            faults.iter().find_map(|f| if let MqttFault::Reject(_, code) = f { Some(*code) } else { None });
        self.record.counters.throttled += u64::from(!in_rate);
        let answer = match refused.or((!in_rate).then_some(Code::RequestThrottled)) {
            Some(code) => {
                let token = Body::read(payload).ok().and_then(|body| body.token);
                Answer::rejected(Rejection::new(code, "not served"), token, now)
            }
            None => {
                let images = &mut self.images;
                self.jobs
                    .serve(thing, request, payload, now, &mut |url, life| sign_url(images, now, url, life))
            }
        };
        if faults.iter().any(|f| matches!(f, MqttFault::KickAfter(_))) {
            self.push_notices();
            return Err(Closing::ByLab);
        }
        if faults.iter().any(|f| matches!(f, MqttFault::DropAnswer(_))) {
            self.event(thing, "lost", &format!("{topic}/{} {}", answer.suffix, answer.payload));
            return Ok(());
        }
        let bytes = faults
            .iter()
            .find_map(|f| if let MqttFault::ReplaceAnswer(_, bytes) = f { Some(bytes.clone()) } else { None })
            .unwrap_or_else(|| Bytes::from(answer.payload.to_string()));
        self.answer(link, &format!("{topic}/{}", answer.suffix), bytes);
        Ok(())
    }

    fn serve_others(&mut self, link: &Link, topic: String, payload: Bytes) {
        let Link { client_id, thing, .. } = link.clone();
        let inbound = Inbound { thing, client_id, topic, payload, now: self.clock.now() };
        let hook = self.hooks.iter_mut().find(|(filter, _)| topics::matches(filter, &inbound.topic));
        match hook.map(|(_, hook)| hook(&inbound)) {
            Some(messages) => {
                for message in messages {
                    match message.to {
                        To::Requester => self.answer(link, &message.topic, message.payload),
                        To::Subscribers => self.push(&message.topic, &message.payload),
                    }
                }
            }
            // Reserved topics that nobody serves end here; the others are what a broker is for.
            None if inbound.topic.starts_with('$') => {}
            None => self.push(&inbound.topic, &inbound.payload),
        }
    }

    /// To the connection that asked, whether it is subscribed or not.
    fn answer(&mut self, link: &Link, topic: &str, payload: Bytes) {
        let qos = self.subscribed(&link.client_id, topic).unwrap_or(QoS::AtLeastOnce);
        self.deliver(&link.client_id, topic, payload, qos);
    }
}

fn name_of(packet: &Packet) -> &'static str {
    match packet {
        Packet::Connect(_) => "CONNECT",
        Packet::ConnAck(_) => "CONNACK",
        Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => "of QoS 2",
        _ => "of a server",
    }
}
