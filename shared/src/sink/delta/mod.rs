//! The warehouse as a folder or bucket of Delta Lake tables, one a schema: `<root>/<dataset>/<table>`.
//!
//! [`DeltaSink`] is the one writer of a warehouse, [`Warehouse`] reads it with SQL, in the same process or another, while
//! the writer runs. A commit is a file of its own in the table's log, so readers see whole appends only.
//!
//! A folder is locked by its writer and takes a commit an append. In a bucket the writer holds a lease, and a table's
//! commits are [`Options::commit_interval`] apart: what is appended in between becomes one commit.
//!
//! Layout: tables with time partitioning are partitioned by a hidden column [`_partition_date`](Warehouse) (Parquet
//! files compressed with zstd, sorted by the clustering columns). Every append adds one small file a partition; merges
//! in the background, driven by appends, keep their number small, and files that no version needs are removed after
//! [`Options::file_retention`]. From partitions that are closed exact copies of rows are removed.
//!
//! [`DeltaSink`] is a [`Loader`](crate::load::Loader) as well. A load stages large files, in the order of its rows, and
//! shows them in all its tables at once: to [`Warehouse`]. Engines that read a table's log by themselves see its new
//! version a moment before or after those of the other tables.

pub mod arrow;
mod check;
mod compact;
mod copies;
mod data_file;
mod dedup;
mod files;
mod gather;
mod layout;
mod load;
mod log;
mod query;
#[cfg(any(test, feature = "contract"))]
#[expect(clippy::unwrap_used, reason = "for checks, not a part of any program")]
pub mod rows;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod views;
mod worker;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use self::files::Place;
use self::load::switch::Switch;
pub use self::query::{QueryError, Warehouse};
use self::table::Table;
use self::worker::Worker;
use super::{Batch, Outcome, Sink};
use crate::bucket::Location;
use crate::clock::{Clock, Micros, SECOND};
use crate::durable;
use crate::lease::{Lease, LeaseError};
use crate::schema::Plan;
#[cfg(feature = "buckets")]
use crate::settings::Settings;

/// Held by the writer of a folder.
const LOCK_FILE: &str = ".writer.lock";
/// Names the writer of a bucket.
const LEASE_FILE: &str = ".writer.lease";

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
    /// In a bucket: commits to one table are at least so far apart. A folder takes them as they come.
    pub commit_interval: Micros,
    /// In a bucket: how long a writer that does not append keeps others out.
    pub lease_term: Micros,
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
            commit_interval: SECOND,
            lease_term: 60 * SECOND,
        }
    }
}

/// Why a warehouse cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Another writer has the folder.
    #[error("{}: another process writes to this warehouse; stop it or choose another folder", .0.display())]
    Locked(PathBuf),
    /// Another writer has the bucket.
    #[error(
        "{place}: {owner} writes to this warehouse since {since} and holds its lease until {expires}; stop it, wait until \
         then, or choose another place"
    )]
    Leased {
        /// Address of the warehouse.
        place: String,
        /// Name and id of the other writer.
        owner: String,
        /// When it took the warehouse.
        since: String,
        /// When others may take it, unless it is renewed.
        expires: String,
    },
    /// The address cannot be used.
    #[error("{0}")]
    Place(String),
    /// The disk or the bucket.
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
    /// A file of the log is not as it was written.
    #[error(
        "table {table}: {fault}; put the file back from a copy, or move {folder} away: the table then begins empty, and \
         `contextflow backfill --source archive` loads its rows again"
    )]
    Damaged {
        /// `dataset.table`.
        table: String,
        /// Which file, and what is wrong with it.
        fault: String,
        /// The folder of the table.
        folder: String,
    },
    /// The log cannot be read.
    #[error("table {table}: {}", first_line(source))]
    Table {
        /// `dataset.table`.
        table: String,
        /// What delta-rs said.
        source: Box<deltalake::DeltaTableError>,
    },
    /// A load cannot go on.
    #[error("load {run}: {reason}")]
    Load {
        /// The run.
        run: String,
        /// What is in the way and what to do.
        reason: String,
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

/// What the Delta library says without the backtrace that it adds.
fn first_line(error: &deltalake::DeltaTableError) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_end().to_string()
}

