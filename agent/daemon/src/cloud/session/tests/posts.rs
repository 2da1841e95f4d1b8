//! What is told of posts.

use otandem_core::messages::Qos;

use super::*;
use crate::cloud::channel::{Fates, Post};

struct Poster {
    fates: Fates,
    told: mpsc::UnboundedReceiver<Fate>,
}

impl Poster {
    fn new() -> Self {
        let (sender, told) = mpsc::unbounded_channel();
        Self { fates: Fates::new(move |fate| drop(sender.send(fate))), told }
    }

    fn post(&self, feature: &Feature, qos: Qos, posts: &[(u64, &str)]) {
        let post = |&(id, topic): &(u64, &str)| Post {
            id,
            topic: topic.into(),
            payload: "x".into(),
            qos,
            retain: false,
            alone: topic == "alone",
        };
        feature.order(Outbound::Post(posts.iter().map(post).collect(), self.fates.clone()));
    }

    async fn next(&mut self) -> Fate {
        tokio::time::timeout(Duration::from_secs(30), self.told.recv()).await.unwrap().unwrap()
    }

    /// The fates up to a loss: what was published before, and the loss.
    async fn until_lost(&mut self) -> (Vec<u64>, Fate) {
        let mut published = vec![];
        loop {
            match self.next().await {
                Fate::Published(ids) => published.extend(ids),
                lost => return (published, lost),
            }
        }
    }
}

async fn up(feature: &mut Feature) {
    while feature.next().await != Inbound::Up {}
}

#[tokio::test]
async fn each_post_is_told_published_or_lost_and_one_that_ends_the_connection_is_found_by_going_alone() {
    let poisonous = Rule { forbidden: Some("poison"), ..Rule::default() };
    let broker = Broker::start(vec![poisonous.clone(), poisonous, Rule::default()]).await;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    up(&mut feature).await;
    let (mut one, mut two) = (Poster::new(), Poster::new());
    let many: Vec<_> = (10..60).map(|id| (id, "fine")).collect();
    one.post(&feature, Qos::AtLeastOnce, &many);
    two.post(&feature, Qos::AtLeastOnce, &[(1, "fine"), (2, "poison"), (3, "behind")]);
    one.post(&feature, Qos::AtLeastOnce, &[(4, "behind")]);
    // What came behind it may have been lost with the connection, and so may acknowledgements.
    for (poster, all) in [(&mut one, (10..60).chain([4]).collect::<Vec<u64>>()), (&mut two, vec![1, 2, 3])] {
        let (mut published, lost) = poster.until_lost().await;
        let Fate::Lost { ids, suspect: None } = lost else { panic!("{lost:?}") };
        assert!(
            !published.contains(&2) && !published.contains(&3) && !published.contains(&4),
            "{published:?}"
        );
        published.extend(ids);
        published.sort_by_key(|id| all.iter().position(|of| of == id));
        assert_eq!(published, all);
    }
    // One by one now.
    up(&mut feature).await;
    two.post(&feature, Qos::AtLeastOnce, &[(5, "poison"), (6, "behind")]);
    one.post(&feature, Qos::AtLeastOnce, &[(7, "behind")]);
    let (_, lost) = two.until_lost().await;
    let Fate::Lost { ids, suspect: Some((5, why)) } = lost else { panic!("{lost:?}") };
    assert_eq!(ids, [5, 6]);
    assert!(why.contains("iot:Publish"), "{why}");
    assert_eq!(one.until_lost().await.1, Fate::Lost { ids: vec![7], suspect: None });
    up(&mut feature).await;
    one.post(&feature, Qos::AtLeastOnce, &[(8, "fine"), (9, "fine")]);
    let mut published = vec![];
    while published.len() < 2 {
        let Fate::Published(ids) = one.next().await else { panic!() };
        published.extend(ids);
    }
    assert_eq!(published, [8, 9]);
}

