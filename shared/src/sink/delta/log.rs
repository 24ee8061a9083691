//! The transaction log of one table: atomic commits, and the state that the log describes.
//!
//! Commits are written here and not by delta-rs because a commit must be on disk when it is acknowledged (its store has
//! no fsync), must cost the same after a day as at the start, and takes its time from the caller.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;

use deltalake::arrow::datatypes::{Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use deltalake::kernel::{Action, Add, CommitInfo, Metadata, Remove, Transaction};
use deltalake::{DeltaTable, DeltaTableError};
use futures::TryStreamExt as _;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::data_file::{Encoded, PARTITION_DATE, Part};
use super::files::{Files, LOG, NewFile};
use crate::clock::Micros;

/// A data file that the table consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Relative to the table.
    pub(super) path: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// When its newest row came.
    pub(super) added_at: Micros,
}

/// What the log says, kept in memory by the one writer.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) metadata: Metadata,
    /// The columns of data files: the table's without [`PARTITION_DATE`].
    pub(super) schema: SchemaRef,
    pub(super) files: BTreeMap<Part, Vec<DataFile>>,
    /// Files that no version needs any more, and since when; the oldest first.
    pub(super) removed: VecDeque<(Micros, String)>,
    /// Commits since the last checkpoint.
    pub(super) since_checkpoint: u64,
}

/// Why a commit was not made.
#[derive(Debug)]
pub(super) enum CommitError {
    /// Another writer took the version.
    Taken,
    /// The disk or the bucket.
    Io(io::Error),
}

/// The entry of a version.
pub(super) fn version_file(version: u64) -> String {
    format!("{LOG}/{version:020}.json")
}

/// Writes one version of the log. Readers see all of it or nothing, and it stands when this returns.
pub(super) fn commit(
    table: &dyn Files,
    version: u64,
    operation: &str,
    now: Micros,
    actions: Vec<Action>,
) -> Result<(), CommitError> {
    let info = CommitInfo {
        timestamp: Some(now / 1_000),
        operation: Some(operation.into()),
        engine_info: Some(concat!("contextflow:", env!("CARGO_PKG_VERSION")).into()),
        is_blind_append: Some(operation == "WRITE"),
        ..CommitInfo::default()
    };
    let mut lines = Vec::with_capacity(4096);
    for action in std::iter::once(Action::CommitInfo(info)).chain(actions) {
        serde_json::to_writer(&mut lines, &action).map_err(|error| CommitError::Io(error.into()))?;
        lines.push(b'\n');
    }
    table.create(&version_file(version), lines.into()).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CommitError::Taken,
        _ => CommitError::Io(error),
    })
}

/// A data file under a new name, and what the log is to say of it.
pub(super) fn new_file(data: Encoded, data_change: bool, now: Micros) -> (NewFile, Add) {
    let folder = data.part.folder();
    let name = format!("part-{}.zstd.parquet", Uuid::new_v4());
    let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
    let add = Add {
        path: path.clone(),
        partition_values: data.part.values(),
        size: i64::try_from(data.bytes.len()).unwrap_or(i64::MAX),
        modification_time: now / 1_000,
        data_change,
        stats: Some(data.stats),
        ..Add::default()
    };
    (NewFile { path, bytes: data.bytes.into() }, add)
}

/// The tombstone of a file; without `data_change` its rows live on in another.
pub(super) fn tombstone(part: Part, file: &DataFile, data_change: bool, now: Micros) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change,
        deletion_timestamp: Some(now / 1_000),
        extended_file_metadata: Some(true),
        partition_values: Some(part.values()),
        size: i64::try_from(file.bytes).ok(),
        ..Remove::default()
    }
}

/// The version of the newest checkpoint.
fn last_checkpoint(table: &dyn Files) -> Option<u64> {
    let hint = table.read(&format!("{LOG}/_last_checkpoint")).ok()?;
    serde_json::from_slice::<serde_json::Value>(&hint).ok()?.get("version")?.as_u64()
}

