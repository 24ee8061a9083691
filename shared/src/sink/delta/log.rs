//! The transaction log of one table: durable files, atomic commits, and the state that the log describes.
//!
//! Commits are written here and not by delta-rs because a commit must be on disk when it is acknowledged (its store has
//! no fsync), must cost the same after a day as at the start, and takes its time from the caller.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltalake::arrow::datatypes::{Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow as _;
use deltalake::kernel::{Action, Add, CommitInfo, Metadata, Remove};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use uuid::Uuid;

use super::data_file::{Encoded, PARTITION_DATE, Part};
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
    /// The disk.
    Io(io::Error),
}

/// Where the log of a table lies.
pub(super) fn log_folder(table: &Path) -> PathBuf {
    table.join("_delta_log")
}

pub(super) fn version_file(table: &Path, version: u64) -> PathBuf {
    log_folder(table).join(format!("{version:020}.json"))
}

/// Creates a file that outlives a crash once its folder is synced as well.
pub(super) fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the entries of a folder outlive a crash.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    // Only Unix opens folders as files; elsewhere the file system journals them.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Creates a folder and its missing parents, durably.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// Writes one version of the log. Readers see all of it or nothing, and it stands on disk when this returns.
pub(super) fn commit(
    table: &Path,
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
    let folder = log_folder(table);
    let staged = folder.join(format!("_commit_{}.json.tmp", Uuid::new_v4()));
    write_durable(&staged, &lines).map_err(CommitError::Io)?;
    // A link, unlike a rename, never replaces a version that another writer made.
    let linked = fs::hard_link(&staged, version_file(table, version));
    let _ = fs::remove_file(&staged);
    match linked {
        Ok(()) => sync_folder(&folder).map_err(CommitError::Io),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(CommitError::Taken),
        Err(error) => Err(CommitError::Io(error)),
    }
}

/// Puts a data file on disk under a new name; the log does not know it yet.
pub(super) fn store(table: &Path, data: &Encoded, data_change: bool, now: Micros) -> io::Result<Add> {
    let folder = data.part.folder();
    let name = format!("part-{}.zstd.parquet", Uuid::new_v4());
    let absolute = table.join(&folder);
    create_folder(&absolute)?;
    write_durable(&absolute.join(&name), &data.bytes)?;
    sync_folder(&absolute)?;
    Ok(Add {
        path: if folder.is_empty() { name } else { format!("{folder}/{name}") },
        partition_values: data.part.values(),
        size: i64::try_from(data.bytes.len()).unwrap_or(i64::MAX),
        modification_time: now / 1_000,
        data_change,
        stats: Some(data.stats.clone()),
        ..Add::default()
    })
}

/// The tombstone of a file whose rows live on in another.
pub(super) fn tombstone(part: Part, file: &DataFile, now: Micros) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change: false,
        deletion_timestamp: Some(now / 1_000),
        extended_file_metadata: Some(true),
        partition_values: Some(part.values()),
        size: i64::try_from(file.bytes).ok(),
        ..Remove::default()
    }
}

/// The version of the newest checkpoint.
fn last_checkpoint(table: &Path) -> Option<u64> {
    let hint = fs::read(log_folder(table).join("_last_checkpoint")).ok()?;
    serde_json::from_slice::<serde_json::Value>(&hint).ok()?.get("version")?.as_u64()
}

/// Opens a table with delta-rs; `None` where there is none.
pub(super) async fn open(table: &Path) -> Result<Option<DeltaTable>, DeltaTableError> {
    if !log_folder(table).is_dir() {
        return Ok(None);
    }
    let url = deltalake::ensure_table_uri(table.to_string_lossy())?;
    match DeltaTableBuilder::from_url(url)?.load().await {
        Ok(table) => Ok(Some(table)),
        Err(DeltaTableError::NotATable(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl State {
    /// A table that was just created.
    pub(super) fn new(metadata: Metadata, schema: SchemaRef) -> Self {
        Self { version: 0, metadata, schema, files: BTreeMap::new(), removed: VecDeque::new(), since_checkpoint: 0 }
    }

    /// Reads the newest version from disk; `None` where there is no table.
    pub(super) async fn load(table: &Path, now: Micros) -> Result<Option<Self>, DeltaTableError> {
        let Some(opened) = open(table).await? else { return Ok(None) };
        let snapshot = opened.snapshot()?.snapshot();
        let all: Schema = snapshot.schema().as_ref().try_into_arrow()?;
        let columns: Vec<_> = all.fields().iter().filter(|field| field.name() != PARTITION_DATE).cloned().collect();
        let mut state = Self::new(snapshot.metadata().clone(), Arc::new(Schema::new(columns)));
        state.version = snapshot.version();
        state.since_checkpoint = state.version - last_checkpoint(table).unwrap_or(0).min(state.version);
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
        // What a crash or an earlier run left behind; since when is not known, so it starts now.
        state.removed = state.strays(table).into_iter().map(|path| (now, path)).collect();
        Ok(Some(state))
    }

    /// Takes over a file that the newest version added.
    pub(super) fn add(&mut self, part: Part, add: &Add, rows: u64, added_at: Micros) {
        let bytes = u64::try_from(add.size).unwrap_or(0);
        // An append that was under way when the log was read again looked like a leftover.
        self.removed.retain(|(_, path)| *path != add.path);
        self.files.entry(part).or_default().push(DataFile { path: add.path.clone(), rows, bytes, added_at });
    }

    /// Data files on disk that are no part of the table.
    fn strays(&self, table: &Path) -> Vec<String> {
        let live: std::collections::HashSet<&str> =
            self.files.values().flatten().map(|file| file.path.as_str()).collect();
        let mut found = Vec::new();
        let mut look = |folder: &Path, prefix: &str| {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if path.ends_with(".parquet") && !live.contains(path.as_str()) {
                    found.push(path);
                }
            }
        };
        look(table, "");
        for entry in fs::read_dir(table).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PARTITION_DATE) {
                look(&entry.path(), &format!("{name}/"));
            }
        }
        found
    }
}