#[tokio::test]
async fn a_post_that_was_suspected_waits_for_all_others_and_they_wait_for_it() {
    let mut broker = Broker::start(vec![Rule { no_puback: true, ..Rule::default() }]).await;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    up(&mut feature).await;
    let mut poster = Poster::new();
    poster.post(&feature, Qos::AtLeastOnce, &[(1, "alone"), (2, "behind")]);
    feature.publish("job", "1");
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("alone".into(), "x".into()));
    // Jobs wait for nobody.
    assert_eq!(broker.saw().await, Seen::Publish("job".into(), "1".into()));
    feature.order(Outbound::Reconnect);
    assert_eq!(poster.next().await, Fate::Lost { ids: vec![1, 2], suspect: None });
    up(&mut feature).await;
    while broker.saw().await != Seen::Closed {}
    poster.post(&feature, Qos::AtLeastOnce, &[(3, "before"), (4, "alone")]);
    feature.publish("job", "2");
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("before".into(), "x".into()));
    assert_eq!(broker.saw().await, Seen::Publish("job".into(), "2".into()));
    drop(feature);
    assert_eq!(broker.saw().await, Seen::Closed);
}

#[tokio::test]
async fn a_post_without_acknowledgement_is_published_when_it_is_written() {
    let mut broker = Broker::start(vec![Rule { no_puback: true, ..Rule::default() }]).await;
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    up(&mut feature).await;
    let mut poster = Poster::new();
    poster.post(&feature, Qos::AtLeastOnce, &[(1, "sure")]);
    poster.post(&feature, Qos::AtMostOnce, &[(2, "quick")]);
    assert_eq!(poster.next().await, Fate::Published(vec![2]));
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("sure".into(), "x".into()));
    assert_eq!(broker.saw().await, Seen::Publish("quick".into(), "x".into()));
    feature.order(Outbound::Reconnect);
    // Ours is the end: nobody is suspected.
    assert_eq!(poster.next().await, Fate::Lost { ids: vec![1], suspect: None });
}

#[tokio::test]
async fn without_a_session_posts_are_lost_at_once() {
    let broker = Broker::start(vec![Rule { refuse_connect: true, ..Rule::default() }]).await;
    let mut config = broker.config.clone();
    (config.retry_first, config.retry_most) = (Duration::from_secs(1000), Duration::from_secs(1000));
    let mut feature = Feature::start(config, &["a"]);
    feature.down().await;
    let mut poster = Poster::new();
    poster.post(&feature, Qos::AtLeastOnce, &[(1, "t")]);
    assert_eq!(poster.next().await, Fate::Lost { ids: vec![1], suspect: None });
}

#[tokio::test]
async fn publishes_go_before_posts_and_posts_leave_them_room() {
    let mut broker = Broker::start(vec![Rule { no_puback: true, ..Rule::default() }]).await;
    (broker.config.in_flight, broker.config.publish_rate) = (10, 50);
    let mut feature = Feature::start(broker.config.clone(), &["a"]);
    up(&mut feature).await;
    let poster = Poster::new();
    let posts: Vec<_> = (0..20).map(|id| (id, "post")).collect();
    poster.post(&feature, Qos::AtLeastOnce, &posts);
    feature.publish("job", "1");
    broker.saw_connect().await;
    assert_eq!(broker.saw().await, Seen::Subscribe(vec!["a".into()]));
    assert_eq!(broker.saw().await, Seen::Publish("post".into(), "x".into()));
    // The rate leaves one at a time, and this one was asked for after all the others.
    assert_eq!(broker.saw().await, Seen::Publish("job".into(), "1".into()));
    // Nothing is acknowledged here: nine posts are on their way, and the tenth place is kept.
    for _ in 1..9 {
        assert_eq!(broker.saw().await, Seen::Publish("post".into(), "x".into()));
    }
    drop(feature);
    assert_eq!(broker.saw().await, Seen::Closed);
}
