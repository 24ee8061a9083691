//! Care for a table while it is written: merges of small files, checkpoints, removal of what no version needs.
//!
//! Driven by appends alone: each one looks whether something is due and starts at most one task a table. A merge is a
//! commit that removes its inputs and adds its output, so a reader sees either, never both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use deltalake::arrow::compute::concat_batches;
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::checkpoints::create_checkpoint;
use deltalake::kernel::{Action, Add};
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use deltalake::schema::cast_record_batch;
use tracing::warn;

use super::data_file::{self, Part};
use super::log::{self, DataFile, State};
use super::table::{Fault, Table, blocking, stats_columns};
use super::{DeltaError, Options};
use crate::clock::Micros;
use crate::schema::Plan;

/// Largest input of one merge, compressed; what bounds its memory where rows are wide.
const MERGE_BYTES: u64 = 32 * 1024 * 1024;
/// A settled partition of fewer files is left as it is.
const SETTLED_FILES: usize = 4;

/// Files of one partition that are to become one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Merge {
    part: Part,
    files: Vec<DataFile>,
}

/// What the output of a merge looks like.
struct Layout {
    schema: SchemaRef,
    plan: Arc<Plan>,
}

/// The next merge that is worth its price: sizes fall into classes a factor `merge_at` apart, and a class that has
/// `merge_at` files becomes one file of the next. A row is so rewritten once a class, and a partition holds fewer than
/// `merge_at` files a class.
fn next_merge(files: &BTreeMap<Part, Vec<DataFile>>, now: Micros, options: &Options) -> Option<Merge> {
    files.iter().find_map(|(part, files)| {
        let small = || files.iter().filter(|file| file.rows < options.full_file_rows && file.bytes < MERGE_BYTES / 2);
        let mut classes: BTreeMap<u32, Vec<&DataFile>> = BTreeMap::new();
        for file in small() {
            classes.entry(file.rows.max(1).ilog(options.merge_at.max(2) as u64)).or_default().push(file);
        }
        let full = classes.into_values().find(|class| class.len() >= options.merge_at);
        let settled = || {
            let newest = files.iter().map(|file| file.added_at).max()?;
            let all: Vec<_> = small().collect();
            (newest < now - options.settle_after && all.len() >= SETTLED_FILES).then_some(all)
        };
        Some(Merge { part: *part, files: affordable(full.or_else(settled)?, options) })
    })
}

/// The first files that stay below the limits of one merge; at least two.
fn affordable(files: Vec<&DataFile>, options: &Options) -> Vec<DataFile> {
    let (mut rows, mut bytes) = (0, 0);
    let fits = |file: &&DataFile| {
        rows += file.rows;
        bytes += file.bytes;
        rows <= 2 * options.full_file_rows && bytes <= MERGE_BYTES
    };
    files.into_iter().take_while(fits).cloned().collect()
}

impl Table {
    /// Starts a task for what is due, unless one is at it.
    pub(super) fn look_after(self: &Arc<Self>) {
        if self.in_care.swap(true, Ordering::AcqRel) {
            return;
        }
        let table = Arc::clone(self);
        tokio::spawn(async move {
            let done = table.care().await;
            table.in_care.store(false, Ordering::Release);
            if let Err(error) = done {
                // Nothing is lost: the next append looks again.
                warn!(table = table.name, error = %error, "table left untidy");
            }
        });
    }

    /// Does what is due and waits for a task that is at it.
    pub(super) async fn settle(self: &Arc<Self>) {
        while self.in_care.swap(true, Ordering::AcqRel) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        if let Err(error) = self.care().await {
            warn!(table = self.name, error = %error, "table left untidy");
        }
        self.in_care.store(false, Ordering::Release);
    }

    async fn care(&self) -> Result<(), DeltaError> {
        while let Some((merge, layout)) = self.due_merge().await {
            self.merge(merge, layout).await?;
        }
        if let Some(version) = self.due_checkpoint().await {
            self.checkpoint(version).await?;
        }
        self.vacuum().await
    }

    async fn due_merge(&self) -> Option<(Merge, Layout)> {
        let slot = self.slot.lock().await;
        let (state, plan) = (slot.state.as_ref()?, slot.plan.as_ref()?);
        let merge = next_merge(&state.files, self.clock.now(), &self.options)?;
        Some((merge, Layout { schema: Arc::clone(&state.schema), plan: Arc::clone(plan) }))
    }

    async fn merge(&self, merge: Merge, layout: Layout) -> Result<(), DeltaError> {
        let (table, inputs, now) = (self.folder.clone(), merge.clone(), self.clock.now());
        let add = blocking(move || write_merged(&table, &inputs, &layout, now))
            .await?
            .map_err(|error| error.into_delta(&self.name))?;
        let removes = merge.files.iter().map(|file| Action::Remove(log::tombstone(merge.part, file, now)));
        let actions = removes.chain([Action::Add(add.clone())]).collect();
        self.commit("OPTIMIZE", actions, move |state, now| replace(state, &merge, &add, now)).await
    }

    async fn due_checkpoint(&self) -> Option<u64> {
        let slot = self.slot.lock().await;
        let state = slot.state.as_ref()?;
        (state.since_checkpoint >= self.options.checkpoint_every).then_some(state.version)
    }

