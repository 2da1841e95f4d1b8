//! Groups that the session can do without, and what the broker makes of them.

use super::*;

fn granted(topics: &[&str]) -> Inbound {
    Inbound::Granted(topics.iter().map(|topic| (*topic).to_owned()).collect())
}

impl Feature {
    async fn set_aside(&mut self) -> (Vec<String>, String) {
        match self.next().await {
            Inbound::SetAside { topics, why } => (topics, why),
            other => panic!("{other:?}"),
        }
    }
}

/// Closes the connection at `bad/2`.
fn forbidding() -> Rule {
    Rule { forbidden_topic: Some("bad/2"), ..Rule::default() }
}

const GROUPS: &[&[&str]] = &[&["good/1", "a"], &["bad/1", "bad/2"], &["good/2"]];

/// Up to when the bad group is set aside and all others are there.
async fn find_out(feature: &mut Feature) {
    for round in 0..3 {
        assert_eq!(feature.next().await, Inbound::Up);
        assert_eq!(feature.next().await, granted(GROUPS[0]), "what worked is first");
        match round {
            0 => {}
            1 => {
                let (topics, why) = feature.set_aside().await;
                assert_eq!(topics, GROUPS[1]);
                assert!(why.contains("closes the connection") && why.contains("topicfilter/bad/*"), "{why}");
            }
            _ => break,
        }
        let reason = feature.down().await;
        assert!(reason.contains("subscribing to bad/1"), "{reason}");
    }
    assert_eq!(feature.next().await, granted(GROUPS[2]));
}

#[tokio::test]
async fn a_group_that_ends_two_connections_is_set_aside_and_everything_else_goes_on() {
    let mut broker = Broker::start(vec![forbidding()]).await;
    let mut feature = Feature::start_with(broker.config.clone(), &["a"], GROUPS);
    find_out(&mut feature).await;
    feature.publish("job", "x");
    let mut subscribed = vec![];
    loop {
        match broker.saw().await {
            Seen::Subscribe(topics) => subscribed.push(topics.join(" ")),
            Seen::Publish(topic, _) => break assert_eq!(topic, "job"),
            _ => {}
        }
    }
    let (needed, good, bad) = ("a", "good/1", "bad/1 bad/2");
    assert_eq!(subscribed, [needed, good, bad, needed, good, bad, needed, good, "good/2"]);
}

#[tokio::test]
async fn what_was_set_aside_is_tried_on_the_running_session_when_somebody_asks_for_it() {
    let rule = forbidding();
    let broker = Broker::start(vec![rule.clone()]).await;
    let mut feature = Feature::start_with(broker.config.clone(), &["a"], GROUPS);
    find_out(&mut feature).await;
    rule.lifted.store(true, Ordering::SeqCst);
    feature.order(Outbound::Retry);
    assert_eq!(feature.next().await, granted(GROUPS[1]));
}

#[tokio::test]
async fn a_group_that_is_refused_costs_no_connection() {
    let rule = Rule { refuse_topic: Some("bad/2"), ..Rule::default() };
    let broker = Broker::start(vec![rule.clone()]).await;
    let mut feature = Feature::start_with(broker.config.clone(), &[], GROUPS);
    assert_eq!(feature.next().await, Inbound::Up);
    assert_eq!(feature.next().await, granted(GROUPS[0]));
    let (topics, why) = feature.set_aside().await;
    assert_eq!(topics, GROUPS[1]);
    assert!(why.contains("refuses"), "{why}");
    assert_eq!(feature.next().await, granted(GROUPS[2]));
    rule.lifted.store(true, Ordering::SeqCst);
    feature.order(Outbound::Retry);
    assert_eq!(feature.next().await, granted(GROUPS[1]));
}

#[tokio::test]
async fn nothing_else_is_sent_until_a_group_has_its_answer_and_one_that_never_gets_it_is_set_aside() {
    let ignoring = Rule { ignored_topic: Some("bad"), ..Rule::default() };
    let mut broker = Broker::start(vec![ignoring]).await;
    broker.config.connect_timeout = Duration::from_millis(200);
    let mut feature = Feature::start_with(broker.config.clone(), &["a"], &[&["bad"]]);
    for second in [false, true] {
        assert_eq!(feature.next().await, Inbound::Up);
        broker.saw_connect().await;
        assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
        assert_eq!(broker.saw().await, Seen::Subscribe(vec!["bad".into()]));
        feature.publish("lost", "x");
        assert_eq!(broker.saw().await, Seen::Closed);
        if second {
            let (_, why) = feature.set_aside().await;
            assert!(why.contains("does not answer"), "{why}");
        }
        let reason = feature.down().await;
        assert!(reason.contains("did not acknowledge"), "{reason}");
    }
    assert_eq!(feature.next().await, Inbound::Up);
    feature.publish("sent", "x");
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("sent".into(), "x".into()));
}

#[tokio::test]
async fn a_group_waits_until_everything_that_is_on_its_way_has_arrived() {
    let rule = Rule { refuse_topic: Some("bad"), no_puback: true, ..Rule::default() };
    let mut broker = Broker::start(vec![rule]).await;
    let mut feature = Feature::start_with(broker.config.clone(), &["a"], &[&["bad"]]);
    assert_eq!(feature.next().await, Inbound::Up);
    feature.set_aside().await;
    feature.publish("job", "1");
    feature.order(Outbound::Retry);
    feature.publish("job", "2");
    broker.saw_connect().await;
    for topic in ["a", "bad"] {
        assert_eq!(broker.saw().await, Seen::Subscribe(vec![topic.into()]));
    }
    for payload in ["1", "2"] {
        assert_eq!(broker.saw().await, Seen::Publish("job".into(), payload.into()));
    }
    drop(feature);
    assert_eq!(broker.saw().await, Seen::Closed);
}

#[tokio::test]
async fn groups_above_the_limit_are_set_aside_at_once() {
    let broker = Broker::start(vec![Rule::default()]).await;
    let needed: Vec<_> = (0..50).map(|n| format!("t/{n}")).collect();
    let needed: Vec<_> = needed.iter().map(String::as_str).collect();
    let mut feature = Feature::start_with(broker.config.clone(), &needed, &[&["more"], &["t/7"]]);
    let (topics, why) = feature.set_aside().await;
    assert_eq!(topics, ["more"]);
    assert!(why.contains("50 subscriptions"), "{why}");
    assert_eq!(feature.next().await, Inbound::Up);
    assert_eq!(feature.next().await, granted(&["t/7"]));
}

#[tokio::test]
async fn what_worked_is_not_set_aside_while_a_certificate_is_tried_out_that_does_not_allow_it() {
    for bad in [forbidding(), Rule { refuse_topic: Some("bad/2"), ..Rule::default() }] {
        let good = Rule::default();
        let broker = Broker::start(vec![good.clone(), bad.clone(), bad.clone(), bad, good]).await;
        let mut feature = Feature::start_with(broker.config.clone(), &["a"], &[&["bad/2"]]);
        assert_eq!(feature.next().await, Inbound::Up);
        assert_eq!(feature.next().await, granted(&["bad/2"]));
        let _verdict = broker.config.wallet.try_out("another one");
        feature.order(Outbound::Reconnect);
        feature.down().await;
        for _ in 0..3 {
            assert_eq!(feature.next().await, Inbound::Up);
            let reason = feature.down().await;
            assert!(reason.contains("bad/2"), "{reason}");
        }
        assert_eq!(feature.next().await, Inbound::Up);
        assert_eq!(feature.next().await, granted(&["bad/2"]));
    }
}
