//! A table as objects of a bucket, written while the lease is held.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use deltalake::DeltaTableError;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode};
use tokio::runtime::Handle;

use super::{Files, LOG, LogEntry, NewFile, STAGING};
use crate::bucket::Location;
use crate::lease::Lease;

/// How many objects are written or removed at once.
const AT_ONCE: usize = 16;

/// The objects of a table.
pub(super) struct BucketFiles {
    store: Arc<dyn ObjectStore>,
    table: Path,
    /// `scheme://bucket/path` of the table.
    address: String,
    runtime: Handle,
    /// A reader has none.
    lease: Option<Arc<Lease>>,
}

impl BucketFiles {
    pub(super) fn new(location: &Location, table: Path, runtime: Handle, lease: Option<Arc<Lease>>) -> Self {
        let (scheme, rest) = location.uri.split_once("://").unwrap_or(("memory", ""));
        let bucket = rest.split('/').next().unwrap_or_default();
        let address = format!("{scheme}://{bucket}/{table}");
        Self { store: Arc::clone(&location.store), table, address, runtime, lease }
    }

    fn path(&self, path: &str) -> Path {
        path.split('/').fold(self.table.clone(), Path::join)
    }

    /// Refuses whoever does not hold the warehouse, before anything in it changes.
    async fn hold(&self) -> io::Result<()> {
        match &self.lease {
            Some(lease) => lease.hold().await,
            None => Err(io::Error::other("opened for reading")),
        }
    }

    async fn create(&self, path: &Path, bytes: Bytes) -> io::Result<()> {
        self.hold().await?;
        let Err(error) = self.store.put_opts(path, bytes.clone().into(), PutMode::Create.into()).await else {
            return Ok(());
        };
        // The request may have been carried out although its answer was lost, or have met what it wrote the first time.
        let there = match self.store.get(path).await {
            Ok(found) => found.bytes().await,
            Err(unread) => Err(unread),
        };
        match (there, error) {
            (Ok(there), _) if there == bytes => Ok(()),
            (_, object_store::Error::AlreadyExists { .. }) => Err(io::ErrorKind::AlreadyExists.into()),
            (_, error) => Err(error.into()),
        }
    }

    async fn list(&self, folder: &Path) -> io::Result<Vec<object_store::ObjectMeta>> {
        Ok(self.store.list(Some(folder)).try_collect().await?)
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.table)?.map(|part| part.as_ref().to_string()).collect();
        Some(parts.join("/"))
    }
}

impl Files for BucketFiles {
    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn store(&self, files: Vec<NewFile>) -> io::Result<()> {
        self.runtime.block_on(async {
            self.hold().await?;
            let put = |file: NewFile| async move { self.store.put(&self.path(&file.path), file.bytes.into()).await };
            Ok(stream::iter(files).map(put).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?)
        })
    }

    fn create(&self, path: &str, bytes: Bytes) -> io::Result<()> {
        self.runtime.block_on(self.create(&self.path(path), bytes))
    }

    fn replace(&self, path: &str, bytes: Bytes) -> io::Result<()> {
        self.store(vec![NewFile { path: path.to_string(), bytes }])
    }

    /// By copies; whoever staged the files removes them.
    fn rename(&self, paths: &[(String, String)]) -> io::Result<()> {
        let copy = |(from, to): (Path, Path)| async move {
            match self.store.copy(&from, &to).await {
                Err(object_store::Error::NotFound { .. }) => self.store.head(&to).await.map(|_| ()),
                copied => copied,
            }
        };
        let paths: Vec<_> = paths.iter().map(|(from, to)| (self.path(from), self.path(to))).collect();
        self.runtime.block_on(async {
            self.hold().await?;
            Ok(stream::iter(paths).map(copy).buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?)
        })
    }

    fn read(&self, path: &str) -> io::Result<Bytes> {
        let path = self.path(path);
        Ok(self.runtime.block_on(async { self.store.get(&path).await?.bytes().await })?)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.runtime.block_on(self.store.head(&self.path(path))) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn delete(&self, paths: &[String]) -> io::Result<()> {
        self.runtime.block_on(async {
            self.hold().await?;
            let paths = stream::iter(paths.iter().map(|path| Ok(self.path(path))).collect::<Vec<_>>()).boxed();
            let gone = |deleted: object_store::Result<Path>| async move {
                match deleted {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            };
            self.store.delete_stream(paths).map(Ok).try_for_each(gone).await
        })
    }

    fn data_files(&self) -> io::Result<Vec<String>> {
        let objects = self.runtime.block_on(self.list(&self.table))?;
        let paths = objects.iter().filter_map(|object| self.relative(&object.location));
        let is_data =
            |path: &String| path.ends_with(".parquet") && !path.starts_with(LOG) && !path.starts_with(STAGING);
        Ok(paths.filter(is_data).collect())
    }

    fn staged_files(&self) -> io::Result<Vec<String>> {
        let objects = self.runtime.block_on(self.list(&self.path(STAGING)))?;
        Ok(objects.iter().filter_map(|object| self.relative(&object.location)).collect())
    }

    fn log_entries(&self) -> io::Result<Vec<LogEntry>> {
        let objects = self.runtime.block_on(self.list(&self.path(LOG)))?;
        let entry = |object: object_store::ObjectMeta| {
            let name = object.location.filename()?.to_string();
            Some(LogEntry { name, modified: Some(object.last_modified.timestamp_micros()) })
        };
        Ok(objects.into_iter().filter_map(entry).collect())
    }

    fn seal_checkpoint(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn log_store(&self) -> Result<Option<LogStoreRef>, DeltaTableError> {
        let invalid = |_| DeltaTableError::InvalidTableLocation(self.address.clone());
        let table = PrefixStore::new(Arc::clone(&self.store), self.table.clone());
        let address = self.address.parse().map_err(invalid)?;
        // Not by the address: delta-rs knows no `gs://` or `s3://` by itself, and the store is there already.
        let store = default_logstore(Arc::new(table), Arc::clone(&self.store), &address, &StorageConfig::default());
        Ok(Some(store))
    }
}

impl fmt::Debug for BucketFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketFiles({})", self.address)
    }
}
