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

/// Opens the place that `uri` names; the error says what is wrong with it. Nothing is asked of a bucket yet.
///
/// `STORAGE_ENDPOINT` names an emulator (`http://host:port`) in place of Cloud Storage and, where `AWS_ENDPOINT_URL` is
/// not set, of S3. Credentials are those of the environment (metadata server, role, `AWS_*`).
pub fn open(uri: &str, settings: &Settings) -> Result<Location, String> {
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
    let store = bucket_of(scheme, bucket, settings).map_err(fault)?;
    Ok(Location { store, path, uri: uri.to_string() })
}

#[cfg(not(feature = "buckets"))]
fn bucket_of(_: &str, _: &str, _: &Settings) -> Result<Arc<dyn ObjectStore>, String> {
    Err("this program was built without buckets; give a path".into())
}

#[cfg(feature = "buckets")]
fn bucket_of(scheme: &str, bucket: &str, settings: &Settings) -> Result<Arc<dyn ObjectStore>, String> {
    let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        "gs" => google::open(bucket, settings),
        "s3" => amazon::open(bucket, settings),
        _ => return Err("no such kind of bucket; give a path, gs://bucket/prefix or s3://bucket/prefix".into()),
    };
    store.map_err(|error| error.to_string())
}

#[cfg(feature = "buckets")]
mod google {
    use std::sync::Arc;

    use object_store::gcp::GoogleCloudStorageBuilder;
    use object_store::{ClientOptions, ObjectStore};
    use serde_json::json;

    use crate::settings::Settings;

    pub(super) fn open(bucket: &str, settings: &Settings) -> object_store::Result<Arc<dyn ObjectStore>> {
        let builder = match settings.get("STORAGE_ENDPOINT") {
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
        Ok(Arc::new(builder.with_bucket_name(bucket).build()?))
    }
}

#[cfg(feature = "buckets")]
mod amazon {
    use std::sync::Arc;

    use object_store::ObjectStore;
    use object_store::aws::{AmazonS3Builder, S3ConditionalPut};

    use crate::settings::Settings;

    pub(super) fn open(bucket: &str, settings: &Settings) -> object_store::Result<Arc<dyn ObjectStore>> {
        let mut builder =
            AmazonS3Builder::from_env().with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
        if let Some(endpoint) = settings.get("AWS_ENDPOINT_URL").or(settings.get("STORAGE_ENDPOINT")) {
            builder = builder.with_endpoint(endpoint).with_allow_http(true);
        }
        Ok(Arc::new(builder.build()?))
    }
}
