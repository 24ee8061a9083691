//! `contextflow backfill` from a bucket, with its records, its lease and its dead letters in it as well.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use object_store::ObjectStoreExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use pipeline_tests::binary::{binary, text};
use pipeline_tests::parts::{Server, moto};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const BUCKET: &str = "visits";

/// The bucket, as whoever looks at it after a run.
struct Bucket(Runtime, AmazonS3);

impl Bucket {
    fn new(server: &Server) -> Self {
        let created = reqwest::blocking::Client::new().put(format!("{}/{BUCKET}", server.url)).send().unwrap();
        assert!(created.status().is_success(), "{created:?}");
        let store = AmazonS3Builder::new()
            .with_endpoint(&server.url)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id("key")
            .with_secret_access_key("secret");
        Self(Runtime::new().unwrap(), store.build().unwrap())
    }

    fn put(&self, name: &str, bytes: Vec<u8>) {
        self.0.block_on(self.1.put(&name.into(), bytes.into())).unwrap();
    }

    fn get(&self, name: &str) -> Value {
        let bytes = self.0.block_on(async { self.1.get(&name.into()).await.unwrap().bytes().await.unwrap() });
        serde_json::from_slice(&bytes).unwrap()
    }
}

fn backfill(server: &Server, data: &TempDir, source: &str, more: &[&str]) -> Output {
    let state = format!("s3://{BUCKET}/state");
    let letters = format!("s3://{BUCKET}/letters");
    Command::new(binary())
        .args(["backfill", "--json", "--source", source, "--state", &state, "--dead-letters", &letters, "--data-dir"])
        .arg(data.path())
        .args(more)
        .envs([("AWS_ENDPOINT_URL", server.url.as_str()), ("AWS_ACCESS_KEY_ID", "key")])
        .envs([("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")])
        .output()
        .unwrap()
}

#[test]
fn visits_of_a_bucket_land_and_a_killed_run_keeps_others_out_for_a_minute() {
    let Some(server) = moto(false) else { return };
    let bucket = Bucket::new(&server);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/visits");
    let [first, second] = ["visits-2025-01-31.jsonl", "visits-2025-02-01.jsonl"];
    let read = |name: &str| std::fs::read(sample.join(name)).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&[read(second), b"nonsense\n".to_vec()].concat()).unwrap();
    bucket.put(&format!("in/{first}"), read(first));
    bucket.put(&format!("in/{second}.gz"), gzip.finish().unwrap());
    let data = tempfile::tempdir().unwrap();

    let output = backfill(&server, &data, &format!("s3://{BUCKET}/in/visits-*"), &[]);

    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["rows"]["visits"], &report["dead_letters"]), (&20.into(), &1.into()), "{report}");
    let run = report["run"].as_str().unwrap();
    let letter = bucket.get(&format!("letters/{run}/0.jsonl"));
    assert_eq!(letter["source"], format!("s3://{BUCKET}/in/{second}.gz"));
    assert_eq!(bucket.get(&format!("state/runs/{run}.json"))["state"], "done");

    // Cloud Storage is listed and read by the same requests as S3, without a login where an emulator is named.
    for name in [first.to_string(), format!("{second}.gz")] {
        let acl = format!("{}/{BUCKET}/in/{name}?acl", server.url);
        let opened = reqwest::blocking::Client::new().put(acl).header("x-amz-acl", "public-read");
        // The server looks whether there is a signature, not at it.
        let opened =
            opened.header("authorization", "AWS4-HMAC-SHA256 Credential=key/20261127/us-east-1/s3/aws4_request");
        let opened = opened.send().unwrap();
        assert!(opened.status().is_success(), "{opened:?}");
    }
    let other = tempfile::tempdir().unwrap();
    let output = Command::new(binary())
        .args(["backfill", "--json", "--source", &format!("gs://{BUCKET}/in/visits-*"), "--data-dir"])
        .arg(other.path())
        .env("STORAGE_ENDPOINT", &server.url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let from_google: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&from_google["rows"], &from_google["dead_letters"]), (&report["rows"], &report["dead_letters"]));

    let output = backfill(&server, &data, &format!("s3://{BUCKET}/nothing/"), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));

    // What a killed run leaves.
    let lease = bucket.get("state/backfill.lease");
    let mut held = lease.clone();
    held["expires"] = "2999-01-01T00:00:00Z".into();
    bucket.put("state/backfill.lease", held.to_string().into());
    let again = || backfill(&server, &data, &format!("s3://{BUCKET}/in"), &["--append"]);
    let output = again();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.contains("another run is at work")), (Some(1), true), "{error}");
    bucket.put("state/backfill.lease", lease.to_string().into());
    let report: Value = serde_json::from_slice(&again().stdout).unwrap();
    assert_eq!((&report["files"], report["remarks"].as_array().unwrap().len()), (&0.into(), 2), "{report}");
}
