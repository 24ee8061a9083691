//! Where a warehouse lies, and the files of its tables there: a folder of this machine or a bucket.

mod bucket;
mod folder;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use deltalake::DeltaTableError;
use deltalake::logstore::LogStoreRef;
use tokio::runtime::Handle;

use self::bucket::BucketFiles;
use self::folder::FolderFiles;
use crate::bucket::Location;
use crate::clock::Micros;
use crate::lease::Lease;

/// Where the log lies, relative to its table.
pub(super) const LOG: &str = "_delta_log";
/// Where files of loads wait until they are shown, relative to their table; names that begin like this are no data to
/// any engine.
pub(super) const STAGING: &str = "_load";

/// The files of one table, or those of the warehouse beside its tables. Paths are relative to it, with `/` on every
/// system.
///
/// What is written stands, through a crash too, when the call returns. Every call blocks: none belongs on a thread of
/// the async runtime.
pub(super) trait Files: fmt::Debug + Send + Sync {
    /// Makes room for the log of a table that is not there yet.
    fn prepare(&self) -> io::Result<()>;

    /// Writes data files, under names that nobody has used.
    fn store(&self, files: Vec<NewFile>) -> io::Result<()>;

    /// Writes an entry of the log: whole or not at all, and `AlreadyExists` where another writer has made it.
    fn create(&self, path: &str, bytes: Bytes) -> io::Result<()>;

    /// Writes a file in the place of what is there; readers find either.
    fn replace(&self, path: &str, bytes: Bytes) -> io::Result<()>;

    /// Gives files new paths, which nobody else uses; one that has it already is no error.
    fn rename(&self, paths: &[(String, String)]) -> io::Result<()>;

    /// The content of a file.
    fn read(&self, path: &str) -> io::Result<Bytes>;

    /// Whether there is such a file.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// Removes files; one that is gone already is no error.
    fn delete(&self, paths: &[String]) -> io::Result<()>;

    /// Every data file, known to the log or not, without those that are staged.
    fn data_files(&self) -> io::Result<Vec<String>>;

    /// Every file below [`STAGING`].
    fn staged_files(&self) -> io::Result<Vec<String>>;

    /// Removes staged files.
    fn unstage(&self, paths: &[String]) -> io::Result<()> {
        self.delete(paths)
    }

    /// Every file of the log.
    fn log_entries(&self) -> io::Result<Vec<LogEntry>>;

    /// Makes a checkpoint that delta-rs wrote outlive a crash, before anything that it covers is removed.
    fn seal_checkpoint(&self, version: u64) -> io::Result<()>;

    /// The table for delta-rs; `None` where there surely is none.
    fn log_store(&self) -> Result<Option<LogStoreRef>, DeltaTableError>;
}

/// A file to be written.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) path: String,
    pub(super) bytes: Bytes,
}

/// A file of the log.
#[derive(Debug)]
pub(super) struct LogEntry {
    pub(super) name: String,
    /// When it was written, by the clock of where it lies.
    pub(super) modified: Option<Micros>,
}

/// Where a warehouse lies.
#[derive(Clone)]
pub(super) enum Place {
    Folder(PathBuf),
    /// The runtime is the one that the bucket's connections belong to.
    Bucket(Location, Handle),
}

impl Place {
    /// A bucket, used on the runtime that this is called on.
    pub(super) fn bucket(location: Location) -> io::Result<Self> {
        Ok(Self::Bucket(location, Handle::try_current().map_err(io::Error::other)?))
    }

    /// The files of a table. A writer in a bucket shows its lease.
    pub(super) fn table(&self, dataset: &str, name: &str, lease: Option<&Arc<Lease>>) -> Arc<dyn Files> {
        self.files(&[dataset, name], lease)
    }

    /// The files beside the tables.
    pub(super) fn root(&self, lease: Option<&Arc<Lease>>) -> Arc<dyn Files> {
        self.files(&[], lease)
    }

    fn files(&self, below: &[&str], lease: Option<&Arc<Lease>>) -> Arc<dyn Files> {
        match self {
            Self::Folder(root) => {
                Arc::new(FolderFiles::new(below.iter().fold(root.clone(), |path, part| path.join(part))))
            }
            Self::Bucket(location, runtime) => {
                let path = below.iter().fold(location.path.clone(), |path, part| path.join(*part));
                Arc::new(BucketFiles::new(location, path, runtime.clone(), lease.cloned()))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(root) => root.display().fmt(f),
            Self::Bucket(location, _) => f.write_str(&location.uri),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}