/// Appends to the tables of one folder or bucket; see [`Sink`].
///
/// `Done` means that the rows stand on disk, synced, or in the bucket, in a committed version. There is one writer a
/// warehouse.
#[derive(Debug)]
pub struct DeltaSink {
    place: Place,
    clock: Clock,
    options: Options,
    tables: Mutex<HashMap<String, Arc<Table>>>,
    worker: Arc<Worker>,
    right: Arc<Right>,
    switch: Arc<Switch>,
}

/// The right to write a warehouse.
#[derive(Debug)]
enum Right {
    /// Of a folder; unlocked when it is closed, by a crash too. Its file stays where it is for as long as the folder is
    /// the one that was opened.
    Lock { root: PathBuf, place: durable::Place, _file: File },
    /// Of a bucket.
    Lease(Arc<Lease>),
}

impl DeltaSink {
    /// Takes the warehouse at `uri` for writing: a path, `file://`, `gs://bucket/prefix` or `s3://bucket/prefix`.
    ///
    /// In a bucket the other writer's error names this one as the environment does: `K_REVISION` or `HOSTNAME`.
    #[cfg(feature = "buckets")]
    pub async fn open_uri(uri: &str, settings: &Settings, clock: Clock) -> Result<Self, DeltaError> {
        let options = Options::default();
        let folder = uri.strip_prefix("file://").or_else(|| (!uri.contains("://")).then_some(uri));
        if let Some(folder) = folder {
            return Self::open_with(Path::new(folder), clock, options);
        }
        let location = crate::bucket::open(uri, settings).map_err(DeltaError::Place)?;
        let writer = settings.get("K_REVISION").or(settings.get("HOSTNAME")).unwrap_or("a process");
        Self::open_bucket(location, writer, clock, options).await
    }

    /// Takes a warehouse in a bucket; `writer` is how a second one is told who has it.
    ///
    /// To be called on the runtime that appends run on.
    pub async fn open_bucket(
        location: Location,
        writer: &str,
        clock: Clock,
        options: Options,
    ) -> Result<Self, DeltaError> {
        let failed = |doing| {
            let place = location.uri.clone();
            move |source| DeltaError::Io { place, doing, source }
        };
        let worker = Worker::start().map_err(failed("starting a thread"))?;
        let place = Place::bucket(location.clone()).map_err(failed("finding the runtime"))?;
        let lease = Lease::take(&location, LEASE_FILE, writer, clock.clone(), options.lease_term).await;
        let lease = lease.map_err(|error| match error {
            LeaseError::Held { owner, since, expires } => {
                DeltaError::Leased { place: location.uri.clone(), owner, since, expires }
            }
            LeaseError::Contended => DeltaError::Contended { table: location.uri.clone() },
            LeaseError::Store(source) => failed("taking the lease of the warehouse")(source.into()),
        })?;
        Ok(Self::new(place, Right::Lease(Arc::new(lease)), worker, clock, options))
    }

    /// Takes the folder `root` for writing and creates it where it is missing.
    pub fn open(root: &Path, clock: Clock) -> Result<Self, DeltaError> {
        Self::open_with(root, clock, Options::default())
    }

    /// [`DeltaSink::open`] with other than the usual options.
    pub fn open_with(root: &Path, clock: Clock, mut options: Options) -> Result<Self, DeltaError> {
        let failed = |doing| move |source| DeltaError::Io { place: root.display().to_string(), doing, source };
        let root = std::path::absolute(root).map_err(failed("finding the warehouse"))?;
        durable::create_folder(&root).map_err(failed("creating the warehouse"))?;
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
        check::check(&root)?;
        let place = durable::Place::of(&root.join(LOCK_FILE)).map_err(failed("finding the lock of the warehouse"))?;
        let worker = Worker::start().map_err(failed("starting a thread"))?;
        options.commit_interval = 0;
        Ok(Self::new(Place::Folder(root.clone()), Right::Lock { root, place, _file: lock }, worker, clock, options))
    }

