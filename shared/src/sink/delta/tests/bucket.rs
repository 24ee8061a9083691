//! The warehouse in a bucket: one writer by lease, commits that keep their distance.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;
use crate::bucket::Location;
use crate::sink::delta::DeltaError;

const LOG: &str = "lake/contextflow/clickstream_events/_delta_log";

fn bucket() -> Location {
    Location { store: Arc::new(InMemory::new()), path: "lake".into(), uri: "memory:///lake".into() }
}

/// Fast enough for tests that do not look at the clock.
fn quick() -> Options {
    Options { commit_interval: 1_000, ..eager() }
}

async fn open(location: &Location, writer: &str, clock: &Clock, options: Options) -> Result<DeltaSink, DeltaError> {
    DeltaSink::open_bucket(location.clone(), writer, clock.clone(), options).await
}

async fn read(location: &Location, event_type: &str) -> Vec<Bytes> {
    read_from(&Place::bucket(location.clone()).unwrap(), &plan(event_type)).await
}

async fn clicks(sink: &DeltaSink, numbers: impl IntoIterator<Item = usize>) -> Vec<Outcome> {
    sink.append(&batch(&plan("clickstream"), numbers.into_iter().map(click))).await
}

fn retry_reason(outcomes: &[Outcome]) -> &str {
    match outcomes {
        [Outcome::Retry(reason), ..] => reason,
        other => panic!("not retried: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let location = bucket();
    let sink = Arc::new(open(&location, "test", &Clock::system(), quick()).await.unwrap());
    let place = Place::bucket(location).unwrap();
    let read = move |plan: Arc<Plan>| {
        let place = place.clone();
        async move { read_from(&place, &plan).await }
    };
    crate::sink::contract::holds(Arc::clone(&sink) as _, read).await;
    sink.settle().await;
}

#[tokio::test]
async fn it_works_on_a_runtime_of_one_thread_and_is_opened_again() {
    let location = bucket();
    for run in 0..2 {
        let sink = open(&location, "test", &Clock::system(), quick()).await.unwrap();
        for number in 0..25 {
            assert_eq!(clicks(&sink, [run * 25 + number]).await, [Outcome::Done]);
        }
        sink.settle().await;
        sink.close().await.unwrap();
    }
    let all: Vec<_> = (0..50).map(|number| Bytes::from(click(number))).collect();
    assert_eq!(values(&plan("clickstream"), &read(&location, "clickstream").await), values(&plan("clickstream"), &all));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_between_two_commits_become_one_that_stands_before_they_are_answered() {
    let location = bucket();
    let options = Options { commit_interval: 200_000, merge_at: 100, ..eager() };
    let sink = Arc::new(open(&location, "test", &Clock::system(), options).await.unwrap());
    assert_eq!(clicks(&sink, [0]).await, [Outcome::Done]);
    let appends = (1..=20).map(|number| {
        let (sink, location) = (Arc::clone(&sink), location.clone());
        tokio::spawn(async move {
            assert_eq!(clicks(&sink, [number]).await, [Outcome::Done]);
            let id = format!("click-{number}\"");
            let rows = read(&location, "clickstream").await;
            assert!(rows.iter().any(|row| String::from_utf8_lossy(row).contains(&id)), "{number} is not there");
        })
    });
    for append in appends.collect::<Vec<_>>() {
        append.await.unwrap();
    }
    let entries: Vec<_> = location.store.list(Some(&LOG.into())).try_collect().await.unwrap();
    let mut times: Vec<_> = entries.iter().map(|entry| entry.last_modified.timestamp_micros()).collect();
    times.sort_unstable();
    // The table, the first append, and what came meanwhile.
    assert!((3..=5).contains(&times.len()), "{} versions", times.len());
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 200_000), "{times:?}");
}

#[tokio::test]
async fn a_bad_row_among_gathered_appends_costs_its_own_batch_one_row() {
    let location = bucket();
    let options = Options { commit_interval: 100_000, ..eager() };
    let sink = open(&location, "test", &Clock::system(), options).await.unwrap();
    let bad = batch(&plan("clickstream"), [click(1), "no JSON".into()]);
    let (first, second, third) = tokio::join!(clicks(&sink, [0]), sink.append(&bad), clicks(&sink, [2, 3]));
    assert_eq!(first, [Outcome::Done]);
    assert!(matches!(&second[..], [Outcome::Done, Outcome::Poison(_)]), "{second:?}");
    assert_eq!(third, [Outcome::Done, Outcome::Done]);
    assert_eq!(read(&location, "clickstream").await.len(), 4);
}

#[tokio::test]
async fn a_second_writer_is_told_who_has_the_warehouse_until_when() {
    let location = bucket();
    let clock = Clock::manual(1_792_455_302_000_000);
    let first = open(&location, "batcher-00001", &clock, quick()).await.unwrap();
    clock.set(clock.now() + 59 * SECOND);
    let refused = open(&location, "batcher-00002", &clock, quick()).await.unwrap_err().to_string();
    for part in
        ["memory:///lake: batcher-00001 (", "since 2026-10-20T00:15:02Z", "until 2026-10-20T00:16:02Z", "stop it"]
    {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    // The writer writes, so it keeps what it has past the first term.
    assert_eq!(clicks(&first, [1]).await, [Outcome::Done]);
    clock.set(clock.now() + 59 * SECOND);
    assert!(matches!(open(&location, "third", &clock, quick()).await, Err(DeltaError::Leased { .. })));

    first.close().await.unwrap();
    let second = open(&location, "batcher-00002", &clock, quick()).await.unwrap();
    assert_eq!(clicks(&second, [2]).await, [Outcome::Done]);
    assert!(retry_reason(&clicks(&first, [3]).await).contains("has closed it"));
    assert_eq!(read(&location, "clickstream").await.len(), 2);
}

#[tokio::test]
async fn a_writer_that_slept_past_its_lease_goes_on_unless_another_has_it() {
    let location = bucket();
    let clock = Clock::manual(Clock::system().now());
    let first = open(&location, "first", &clock, quick()).await.unwrap();
    assert_eq!(clicks(&first, [1]).await, [Outcome::Done]);
    clock.set(clock.now() + 3_600 * SECOND);
    assert_eq!(clicks(&first, [2]).await, [Outcome::Done]);

    clock.set(clock.now() + 61 * SECOND);
    let second = open(&location, "second", &clock, quick()).await.unwrap();
    assert_eq!(clicks(&second, [3]).await, [Outcome::Done]);
    for number in [4, 5] {
        let outcomes = clicks(&first, [number]).await;
        let reason = retry_reason(&outcomes);
        assert!(reason.contains("second (") && reason.contains("has taken it over at"), "{reason}");
    }
    assert!(first.ready().await.unwrap_err().contains("lease is lost"));
    first.settle().await;
    assert_eq!(second.ready().await, Ok(()));
    assert_eq!(clicks(&second, [6]).await, [Outcome::Done]);
    assert_eq!(read(&location, "clickstream").await.len(), 4);
}

#[tokio::test]
async fn readiness_tells_of_a_lost_lease_without_an_append() {
    let location = bucket();
    let clock = Clock::manual(Clock::system().now());
    let first = open(&location, "first", &clock, quick()).await.unwrap();
    assert_eq!(first.ready().await, Ok(()));
    clock.set(clock.now() + 61 * SECOND);
    let _second = open(&location, "second", &clock, quick()).await.unwrap();
    assert!(first.ready().await.unwrap_err().contains("second ("));
}

#[tokio::test]
async fn one_of_many_writers_that_find_an_expired_lease_gets_it() {
    let location = bucket();
    let clock = Clock::manual(Clock::system().now());
    let former = open(&location, "former", &clock, quick()).await.unwrap();
    clock.set(clock.now() + 61 * SECOND);
    let names: Vec<_> = (0..10).map(|number| format!("writer {number}")).collect();
    let opened = futures::future::join_all(names.iter().map(|name| open(&location, name, &clock, quick()))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (1, 9));
    drop(former);
}

#[tokio::test]
async fn two_writers_that_both_believe_to_be_the_one_lose_nothing() {
    let location = bucket();
    let (slow, clock) = (Clock::manual(Clock::system().now()), Clock::manual(Clock::system().now() + 61 * SECOND));
    let first = open(&location, "first", &slow, quick()).await.unwrap();
    assert_eq!(clicks(&first, [0]).await, [Outcome::Done]);
    // The clock of the first stands still, so its lease looks fresh to it.
    let second = open(&location, "second", &clock, quick()).await.unwrap();
    for number in 1..20 {
        let (a, b) = tokio::join!(clicks(&first, [number * 2]), clicks(&second, [number * 2 + 1]));
        assert_eq!((&a[..], &b[..]), (&[Outcome::Done][..], &[Outcome::Done][..]));
    }
    first.settle().await;
    second.settle().await;
    assert_eq!(read(&location, "clickstream").await.len(), 39);
}

#[tokio::test]
async fn an_entry_of_the_log_is_made_once_and_known_as_one_s_own() {
    let location = bucket();
    let sink = open(&location, "test", &Clock::system(), quick()).await.unwrap();
    let files = Arc::clone(&sink.table("contextflow", "clickstream_events").files);
    let create = |content: &'static str| {
        let files = Arc::clone(&files);
        tokio::task::spawn_blocking(move || files.create("_delta_log/0.json", content.into()).map_err(|e| e.kind()))
    };
    assert_eq!(create("mine").await.unwrap(), Ok(()));
    assert_eq!(create("mine").await.unwrap(), Ok(()), "a request made again after its answer was lost");
    assert_eq!(create("another").await.unwrap(), Err(std::io::ErrorKind::AlreadyExists));
}

#[tokio::test]
async fn files_are_merged_the_log_stays_short_and_old_files_go() {
    let location = bucket();
    let clock = Clock::manual(Clock::system().now());
    let sink = open(&location, "test", &clock, quick()).await.unwrap();
    let warehouse = Warehouse::open_bucket(location.clone(), &registry()).unwrap();
    for append in 0..40 {
        // Ahead of the objects' own times, so that each is old.
        clock.set(clock.now() + 1_000 * SECOND);
        assert_eq!(clicks(&sink, [append]).await, [Outcome::Done]);
        sink.settle().await;
        if append % 10 == 0 {
            let count = number(&warehouse, "SELECT count(*) FROM clickstream_events").await;
            assert_eq!(count, i64::try_from(append + 1).unwrap());
        }
    }
    clock.set(clock.now() + 1_000 * SECOND);
    sink.settle().await;
    let objects: Vec<_> = location.store.list(Some(&"lake".into())).try_collect().await.unwrap();
    let count = |suffix: &str| objects.iter().filter(|object| object.location.as_ref().ends_with(suffix)).count();
    assert!(count(".json") < 30, "{} entries", count(".json"));
    assert!(count(".zstd.parquet") < 10, "{} files", count(".zstd.parquet"));
    assert!(location.store.head(&format!("{LOG}/_last_checkpoint").into()).await.is_ok());
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 40);
    assert_eq!(read(&location, "clickstream").await.len(), 40);
}