/// Opens a table with delta-rs, at some version or the newest; `None` where there is none.
pub(super) async fn open(table: &dyn Files, version: Option<u64>) -> Result<Option<DeltaTable>, DeltaTableError> {
    let Some(store) = table.log_store()? else { return Ok(None) };
    let mut table = DeltaTable::new(store);
    let loaded = match version {
        Some(version) => table.load_version(version).await,
        None => table.load().await,
    };
    match loaded {
        Ok(()) => Ok(Some(table)),
        Err(DeltaTableError::NotATable(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Since when no version needs the files `left`, the oldest first: what an earlier run removed or a crash left behind.
/// Where the log does not say, it starts now.
async fn since_when(
    table: &DeltaTable,
    left: Vec<String>,
    now: Micros,
) -> Result<VecDeque<(Micros, String)>, DeltaTableError> {
    let mut since = HashMap::new();
    if !left.is_empty() {
        let store = table.log_store();
        let mut tombstones = table.snapshot()?.all_tombstones(&*store);
        while let Some(tombstone) = tombstones.try_next().await? {
            let removed_at = tombstone.deletion_timestamp().map_or(now, |millis| millis * 1_000);
            since.insert(tombstone.path().into_owned(), removed_at);
        }
    }
    let mut removed: Vec<_> =
        left.into_iter().map(|path| (since.get(&path).copied().unwrap_or(now).min(now), path)).collect();
    removed.sort_by_key(|(since, _)| *since);
    Ok(removed.into())
}

/// Whether a version of the table holds the rows of the load `run`.
pub(super) async fn holds_load(table: &dyn Files, run: &str) -> Result<bool, DeltaTableError> {
    let Some(opened) = open(table, None).await? else { return Ok(false) };
    let store = opened.log_store();
    Ok(opened.snapshot()?.transaction_version(&*store, load_id(run)).await?.is_some())
}

/// The mark of the version that shows the load `run`.
pub(super) fn load_mark(run: &str, now: Micros) -> Transaction {
    Transaction { app_id: load_id(run), version: 0, last_updated: Some(now / 1_000) }
}

fn load_id(run: &str) -> String {
    format!("contextflow-load-{run}")
}

impl State {
    /// A table that was just created.
    pub(super) fn new(metadata: Metadata, schema: SchemaRef) -> Self {
        Self { version: 0, metadata, schema, files: BTreeMap::new(), removed: VecDeque::new(), since_checkpoint: 0 }
    }

    /// Reads the newest version; `None` where there is no table.
    pub(super) async fn load(table: &Arc<dyn Files>, now: Micros) -> Result<Option<Self>, DeltaTableError> {
        let Some(opened) = open(&**table, None).await? else { return Ok(None) };
        let files = Arc::clone(table);
        let found = spawn_blocking(move || (last_checkpoint(&*files), files.data_files()));
        let (checkpoint, found) = found.await.map_err(io::Error::other)?;
        let snapshot = opened.snapshot()?.snapshot();
        let all: Schema = snapshot.schema().as_ref().try_into_arrow()?;
        let columns: Vec<_> = all.fields().iter().filter(|field| field.name() != PARTITION_DATE).cloned().collect();
        let mut state = Self::new(snapshot.metadata().clone(), Arc::new(Schema::new(columns)));
        state.version = snapshot.version();
        state.since_checkpoint = state.version - checkpoint.unwrap_or(0).min(state.version);
        for view in snapshot.log_data().iter() {
            let file = DataFile {
                path: view.path().into_owned(),
                rows: view.num_records().map_or(0, |rows| rows as u64),
                bytes: u64::try_from(view.size()).unwrap_or(0),
                added_at: view.modification_time() * 1_000,
            };
            state.files.entry(Part::from_values(&view.partition_values_map())).or_default().push(file);
        }
        for files in state.files.values_mut() {
            files.sort_by_key(|file| file.added_at);
        }
        let live: HashSet<&str> = state.files.values().flatten().map(|file| file.path.as_str()).collect();
        let left: Vec<_> = found?.into_iter().filter(|path| !live.contains(path.as_str())).collect();
        state.removed = since_when(&opened, left, now).await?;
        Ok(Some(state))
    }

    /// Takes over a file that the newest version added.
    pub(super) fn add(&mut self, part: Part, add: &Add, rows: u64, added_at: Micros) {
        let bytes = u64::try_from(add.size).unwrap_or(0);
        // An append that was under way when the log was read again looked like a leftover.
        self.removed.retain(|(_, path)| *path != add.path);
        self.files.entry(part).or_default().push(DataFile { path: add.path.clone(), rows, bytes, added_at });
    }
}
