//! Buckets by their address: a path, `gs://bucket/prefix`, `s3://bucket/prefix`.

mod folder;
mod open;

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

pub use folder::Folder;
pub use open::{local, open};

use crate::durable;

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

impl Location {
    /// Whether objects can be put here: a folder is tried, of a bucket nothing is asked.
    pub async fn ready(&self) -> Result<(), String> {
        let Some(folder) = local(&self.uri).map(FilePath::to_path_buf) else { return Ok(()) };
        let probed = tokio::task::spawn_blocking(move || durable::probe(&folder)).await.map_err(std::io::Error::other);
        probed.flatten().map_err(|error| format!("{} cannot be written: {error}", self.uri))
    }
}