#[tokio::test]
async fn a_reader_changes_nothing() {
    let location = bucket();
    assert_eq!(read(&location, "clickstream").await, Vec::<Bytes>::new());
    assert_eq!(location.store.list(None).try_collect::<Vec<_>>().await.unwrap(), []);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_stands_once() {
    let store = Arc::new(Unreliable::default());
    let location = Location { store: Arc::clone(&store) as _, ..bucket() };
    let sink = open(&location, "test", &Clock::system(), quick()).await.unwrap();
    assert_eq!(clicks(&sink, [1]).await, [Outcome::Done]);
    store.entries.store(LOSES_ANSWERS, Ordering::Release);
    assert_eq!(clicks(&sink, [2]).await, [Outcome::Done]);
    assert_eq!(read(&location, "clickstream").await.len(), 2);
}

#[tokio::test]
async fn a_bucket_that_fails_means_try_again_and_heals() {
    let store = Arc::new(Unreliable::default());
    let location = Location { store: Arc::clone(&store) as _, ..bucket() };
    let sink = open(&location, "test", &Clock::system(), quick()).await.unwrap();
    assert_eq!(clicks(&sink, [1]).await, [Outcome::Done]);
    store.entries.store(REFUSES, Ordering::Release);
    assert!(retry_reason(&clicks(&sink, [2]).await).contains("writing the log"));
    store.entries.store(WORKS, Ordering::Release);
    assert_eq!(clicks(&sink, [2]).await, [Outcome::Done]);
    assert_eq!(read(&location, "clickstream").await.len(), 2);
}

const WORKS: u8 = 0;
const LOSES_ANSWERS: u8 = 1;
const REFUSES: u8 = 2;

/// A bucket that treats entries of the log as told.
#[derive(Debug, Default)]
struct Unreliable {
    store: InMemory,
    entries: AtomicU8,
}

impl fmt::Display for Unreliable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unreliable")
    }
}

#[async_trait]
impl ObjectStore for Unreliable {
    async fn put_opts(&self, path: &ObjectPath, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        let is_entry = path.extension() == Some("json");
        let fault = || Error::Generic { store: "test", source: "connection reset".into() };
        match self.entries.load(Ordering::Acquire) {
            LOSES_ANSWERS if is_entry => self.store.put_opts(path, payload, options).await.and(Err(fault())),
            REFUSES if is_entry => Err(fault()),
            _ => self.store.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        self.store.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        self.store.copy_opts(from, to, options).await
    }
}
