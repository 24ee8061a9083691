use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8};

use axum::Router;
use axum::extract::Path as Segment;
use axum::http::StatusCode;
use axum::routing::post;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use shared::publish::publish_one;
use shared::push::Push;
use tempfile::TempDir;

use super::*;

const NOW: Micros = 1_792_455_302_920_000;
const LONG: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// Answers the n-th delivery (from 1) of a message to an endpoint.
type Answer = dyn Fn(&str, &Push, usize) -> (StatusCode, Duration) + Send + Sync;

/// A push endpoint on a port of its own that keeps what it was sent.
struct Endpoint {
    url: String,
    pushes: Arc<Mutex<Vec<(String, Push)>>>,
}

impl Endpoint {
    async fn answering(answer: impl Fn(&str, &Push, usize) -> (StatusCode, Duration) + Send + Sync + 'static) -> Self {
        let pushes: Arc<Mutex<Vec<(String, Push)>>> = Arc::default();
        let (kept, answer): (_, Arc<Answer>) = (pushes.clone(), Arc::new(answer));
        let handler = move |Segment(path): Segment<String>, body: axum::body::Bytes| async move {
            let push = Push::parse(&body).unwrap();
            let (status, delay) = {
                let mut kept = kept.lock().unwrap();
                kept.push((path.clone(), push.clone()));
                let same = |(to, earlier): &&(String, Push)| *to == path && earlier.message_id == push.message_id;
                answer(&path, &push, kept.iter().filter(same).count())
            };
            tokio::time::sleep(delay).await;
            status
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/{path}", post(handler));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, pushes }
    }

    async fn acknowledging() -> Self {
        Self::answering(|_, _, _| (StatusCode::NO_CONTENT, Duration::ZERO)).await
    }

    fn pushes_to(&self, path: &str) -> Vec<Push> {
        self.pushes.lock().unwrap().iter().filter(|(to, _)| to == path).map(|(_, push)| push.clone()).collect()
    }
}

/// A subscription of topic `t`, with short waits.
fn subscription(name: &str) -> Subscription {
    Subscription {
        min_backoff: Duration::from_millis(20),
        max_backoff: Duration::from_millis(200),
        ..Subscription::new(name, "t", &format!("/{name}"))
    }
}

fn config(subscriptions: Vec<Subscription>) -> Config {
    Config { topics: vec!["t".into(), "dead".into()], subscriptions, ..Config::default() }
}

fn open(path: &Path, subscriptions: Vec<Subscription>) -> Bus {
    Bus::open(path, Clock::manual(NOW), config(subscriptions)).unwrap()
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus.redb");
    (folder, path)
}

fn message(data: &str) -> Message {
    Message { data: data.to_owned().into(), attributes: BTreeMap::from([("event_type".into(), "order".into())]) }
}

async fn publish(bus: &Bus, data: &str) -> String {
    publish_one(&bus.publisher("t"), message(data)).await.unwrap()
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test]
async fn a_push_carries_what_was_published() {
    let (_folder, path) = file();
    let endpoint = Endpoint::acknowledging().await;
    let bus = open(&path, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    let id = publish(&bus, "{\"a\":1}").await;
    assert!(bus.drain(LONG).await);
    let push = Push {
        subscription: "projects/local/subscriptions/s".into(),
        message_id: id,
        published_at: Some(NOW),
        attributes: message("").attributes,
        data: b"{\"a\":1}".to_vec().into(),
        attempt: 1,
    };
    assert_eq!(endpoint.pushes_to("s"), [push]);
}

#[tokio::test]
async fn what_pubsub_refuses_is_refused_and_nothing_of_it_is_stored() {
    let (_folder, path) = file();
    let bus = open(&path, vec![subscription("s")]);
    let large = Message { data: vec![b'x'; 10_000_001].into(), ..Message::default() };
    let reserved = Message { attributes: BTreeMap::from([("goog".into(), String::new())]), ..message("1") };
    let refused = [
        (vec![message("1"), large], "at most 10000000 are allowed"),
        (vec![message("1"); 1_001], "at most 1000 are allowed"),
        (vec![message("1"), reserved], "begins with `goog`"),
        (vec![Message::default(), message("1")], "it is empty"),
    ];
    for (messages, limit) in refused {
        for answer in bus.publisher("t").publish(messages).await {
            let error = answer.unwrap_err();
            assert!(error.reason.contains(limit), "{error}");
        }
    }
    assert_eq!(bus.stats().subscriptions[0].waiting, 0);
    let accepted = bus.publisher("t").publish(vec![message("1"); 1_000]).await;
    assert!(accepted.iter().all(Result::is_ok));
    assert_eq!(bus.stats().subscriptions[0].waiting, 1_000);
}

#[tokio::test]
async fn an_acknowledged_message_is_gone_after_reopening() {
    let (_folder, path) = file();
    let endpoint = Endpoint::acknowledging().await;
    let bus = open(&path, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    let first = publish(&bus, "1").await;
    assert!(bus.drain(LONG).await);
    bus.stop(GRACE).await;

    let bus = open(&path, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    let second = publish(&bus, "2").await;
    assert!(bus.drain(LONG).await);
    assert!(second.parse::<u64>().unwrap() > first.parse::<u64>().unwrap(), "ids increase across restarts");
    let ids: Vec<_> = endpoint.pushes_to("s").into_iter().map(|push| push.message_id).collect();
    assert_eq!(ids, [first, second]);
}

#[tokio::test]
async fn an_unacknowledged_message_is_delivered_after_reopening_with_its_attempts() {
    let (_folder, path) = file();
    let refusing = Endpoint::answering(|_, _, _| (StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO)).await;
    let dead_after_four =
        || vec![Subscription { max_attempts: 4, dead_letter_topic: Some("dead".into()), ..subscription("s") }];
    let slow = |mut subscriptions: Vec<Subscription>| {
        subscriptions[0].min_backoff = LONG;
        subscriptions[0].max_backoff = LONG;
        subscriptions
    };
    for attempt in 1..=3 {
        let bus = open(&path, slow(dead_after_four()));
        if attempt == 1 {
            publish(&bus, "1").await;
        }
        bus.start(&refusing.url, None).unwrap();
        until("the refusal", || refusing.pushes_to("s").len() == attempt && bus.stats().subscriptions[0].waiting == 1)
            .await;
        bus.stop(GRACE).await;
    }
    let bus = open(&path, dead_after_four());
    bus.start(&refusing.url, None).unwrap();
    assert!(bus.drain(LONG).await);
    assert_eq!(refusing.pushes_to("s").len(), 4);
}

#[tokio::test]
async fn what_a_killed_process_left_is_delivered_by_the_next() {
    let (folder, path) = file();
    let bus = open(&path, vec![subscription("s")]);
    let messages = (0..50).map(|n| message(&n.to_string())).collect();
    let published: Vec<_> = bus.publisher("t").publish(messages).await.into_iter().map(Result::unwrap).collect();
    // The file as a kill leaves it: never closed.
    let left = folder.path().join("left.redb");
    fs::copy(&path, &left).unwrap();

    let endpoint = Endpoint::acknowledging().await;
    let bus = open(&left, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    assert!(bus.drain(LONG).await);
    let mut delivered: Vec<_> = endpoint.pushes_to("s").into_iter().map(|push| push.message_id).collect();
    delivered.sort_by_key(|id| id.parse::<u64>().unwrap());
    assert_eq!(delivered, published);
}

#[tokio::test]
async fn a_refused_message_comes_again_until_it_is_acknowledged() {
    let (_folder, path) = file();
    let endpoint = Endpoint::answering(|_, _, delivery| {
        let status = if delivery <= 3 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT };
        (status, Duration::ZERO)
    })
    .await;
    // Without a dead-letter topic the number of attempts ends nothing.
    let bus = open(&path, vec![Subscription { max_attempts: 2, ..subscription("s") }]);
    bus.start(&endpoint.url, None).unwrap();
    let begun = std::time::Instant::now();
    publish(&bus, "1").await;
    assert!(bus.drain(LONG).await);
    assert_eq!(endpoint.pushes_to("s").len(), 4);
    assert!(begun.elapsed() >= Duration::from_millis(20 + 40 + 80), "each wait is at least the step before");
}

#[tokio::test]
async fn only_the_five_statuses_acknowledge() {
    let (_folder, path) = file();
    let statuses = [200, 201, 202, 204, 203, 302, 400, 404, 500];
    let endpoint = Endpoint::answering(move |_, push, delivery| {
        let asked: usize = std::str::from_utf8(&push.data).unwrap().parse().unwrap();
        let status = if delivery == 1 { statuses[asked] } else { 204 };
        (StatusCode::from_u16(status).unwrap(), Duration::ZERO)
    })
    .await;
    let bus = open(&path, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    for asked in 0..statuses.len() {
        publish(&bus, &asked.to_string()).await;
    }
    assert!(bus.drain(LONG).await);
    assert_eq!(endpoint.pushes_to("s").len(), 4 + 2 * 5);
}

#[tokio::test]
async fn a_message_waits_for_an_endpoint_that_is_not_there_yet() {
    let (_folder, path) = file();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let bus = open(&path, vec![subscription("s")]);
    bus.start(&nobody, None).unwrap();
    publish(&bus, "1").await;
    assert!(!bus.drain(Duration::from_millis(200)).await);
    let stats = bus.stats();
    assert_eq!(stats.subscriptions[0].waiting + stats.subscriptions[0].outstanding, 1);
    assert_eq!(stats.subscriptions[0].oldest_published_at, Some(NOW));
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_tried_slowly_and_served_at_once_when_it_is_back() {
    let (_folder, path) = file();
    let down = Arc::new(AtomicBool::new(true));
    let answers = down.clone();
    let endpoint = Endpoint::answering(move |_, _, _| {
        let down = answers.load(Ordering::SeqCst);
        (if down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT }, Duration::ZERO)
    })
    .await;
    let restless = Subscription { max_backoff: Duration::from_millis(20), ..subscription("s") };
    let bus = open(&path, vec![restless]);
    bus.publisher("t").publish((0..500).map(|n| message(&n.to_string())).collect()).await;
    bus.start(&endpoint.url, None).unwrap();
    assert!(!bus.drain(Duration::from_secs(1)).await);
    let tried = endpoint.pushes_to("s").len();
    assert!(tried <= 100 + 16 + 50, "{tried}: what was on its way, and one in 20 ms");
    down.store(false, Ordering::SeqCst);
    assert!(bus.drain(LONG).await);
}

#[tokio::test]
async fn after_the_last_attempt_a_copy_is_on_the_dead_letter_topic() {
    let (_folder, path) = file();
    let endpoint = Endpoint::answering(|path, _, _| match path {
        "s" => (StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO),
        _ => (StatusCode::NO_CONTENT, Duration::ZERO),
    })
    .await;
    let source = Subscription { max_attempts: 3, dead_letter_topic: Some("dead".into()), ..subscription("s") };
    let bus = open(&path, vec![source, Subscription { topic: "dead".into(), ..subscription("d") }]);
    bus.start(&endpoint.url, None).unwrap();
    let id = publish(&bus, "1").await;
    assert!(bus.drain(LONG).await);
    assert_eq!(endpoint.pushes_to("s").len(), 3);
    let [dead] = &endpoint.pushes_to("d")[..] else { panic!("one copy") };
    assert_ne!(dead.message_id, id);
    assert_eq!(dead.data, &b"1"[..]);
    let expected = [
        ("CloudPubSubDeadLetterSourceDeliveryCount", "3"),
        ("CloudPubSubDeadLetterSourceSubscription", "s"),
        ("CloudPubSubDeadLetterSourceSubscriptionProject", "local"),
        ("CloudPubSubDeadLetterSourceTopicPublishTime", "2026-10-20T00:15:02.920Z"),
        ("event_type", "order"),
    ];
    assert_eq!(dead.attributes, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
}

#[tokio::test]
async fn two_subscriptions_get_a_copy_each_and_do_not_wait_for_each_other() {
    let (_folder, path) = file();
    let endpoint = Endpoint::answering(|path, _, _| match path {
        "stuck" => (StatusCode::NO_CONTENT, Duration::from_mins(1)),
        _ => (StatusCode::NO_CONTENT, Duration::ZERO),
    })
    .await;
    let stuck = Subscription { max_outstanding: 7, ..subscription("stuck") };
    let bus = open(&path, vec![stuck, subscription("quick")]);
    bus.start(&endpoint.url, None).unwrap();
    let messages = (0..100).map(|n| message(&n.to_string())).collect();
    let ids: Vec<_> = bus.publisher("t").publish(messages).await.into_iter().map(Result::unwrap).collect();
    until("the quick one is empty", || bus.stats().subscriptions[1].oldest_published_at.is_none()).await;
    until("the stuck one is full", || endpoint.pushes_to("stuck").len() == 7).await;
    let stuck = &bus.stats().subscriptions[0];
    assert_eq!((stuck.waiting, stuck.outstanding), (93, 7));
    let mut delivered: Vec<_> = endpoint.pushes_to("quick").into_iter().map(|push| push.message_id).collect();
    delivered.sort_by_key(|id| id.parse::<u64>().unwrap());
    assert_eq!(delivered, ids);
}

#[tokio::test]
async fn an_answer_after_the_deadline_does_not_count() {
    let (_folder, path) = file();
    let endpoint = Endpoint::answering(|_, _, delivery| {
        (StatusCode::NO_CONTENT, if delivery == 1 { Duration::from_secs(2) } else { Duration::ZERO })
    })
    .await;
    let bus = open(&path, vec![Subscription { ack_deadline: Duration::from_millis(300), ..subscription("s") }]);
    bus.start(&endpoint.url, None).unwrap();
    publish(&bus, "1").await;
    assert!(bus.drain(LONG).await);
    assert_eq!(endpoint.pushes_to("s").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_answered_delivered_and_shares_its_commits() {
    let (_folder, path) = file();
    let endpoint = Endpoint::acknowledging().await;
    let bus = open(&path, vec![subscription("s")]);
    bus.start(&endpoint.url, None).unwrap();
    let publishers = (0..50).map(|publisher| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                publish(&bus, &format!("{publisher}-{n}")).await;
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    let commits = bus.stats().commits;
    assert!(commits < 2_500, "{commits} commits for 5000 publishes");
    assert!(bus.drain(LONG).await);
    let delivered: std::collections::BTreeSet<_> =
        endpoint.pushes_to("s").into_iter().map(|push| push.data.to_vec()).collect();
    assert_eq!(delivered.len(), 5_000);
}

#[tokio::test]
async fn a_topic_without_subscription_accepts_and_an_undeclared_one_refuses() {
    let (_folder, path) = file();
    let bus = open(&path, vec![]);
    let publish_to = async |topic| publish_one(&bus.publisher(topic), message("1")).await;
    assert!(publish_to("t").await.is_ok());
    assert_eq!(publish_to("nowhere").await.unwrap_err().to_string(), "publish to nowhere: there is no such topic");
    bus.stop(GRACE).await;
    assert_eq!(publish_to("t").await.unwrap_err().to_string(), "publish to t: the bus has stopped");
}

#[test]
fn a_declaration_that_names_what_is_not_there_is_refused() {
    let (_folder, path) = file();
    let refused =
        |subscriptions| format!("{:#}", Bus::open(&path, Clock::manual(NOW), config(subscriptions)).err().unwrap());
    let to_nowhere = Subscription { topic: "nowhere".into(), ..subscription("s") };
    assert!(refused(vec![to_nowhere]).ends_with("topic nowhere of subscription s is not declared"));
    let dead = Subscription { dead_letter_topic: Some("gone".into()), ..subscription("s") };
    assert!(refused(vec![dead]).ends_with("dead-letter topic gone of subscription s is not declared"));
    assert!(refused(vec![subscription("s"), subscription("s")]).ends_with("subscription s is declared twice"));
}

#[tokio::test]
async fn stop_waits_for_pushes_on_their_way_and_begins_no_other() {
    let (_folder, path) = file();
    let endpoint = Endpoint::answering(|_, _, _| (StatusCode::NO_CONTENT, Duration::from_millis(300))).await;
    let bus = open(&path, vec![Subscription { max_outstanding: 1, ..subscription("s") }]);
    bus.start(&endpoint.url, None).unwrap();
    publish(&bus, "1").await;
    publish(&bus, "2").await;
    until("the first push", || endpoint.pushes_to("s").len() == 1).await;
    bus.stop(GRACE).await;
    let bus = open(&path, vec![subscription("s")]);
    let stats = &bus.stats().subscriptions[0];
    assert_eq!((stats.waiting, stats.outstanding), (1, 0));
}

/// A file on a disk with trouble.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    trouble: Arc<AtomicU8>,
}

const NONE: u8 = 0;
const FULL: u8 = 1;
/// Writes arrive, yet the sync after them fails: nobody knows whether they are stored.
const NO_SYNC: u8 = 2;

impl Disk {
    fn check(&self, troubles: &[u8]) -> std::io::Result<()> {
        let kind = std::io::ErrorKind::StorageFull;
        if troubles.contains(&self.trouble.load(Ordering::SeqCst)) { Err(kind.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check(&[FULL]).and_then(|()| self.file.set_len(len))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.check(&[FULL, NO_SYNC]).and_then(|()| self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check(&[FULL]).and_then(|()| self.file.write(offset, data))
    }

    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

fn open_on_disk(path: PathBuf, trouble: Arc<AtomicU8>) -> Bus {
    let open = move || {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        redb::Database::builder().create_with_backend(Disk { file: FileBackend::new(file)?, trouble: trouble.clone() })
    };
    Bus::open_with(Box::new(open), Clock::manual(NOW), config(vec![subscription("s")])).unwrap()
}

#[tokio::test]
async fn a_full_disk_fails_the_publishes_of_that_time_and_nothing_else() {
    let (_folder, path) = file();
    let trouble = Arc::new(AtomicU8::new(NONE));
    let bus = open_on_disk(path, trouble.clone());
    let endpoint = Endpoint::answering(|_, _, _| (StatusCode::NO_CONTENT, Duration::from_millis(100))).await;
    bus.start(&endpoint.url, None).unwrap();
    publish(&bus, "before").await;
    until("the first push", || !endpoint.pushes_to("s").is_empty()).await;
    trouble.store(FULL, Ordering::SeqCst);
    for _ in 0..3 {
        let error = publish_one(&bus.publisher("t"), message("meanwhile")).await.unwrap_err();
        assert!(error.reason.starts_with("failed to store: "), "{error}");
    }
    // The ack of the first message comes meanwhile and must not be lost.
    tokio::time::sleep(Duration::from_millis(400)).await;
    trouble.store(NONE, Ordering::SeqCst);
    publish(&bus, "after").await;
    assert!(bus.drain(LONG).await);
    let data: Vec<_> = endpoint.pushes_to("s").into_iter().map(|push| push.data.to_vec()).collect();
    assert_eq!(data, [b"before".to_vec(), b"after".to_vec()]);
}

#[tokio::test]
async fn a_commit_of_unknown_outcome_is_an_error_and_disturbs_nothing() {
    let (_folder, path) = file();
    let trouble = Arc::new(AtomicU8::new(NONE));
    let bus = open_on_disk(path, trouble.clone());
    let before = publish(&bus, "before").await;
    trouble.store(NO_SYNC, Ordering::SeqCst);
    assert!(publish_one(&bus.publisher("t"), message("meanwhile")).await.is_err());
    trouble.store(NONE, Ordering::SeqCst);
    // Not by a publish: the writer tries again on its own.
    let endpoint = Endpoint::acknowledging().await;
    bus.start(&endpoint.url, None).unwrap();
    assert!(bus.drain(LONG).await);
    let after = publish(&bus, "after").await;
    assert!(bus.drain(LONG).await);
    let pushes = endpoint.pushes_to("s");
    let certain: Vec<_> = pushes.iter().filter(|push| push.data != b"meanwhile"[..]).collect();
    assert_eq!(certain.iter().map(|push| &push.message_id).collect::<Vec<_>>(), [&before, &after]);
    let ids: std::collections::BTreeSet<_> = pushes.iter().map(|push| &push.message_id).collect();
    assert_eq!(ids.len(), pushes.len(), "no id is given twice");
    assert_eq!(bus.stats().subscriptions[0].waiting, 0);
}