    /// Sums the log up to `version` up in one file and removes the entries that it covers, once they are old enough.
    async fn checkpoint(&self, version: u64) -> Result<(), DeltaError> {
        let (folder, name) = (self.folder.clone(), self.name.clone());
        let runtime = tokio::runtime::Handle::current();
        // delta-rs writes a checkpoint without yielding.
        let written = blocking(move || {
            runtime.block_on(async {
                let url = deltalake::ensure_table_uri(folder.to_string_lossy())?;
                let table = deltalake::open_table_with_version(url, version).await?;
                create_checkpoint(&table, None).await
            })
        });
        written.await?.map_err(|error| self.unreadable(error))?;
        if let Some(state) = self.slot.lock().await.state.as_mut() {
            state.since_checkpoint = state.version.saturating_sub(version);
        }
        let (folder, before) = (self.folder.clone(), self.clock.now() - self.options.log_retention);
        blocking(move || sync_checkpoint(&folder, version).and_then(|()| clean_log(&folder, before)))
            .await?
            .map_err(|source| DeltaError::Io { place: name, doing: "tidying the log", source })
    }

    /// Deletes files that no version has needed for the retention time.
    async fn vacuum(&self) -> Result<(), DeltaError> {
        let before = self.clock.now() - self.options.file_retention;
        let mut expired = Vec::new();
        if let Some(state) = self.slot.lock().await.state.as_mut() {
            while let Some((_, path)) = state.removed.pop_front_if(|(since, _)| *since < before) {
                // What looked like a leftover when the table was opened may have been an append under way.
                if !state.files.values().flatten().any(|file| file.path == path) {
                    expired.push(self.folder.join(path));
                }
            }
        }
        let delete = move || expired.iter().try_for_each(|path: &PathBuf| remove_if_there(path));
        blocking(delete).await?.map_err(|error| self.io("removing old files", error))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads the inputs of a merge and writes its output, sorted like them.
fn write_merged(table: &Path, merge: &Merge, layout: &Layout, now: Micros) -> Result<Add, Fault> {
    let Layout { schema, plan } = layout;
    let mut batches = Vec::new();
    for file in &merge.files {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(table.join(&file.path))?)
            .and_then(|reader| reader.with_batch_size(64 * 1024).build())
            .map_err(io::Error::other)?;
        for batch in reader {
            let batch = batch.map_err(io::Error::other)?;
            // A file older than a column has no such column.
            batches.push(cast_record_batch(&batch, Arc::clone(schema), false, true).map_err(io::Error::other)?);
        }
    }
    let clustering = plan.table.clustering.iter().filter_map(|&index| plan.columns.get(index));
    let clustering: Vec<_> = clustering.filter_map(|column| schema.index_of(&column.name).ok()).collect();
    let rows = concat_batches(schema, &batches).map_err(io::Error::other)?;
    drop(batches);
    let rows = data_file::sorted(&rows, None, &clustering).map_err(io::Error::other)?;
    let encoded = data_file::encode(merge.part, &rows, &stats_columns(plan)).map_err(io::Error::other)?;
    Ok(log::store(table, &encoded, false, now)?)
}

fn replace(state: &mut State, merge: &Merge, add: &Add, now: Micros) {
    let files = state.files.entry(merge.part).or_default();
    files.retain(|file| !merge.files.iter().any(|merged| merged.path == file.path));
    state.removed.extend(merge.files.iter().map(|file| (now, file.path.clone())));
    let rows = merge.files.iter().map(|file| file.rows).sum();
    let newest = merge.files.iter().map(|file| file.added_at).max().unwrap_or(now);
    state.add(merge.part, add, rows, newest);
}

/// Makes a checkpoint that delta-rs wrote outlive a crash, before anything that it covers is removed.
fn sync_checkpoint(table: &Path, version: u64) -> io::Result<()> {
    let folder = log::log_folder(table);
    let prefix = format!("{version:020}.checkpoint");
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) || name == "_last_checkpoint" {
            File::open(entry.path())?.sync_all()?;
        }
    }
    log::sync_folder(&folder)
}

/// Removes log entries and checkpoints older than the newest checkpoint that was there at `before`, so that a reader
/// of any version since then still finds what it needs.
fn clean_log(table: &Path, before: Micros) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(log::log_folder(table))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(version) = name.get(..20).and_then(|digits| digits.parse::<u64>().ok()) else { continue };
        entries.push((version, name.contains(".checkpoint"), entry.path()));
    }
    let is_old = |path: &Path| {
        let age = fs::metadata(path).and_then(|file| file.modified()).ok();
        let age = age.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        age.is_some_and(|age| i64::try_from(age.as_micros()).is_ok_and(|micros| micros < before))
    };
    let checkpoints = entries.iter().filter(|(_, is_checkpoint, path)| *is_checkpoint && is_old(path));
    let Some(keep) = checkpoints.map(|(version, ..)| *version).max() else { return Ok(()) };
    entries.iter().filter(|(version, ..)| *version < keep).try_for_each(|(.., path)| remove_if_there(path))
}
