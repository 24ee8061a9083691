//! From an address to its bucket.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore};

use super::Location;
use crate::settings::Settings;

/// Opens the place that `uri` names; the error says what is wrong with it. Nothing is asked of a bucket yet.
///
/// `STORAGE_ENDPOINT` names an emulator (`http://host:port`) in place of Cloud Storage and, where `AWS_ENDPOINT_URL` is
/// not set, of S3. Credentials are those of the environment (metadata server, role, `AWS_*`).
pub fn open(uri: &str, settings: &Settings) -> Result<Location, String> {
    let fault = |reason: String| format!("{uri}: {reason}");
    let Some((scheme, rest)) = uri.split_once("://") else {
        let path = std::path::absolute(uri).map_err(|error| fault(error.to_string()))?;
        let path = Path::from_absolute_path(path).map_err(|error| fault(error.to_string()))?;
        return Ok(Location { store: Arc::new(LocalFileSystem::new()), path, uri: uri.to_string() });
    };
    if scheme == "file" {
        return open(rest, settings);
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(fault("names no bucket; give scheme://bucket/prefix".into()));
    }
    let path = Path::parse(prefix.trim_matches('/')).map_err(|error| fault(error.to_string()))?;
    let store: Arc<dyn ObjectStore> = match scheme {
        "gs" => Arc::new(google(bucket, settings).map_err(|error| fault(error.to_string()))?),
        "s3" => Arc::new(amazon(bucket, settings).map_err(|error| fault(error.to_string()))?),
        _ => return Err(fault("no such kind of bucket; give a path, gs://bucket/prefix or s3://bucket/prefix".into())),
    };
    Ok(Location { store, path, uri: uri.to_string() })
}

fn google(bucket: &str, settings: &Settings) -> object_store::Result<impl ObjectStore> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = settings.get("STORAGE_ENDPOINT") {
        builder = builder
            .with_base_url(endpoint)
            .with_skip_signature(true)
            .with_client_options(ClientOptions::new().with_allow_http(true));
    }
    builder.build()
}

fn amazon(bucket: &str, settings: &Settings) -> object_store::Result<impl ObjectStore> {
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
    if let Some(endpoint) = settings.get("AWS_ENDPOINT_URL").or(settings.get("STORAGE_ENDPOINT")) {
        builder = builder.with_endpoint(endpoint).with_allow_http(true);
    }
    builder.build()
}
