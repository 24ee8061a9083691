//! Buckets of moto, as whoever may read and write them.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use shared::bucket::Location;

use crate::parts::Server;

const KEY: &str = "key";
const SECRET: &str = "secret";
const REGION: &str = "us-east-1";

/// A place in a bucket, which is made.
pub async fn s3(moto: &Server, bucket: &str, prefix: &str) -> Location {
    let made = reqwest::Client::new().put(format!("{}/{bucket}", moto.url)).send().await.expect("moto answers");
    assert!(made.status().is_success(), "{made:?}");
    let store = AmazonS3Builder::new()
        .with_endpoint(&moto.url)
        .with_allow_http(true)
        .with_region(REGION)
        .with_access_key_id(KEY)
        .with_secret_access_key(SECRET)
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .build()
        .expect("a bucket");
    Location { store: Arc::new(store), path: Path::from(prefix), uri: format!("s3://{bucket}/{prefix}") }
}

/// The variables of a process that reads and writes them.
pub fn environment(moto: &Server) -> [(&'static str, String); 4] {
    [
        ("AWS_ENDPOINT_URL", moto.url.clone()),
        ("AWS_ACCESS_KEY_ID", KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
        ("AWS_REGION", REGION.into()),
    ]
}