    fn new(place: Place, right: Right, worker: Worker, clock: Clock, options: Options) -> Self {
        let switch = Arc::new(Switch::new(place.to_string(), place.root(right.lease())));
        let (worker, right) = (Arc::new(worker), Arc::new(right));
        Self { place, clock, options, tables: Mutex::default(), worker, right, switch }
    }

    /// Creates the plan's table where it is missing and adds columns that it lacks.
    pub async fn ensure(&self, plan: &Arc<Plan>) -> Result<(), DeltaError> {
        self.recover().await?;
        self.table(&plan.table.dataset, &plan.table.name).ensure(plan).await
    }

    /// Waits until no table needs care: merges, checkpoints and removals that are due are done.
    pub async fn settle(&self) {
        let tables: Vec<_> = self.tables.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for table in tables {
            table.settle().await;
        }
    }

    /// Hands a bucket to the next writer before the lease ends by itself; appends are refused from now on. A folder is
    /// free when the sink is dropped.
    pub async fn close(&self) -> Result<(), DeltaError> {
        let Right::Lease(lease) = &*self.right else { return Ok(()) };
        lease.release().await.map_err(|source| self.io("handing over the lease of the warehouse", source))
    }

    fn io(&self, doing: &'static str, source: io::Error) -> DeltaError {
        DeltaError::Io { place: self.place.to_string(), doing, source }
    }

    /// Completes what a load that was killed has begun, before anything else is written. Nothing is written to a folder
    /// that is not the one that was opened any more.
    async fn recover(&self) -> Result<(), DeltaError> {
        self.right.verify().map_err(|source| self.io("writing to the warehouse", source))?;
        self.switch.recover(|change| self.table(&change.dataset, &change.name)).await
    }

    fn table(&self, dataset: &str, name: &str) -> Arc<Table> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let full_name = format!("{dataset}.{name}");
        let new = || {
            let files = self.place.table(dataset, name, self.right.lease());
            let (clock, options) = (self.clock.clone(), self.options.clone());
            Arc::new(Table::new(full_name.clone(), files, clock, options, Arc::clone(&self.worker)))
        };
        Arc::clone(tables.entry(full_name.clone()).or_insert_with(new))
    }
}

impl Right {
    /// Fails where the folder is not the one that was opened any more. A lease is looked at with every write.
    fn verify(&self) -> io::Result<()> {
        match self {
            Self::Lock { place, .. } => place.verify(),
            Self::Lease(_) => Ok(()),
        }
    }

    fn lease(&self) -> Option<&Arc<Lease>> {
        match self {
            Self::Lock { .. } => None,
            Self::Lease(lease) => Some(lease),
        }
    }
}

#[async_trait]
impl Sink for DeltaSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        if batch.rows.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.recover().await {
            return vec![Outcome::Retry(error.to_string()); batch.rows.len()];
        }
        let table = self.table(&batch.plan.table.dataset, &batch.plan.table.name);
        let outcomes = table.append(batch).await;
        // Not before a commit of this writer: until then a former one may still be under way with files of its own.
        if outcomes.contains(&Outcome::Done) {
            table.look_after();
        }
        outcomes
    }

    async fn ready(&self) -> Result<(), String> {
        let reached = match &*self.right {
            Right::Lease(lease) => lease.verify().await,
            Right::Lock { root, place, .. } => {
                let (root, place) = (root.clone(), place.clone());
                let written = table::blocking(move || place.verify().and_then(|()| durable::probe(&root)));
                written.await.map_err(|error| error.to_string())?
            }
        };
        reached.map_err(|source| self.io("writing to the warehouse", source).to_string())
    }

    async fn close(&self) -> Result<(), String> {
        Self::close(self).await.map_err(|error| error.to_string())
    }
}
