//! Buckets by their address: a path, `gs://bucket/prefix`, `s3://bucket/prefix`.

mod open;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

pub use open::{local, open, open_for_requests};

/// A place in a bucket or folder.
#[derive(Clone)]
pub struct Location {
    /// The bucket, or the whole file system.
    pub store: Arc<dyn ObjectStore>,
    /// Prefix or object in it.
    pub path: Path,
    /// The address as it was given.
    pub uri: String,
}
