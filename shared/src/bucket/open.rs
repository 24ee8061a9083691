//! From an address to its bucket.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use super::{Folder, Location};
use crate::settings::Settings;

/// The path on this machine that an address is; `None` for a bucket's.
pub fn local(uri: &str) -> Option<&FilePath> {
    uri.strip_prefix("file://").or((!uri.contains("://")).then_some(uri)).map(FilePath::new)
}

/// How long a bucket is asked before a request to it has failed.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// The client's own: ten times within three minutes.
    Job,
    /// Well within the 45 s in which a push is handled: an attempt has 6 s, and none begins after 10 s.
    Request,
}

/// Opens the place that `uri` names, for work that a request waits for: a call fails in less than 20 s.
pub fn open_for_requests(uri: &str, settings: &Settings) -> Result<Location, String> {
    open_with(uri, settings, Patience::Request)
}

/// Opens the place that `uri` names; the error says what is wrong with it. Nothing is asked of a bucket yet.
///
/// `STORAGE_ENDPOINT` names an emulator (`http://host:port`) in place of Cloud Storage and, where `AWS_ENDPOINT_URL` is
/// not set, of S3. Credentials are those of the environment (metadata server, role, `AWS_*`).
pub fn open(uri: &str, settings: &Settings) -> Result<Location, String> {
    open_with(uri, settings, Patience::Job)
}

fn open_with(uri: &str, settings: &Settings, patience: Patience) -> Result<Location, String> {
    let fault = |reason: String| format!("{uri}: {reason}");
    if let Some(path) = local(uri) {
        let path = std::path::absolute(path).map_err(|error| fault(error.to_string()))?;
        let path = Path::from_absolute_path(path).map_err(|error| fault(error.to_string()))?;
        return Ok(Location { store: Arc::new(Folder::any()), path, uri: uri.to_string() });
    }
    let (scheme, rest) = uri.split_once("://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(fault("names no bucket; give scheme://bucket/prefix".into()));
    }
    let path = Path::parse(prefix.trim_matches('/')).map_err(|error| fault(error.to_string()))?;
    let store = bucket_of(scheme, bucket, settings, patience).map_err(fault)?;
    Ok(Location { store, path, uri: uri.to_string() })
}

#[cfg(not(feature = "buckets"))]
fn bucket_of(_: &str, _: &str, _: &Settings, _: Patience) -> Result<Arc<dyn ObjectStore>, String> {
    Err("this program was built without buckets; give a path".into())
}

#[cfg(feature = "buckets")]
fn bucket_of(
    scheme: &str,
    bucket: &str,
    settings: &Settings,
    patience: Patience,
) -> Result<Arc<dyn ObjectStore>, String> {
    let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        "gs" => google::open(bucket, settings, limits::of(patience)),
        "s3" => amazon::open(bucket, settings, limits::of(patience)),
        _ => return Err("no such kind of bucket; give a path, gs://bucket/prefix or s3://bucket/prefix".into()),
    };
    store.map_err(|error| error.to_string())
}

#[cfg(feature = "buckets")]
mod limits {
    use std::time::Duration;

    use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

    use super::Patience;

    /// A connection idle for longer may have died while the process was suspended.
    const MAX_IDLE: &str = "20s";
    const CLIENT: [(ClientConfigKey, &str); 3] = [
        (ClientConfigKey::Timeout, "6s"),
        (ClientConfigKey::ConnectTimeout, "2s"),
        (ClientConfigKey::PoolIdleTimeout, MAX_IDLE),
    ];
    const RETRY_FOR: Duration = Duration::from_secs(10);

    pub(super) fn of(patience: Patience) -> (&'static [(ClientConfigKey, &'static str)], RetryConfig) {
        let retry = RetryConfig::default();
        match patience {
            Patience::Job => (&[], retry),
            Patience::Request => {
                let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
                (&CLIENT, RetryConfig { backoff, retry_timeout: RETRY_FOR, ..retry })
            }
        }
    }
}

#[cfg(feature = "buckets")]
mod google {
    use std::sync::Arc;

    use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
    use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
    use serde_json::json;

    use crate::settings::Settings;

    pub(super) fn open(
        bucket: &str,
        settings: &Settings,
        (client, retry): (&[(ClientConfigKey, &str)], RetryConfig),
    ) -> object_store::Result<Arc<dyn ObjectStore>> {
        let mut builder = match settings.get("STORAGE_ENDPOINT") {
            None => GoogleCloudStorageBuilder::from_env(),
            // Unsigned requests alone would not do: before it writes, the client asks for a token. This key needs none.
            Some(endpoint) => GoogleCloudStorageBuilder::new()
                .with_service_account_key(
                    json!({
                        "gcs_base_url": endpoint, "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "",
                    })
                    .to_string(),
                )
                .with_skip_signature(true)
                .with_client_options(ClientOptions::new().with_allow_http(true)),
        };
        for (key, value) in client {
            builder = builder.with_config(GoogleConfigKey::Client(*key), *value);
        }
        Ok(Arc::new(builder.with_bucket_name(bucket).with_retry(retry).build()?))
    }
}

#[cfg(feature = "buckets")]
mod amazon {
    use std::sync::Arc;

    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
    use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

    use crate::settings::Settings;

    pub(super) fn open(
        bucket: &str,
        settings: &Settings,
        (client, retry): (&[(ClientConfigKey, &str)], RetryConfig),
    ) -> object_store::Result<Arc<dyn ObjectStore>> {
        let mut builder =
            AmazonS3Builder::from_env().with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
        if let Some(endpoint) = settings.get("AWS_ENDPOINT_URL").or(settings.get("STORAGE_ENDPOINT")) {
            builder = builder.with_endpoint(endpoint).with_allow_http(true);
        }
        for (key, value) in client {
            builder = builder.with_config(AmazonS3ConfigKey::Client(*key), *value);
        }
        Ok(Arc::new(builder.with_retry(retry).build()?))
    }
}

#[cfg(all(test, feature = "buckets"))]
mod tests {
    use std::time::Duration;

    use object_store::ObjectStoreExt as _;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_bucket_that_does_not_answer_fails_a_request_long_before_the_push_has_to_be_answered() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let settings = Settings::from_iter([("STORAGE_ENDPOINT", endpoint.as_str())]);
        let place = open_for_requests("gs://bucket/archive", &settings).unwrap();
        let put = timeout(Duration::from_secs(20), place.store.put(&place.path, "row".into()));
        assert!(put.await.expect("it is given up within 20 s").is_err());
    }
}
