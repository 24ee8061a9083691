//! The warehouse as a folder of Delta Lake tables, one a schema: `<root>/<dataset>/<table>`.
//!
//! [`DeltaSink`] is the one writer of a folder, [`Warehouse`] reads it with SQL, in the same process or another, while
//! the writer runs. A commit is a file of its own in the table's log, so readers see whole appends only.
//!
//! Layout: tables with time partitioning are partitioned by a hidden column [`_partition_date`](Warehouse) (Parquet
//! files compressed with zstd, sorted by the clustering columns). Every append adds one small file a partition; merges
//! in the background, driven by appends, keep their number small, and files that no version needs are removed after
//! [`Options::file_retention`].

pub mod arrow;
mod compact;
mod data_file;
mod dedup;
mod layout;
mod log;
mod query;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

pub use self::query::{QueryError, Warehouse};
use self::table::Table;
use self::worker::Worker;
use super::{Batch, Outcome, Sink};
use crate::clock::{Clock, Micros, SECOND};
use crate::schema::Plan;

/// Held by the writer of a warehouse.
const LOCK_FILE: &str = ".writer.lock";

/// How a warehouse is kept in order.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many files of similar size a merge takes; also by how much sizes of one class differ at most.
    pub merge_at: usize,
    /// Files of this many rows are not merged any more.
    pub full_file_rows: u64,
    /// A partition without an append for so long is merged into as few files as possible.
    pub settle_after: Micros,
    /// How long files outlive the last version that needed them, so that running queries find them.
    pub file_retention: Micros,
    /// How long log entries outlive the checkpoint that covers them.
    pub log_retention: Micros,
    /// Commits from one checkpoint to the next.
    pub checkpoint_every: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            merge_at: 8,
            full_file_rows: 128 * 1024,
            settle_after: 600 * SECOND,
            file_retention: 600 * SECOND,
            log_retention: 120 * SECOND,
            checkpoint_every: 100,
        }
    }
}

/// Why a warehouse cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Another writer has the folder.
    #[error("{}: another process writes to this warehouse; stop it or choose another folder", .0.display())]
    Locked(PathBuf),
    /// The disk.
    #[error("{place}: {doing}: {source}")]
    Io {
        /// Folder or table.
        place: String,
        /// What was attempted.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The table on disk and the schema do not fit.
    #[error("table {table}: {reason}")]
    Schema {
        /// `dataset.table`.
        table: String,
        /// What differs and what to do.
        reason: String,
    },
    /// The log cannot be read.
    #[error("table {table}: {source}")]
    Table {
        /// `dataset.table`.
        table: String,
        /// What delta-rs said.
        source: Box<deltalake::DeltaTableError>,
    },
    /// Another engine commits to the table all the time.
    #[error("table {table}: another engine committed first, again and again")]
    Contended {
        /// `dataset.table`.
        table: String,
    },
    /// The work was stopped: the runtime ends, or it panicked.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

/// Appends to the tables of one folder; see [`Sink`].
///
/// `Done` means that the rows stand on disk, synced, in a committed version. There is one writer a folder.
#[derive(Debug)]
pub struct DeltaSink {
    root: PathBuf,
    clock: Clock,
    options: Options,
    tables: Mutex<HashMap<String, Arc<Table>>>,
    worker: Arc<Worker>,
    /// Unlocked when it is closed, by a crash too.
    _lock: File,
}

impl DeltaSink {
    /// Takes the folder `root` for writing and creates it where it is missing.
    pub fn open(root: &Path, clock: Clock) -> Result<Self, DeltaError> {
        Self::open_with(root, clock, Options::default())
    }

    /// [`DeltaSink::open`] with other than the usual options.
    pub fn open_with(root: &Path, clock: Clock, options: Options) -> Result<Self, DeltaError> {
        let failed = |doing| move |source| DeltaError::Io { place: root.display().to_string(), doing, source };
        let root = std::path::absolute(root).map_err(failed("finding the warehouse"))?;
        log::create_folder(&root).map_err(failed("creating the warehouse"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(LOCK_FILE))
            .map_err(failed("opening the lock of the warehouse"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(DeltaError::Locked(root)),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(failed("locking the warehouse")(source));
            }
        }
        let worker = Arc::new(Worker::start().map_err(failed("starting a thread"))?);
        Ok(Self { root, clock, options, tables: Mutex::default(), worker, _lock: lock })
    }

    /// Creates the plan's table where it is missing and adds columns that it lacks.
    pub async fn ensure(&self, plan: &Arc<Plan>) -> Result<(), DeltaError> {
        self.table(plan).ensure(plan).await
    }

    /// Waits until no table needs care: merges, checkpoints and removals that are due are done.
    pub async fn settle(&self) {
        let tables: Vec<_> = self.tables.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for table in tables {
            table.settle().await;
        }
    }

    fn table(&self, plan: &Plan) -> Arc<Table> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Table::new(&self.root, plan, self.clock.clone(), self.options.clone(), Arc::clone(&self.worker)))
        };
        Arc::clone(tables.entry(plan.table.full_name()).or_insert_with(new))
    }
}

#[async_trait]
impl Sink for DeltaSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        if batch.rows.is_empty() {
            return Vec::new();
        }
        let table = self.table(&batch.plan);
        match table.append(batch).await {
            Ok(outcomes) => {
                table.look_after();
                outcomes
            }
            Err(error) => vec![Outcome::Retry(error.to_string()); batch.rows.len()],
        }
    }

    async fn ready(&self) -> Result<(), String> {
        let probe = self.root.join(format!(".probe-{}", uuid::Uuid::new_v4()));
        let place = self.root.display().to_string();
        table::blocking(move || std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)))
            .await
            .and_then(|written| {
                written.map_err(|source| DeltaError::Io { place, doing: "writing to the warehouse", source })
            })
            .map_err(|error| error.to_string())
    }
}
