//! The Delta Lake warehouse on S3, as moto has it: the contract of sinks, one writer, and addresses of folders.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use pipeline_tests::parts::{Server, moto};
use shared::bucket::Location;
use shared::clock::{Clock, SECOND};
use shared::schema::{Plan, Registry};
use shared::settings::Settings;
use shared::sink::delta::{DeltaSink, Options, Warehouse, rows};
use shared::sink::{Outcome, Sink, contract};

const BUCKET: &str = "lake";

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_on_s3() {
    let Some(server) = moto(false) else { return };
    let location = bucket(&server).await;
    let options = Options { commit_interval: SECOND / 10, merge_at: 4, checkpoint_every: 5, ..Options::default() };
    let sink = Arc::new(DeltaSink::open_bucket(location.clone(), "test", Clock::system(), options).await.unwrap());
    contract::holds(Arc::clone(&sink) as _, reader(&location)).await;

    let plan = clickstream();
    for append in 0..20 {
        assert_eq!(sink.append(&contract::batch(&plan, [contract::click(1_000 + append)])).await, [Outcome::Done]);
    }
    sink.settle().await;
    sink.close().await.unwrap();
    // A new writer goes by what stands in the bucket: checkpoint, log, merged files.
    let sink = DeltaSink::open_bucket(location.clone(), "test", Clock::system(), Options::default()).await.unwrap();
    assert_eq!(sink.append(&contract::batch(&plan, [contract::click(1_020)])).await, [Outcome::Done]);
    assert_eq!(reader(&location)(plan).await.len(), 98 + 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_on_s3_is_refused_until_the_lease_is_over_and_the_first_stops() {
    let Some(server) = moto(false) else { return };
    let location = bucket(&server).await;
    let clock = Clock::manual(Clock::system().now());
    let open = |writer| DeltaSink::open_bucket(location.clone(), writer, clock.clone(), Options::default());
    let append =
        async |sink: &DeltaSink, number| sink.append(&contract::batch(&clickstream(), [contract::click(number)])).await;

    let first = open("first").await.unwrap();
    assert_eq!(append(&first, 1).await, [Outcome::Done]);
    clock.set(clock.now() + 30 * SECOND);
    assert_eq!(append(&first, 2).await, [Outcome::Done]);
    clock.set(clock.now() + 59 * SECOND);
    let refused = open("second").await.unwrap_err().to_string();
    assert!(refused.contains("s3://lake/warehouse: first (") && refused.contains("stop it"), "{refused}");

    clock.set(clock.now() + 2 * SECOND);
    let second = open("second").await.unwrap();
    let outcomes = append(&first, 3).await;
    assert!(matches!(&outcomes[..], [Outcome::Retry(reason)] if reason.contains("second (")), "{outcomes:?}");
    assert!(first.ready().await.is_err());
    assert_eq!(append(&second, 4).await, [Outcome::Done]);
    assert_eq!(reader(&location)(clickstream()).await.len(), 3);
}

#[tokio::test]
async fn a_file_uri_and_a_path_are_one_locked_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let settings = Settings::default();
    let open = async |uri: &str| DeltaSink::open_uri(uri, &settings, Clock::system()).await;
    let sink = open(&format!("file://{path}")).await.unwrap();
    assert_eq!(sink.append(&contract::batch(&clickstream(), [contract::click(1)])).await, [Outcome::Done]);
    assert!(open(path).await.unwrap_err().to_string().contains("another process writes to this warehouse"));
    let error = open("az://bucket/prefix").await.unwrap_err().to_string();
    assert!(error.contains("no such kind of bucket"), "{error}");
}

fn clickstream() -> Arc<Plan> {
    Arc::clone(Registry::built_in().unwrap().get("clickstream").unwrap())
}

fn reader(location: &Location) -> impl Fn(Arc<Plan>) -> std::pin::Pin<Box<dyn Future<Output = Vec<Bytes>> + Send>> {
    let location = location.clone();
    move |plan| {
        let warehouse = Warehouse::open_bucket(location.clone(), &Registry::built_in().unwrap()).unwrap();
        Box::pin(async move { rows::all(&warehouse, &plan).await })
    }
}

/// A prefix in a new bucket.
async fn bucket(server: &Server) -> Location {
    let created = reqwest::Client::new().put(format!("{}/{BUCKET}", server.url)).send().await.unwrap();
    assert!(created.status().is_success(), "{created:?}");
    let store = AmazonS3Builder::new()
        .with_endpoint(&server.url)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id("key")
        .with_secret_access_key("secret")
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .build()
        .unwrap();
    Location { store: Arc::new(store), path: "warehouse".into(), uri: format!("s3://{BUCKET}/warehouse") }
}
