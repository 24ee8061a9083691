//! Care for a table while it is written: merges of small files, checkpoints, removal of what no version needs and of exact
//! copies of rows.
//!
//! Driven by appends alone: each one looks whether something is due and starts at most one task a table. A merge is a
//! commit that removes its inputs and adds its output, so a reader sees either, never both.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use deltalake::arrow::array::RecordBatch;
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::checkpoints::create_checkpoint;
use deltalake::kernel::{Action, Add};
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use deltalake::schema::cast_record_batch;
use tracing::warn;

use super::data_file::{self, Part};
use super::files::{Files, LOG};
use super::layout::{Fault, stats_columns};
use super::log::{self, DataFile, State};
use super::table::Table;
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

/// What the files of a table look like.
pub(super) struct Layout {
    pub(super) schema: SchemaRef,
    pub(super) plan: Arc<Plan>,
}

/// The next merge that is worth its price: sizes fall into classes a factor `merge_at` apart, and a class that has
/// `merge_at` files becomes one file of the next. A row is so rewritten once a class, and a partition holds fewer than
/// `merge_at` files a class.
fn next_merge(files: &BTreeMap<Part, Vec<DataFile>>, now: Micros, options: &Options) -> Option<Merge> {
    let merge_at = options.merge_at.max(2);
    files.iter().find_map(|(part, files)| {
        let small = || files.iter().filter(|file| file.rows < options.full_file_rows && file.bytes < MERGE_BYTES / 2);
        let mut classes: BTreeMap<u32, Vec<&DataFile>> = BTreeMap::new();
        for file in small() {
            classes.entry(file.rows.max(1).ilog(merge_at as u64)).or_default().push(file);
        }
        let full = classes.into_values().find(|class| class.len() >= merge_at);
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

/// The right to look after a table.
struct Turn(Arc<Table>);

impl Turn {
    fn take(table: &Arc<Table>) -> Option<Self> {
        let is_taken = table.in_care.swap(true, Ordering::AcqRel);
        (!is_taken).then(|| Self(Arc::clone(table)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.in_care.store(false, Ordering::Release);
    }
}

impl Table {
    /// Starts a task for what is due, unless one is at it.
    pub(super) fn look_after(self: &Arc<Self>) {
        if let Some(turn) = Turn::take(self) {
            tokio::spawn(async move { turn.0.care().await });
        }
    }

    /// Does what is due and waits for a task that is at it.
    pub(super) async fn settle(self: &Arc<Self>) {
        loop {
            if let Some(turn) = Turn::take(self) {
                return turn.0.care().await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn care(&self) {
        if let Err(error) = self.tidy().await {
            // Nothing is lost: the next append looks again.
            warn!(table = self.name, error = %error, "table left untidy");
        }
    }

    async fn tidy(&self) -> Result<(), DeltaError> {
        loop {
            // First, or merges would put it off for as long as rows pour in.
            self.checkpoint_if_due().await?;
            match self.due_merge().await {
                Some((merge, layout)) => self.merge(merge, layout).await?,
                None => break,
            }
        }
        self.remove_copies().await?;
        self.vacuum().await
    }

    /// What is due without merges: a load has large files of its own.
    pub(super) async fn tidy_log(&self) -> Result<(), DeltaError> {
        self.checkpoint_if_due().await?;
        self.vacuum().await
    }

    async fn checkpoint_if_due(&self) -> Result<(), DeltaError> {
        match self.due_checkpoint().await {
            Some(version) => self.checkpoint(version).await,
            None => Ok(()),
        }
    }

    async fn due_merge(&self) -> Option<(Merge, Layout)> {
        let slot = self.slot.lock().await;
        let (state, plan) = (slot.state.as_ref()?, slot.plan.as_ref()?);
        let merge = next_merge(&state.files, self.clock.now(), &self.options)?;
        Some((merge, Layout { schema: Arc::clone(&state.schema), plan: Arc::clone(plan) }))
    }

    async fn merge(&self, merge: Merge, layout: Layout) -> Result<(), DeltaError> {
        let (table, inputs, now) = (Arc::clone(&self.files), merge.clone(), self.clock.now());
        let add = self
            .worker
            .run(move || write_merged(&*table, &inputs, &layout, now))
            .await?
            .map_err(|error| error.into_delta(&self.name))?;
        let removes = merge.files.iter().map(|file| Action::Remove(log::tombstone(merge.part, file, false, now)));
        let actions: Vec<_> = removes.chain([Action::Add(add.clone())]).collect();
        // A load or another engine may have deleted rows of an input; they are not to come back.
        let fitting = |state: &State| {
            let live = state.files.get(&merge.part);
            let is_live = |file: &DataFile| live.is_some_and(|live| live.iter().any(|known| known.path == file.path));
            merge.files.iter().all(is_live).then(|| actions.clone())
        };
        let inputs = merge.clone();
        let apply = move |mut state: State, now| {
            replace(&mut state, &inputs, &add, now);
            Some(state)
        };
        self.commit("OPTIMIZE", fitting, apply).await
    }

    async fn due_checkpoint(&self) -> Option<u64> {
        let slot = self.slot.lock().await;
        let state = slot.state.as_ref()?;
        (state.since_checkpoint >= self.options.checkpoint_every).then_some(state.version)
    }

    /// Sums the log up to `version` up in one file and removes the entries that it covers, once they are old enough.
    async fn checkpoint(&self, version: u64) -> Result<(), DeltaError> {
        // Before the attempt: one that fails is made again after as many commits, not after each.
        if let Some(state) = self.slot.lock().await.state.as_mut() {
            state.since_checkpoint = state.version.saturating_sub(version);
        }
        let files = Arc::clone(&self.files);
        let runtime = tokio::runtime::Handle::current();
        // delta-rs writes a checkpoint without yielding.
        let written = self.worker.run(move || {
            runtime.block_on(async {
                match log::open(&*files, Some(version)).await? {
                    Some(table) => create_checkpoint(&table, None).await.map(|()| true),
                    None => Ok(false),
                }
            })
        });
        if !written.await?.map_err(|error| self.unreadable(error))? {
            return Ok(());
        }
        let (files, before) = (Arc::clone(&self.files), self.clock.now() - self.options.log_retention);
        self.worker
            .run(move || files.seal_checkpoint(version).and_then(|()| clean_log(&*files, before)))
            .await?
            .map_err(|error| self.io("tidying the log", error))
    }

    /// Deletes files that no version has needed for the retention time.
    async fn vacuum(&self) -> Result<(), DeltaError> {
        let before = self.clock.now() - self.options.file_retention;
        let mut expired = Vec::new();
        if let Some(state) = self.slot.lock().await.state.as_mut() {
            while let Some((_, path)) = state.removed.pop_front_if(|(since, _)| *since < before) {
                expired.push(path);
            }
        }
        if expired.is_empty() {
            return Ok(());
        }
        let files = Arc::clone(&self.files);
        self.worker.run(move || files.delete(&expired)).await?.map_err(|error| self.io("removing old files", error))
    }
}

/// Reads the inputs of a merge and writes its output, sorted like them.
fn write_merged(table: &dyn Files, merge: &Merge, layout: &Layout, now: Micros) -> Result<Add, Fault> {
    let mut batches = Vec::new();
    for file in &merge.files {
        batches.extend(read_rows(table, &file.path, layout)?);
    }
    write_rows(table, merge.part, &batches, layout, false, now)
}

/// The rows of a file, with all columns of the table.
pub(super) fn read_rows(table: &dyn Files, path: &str, layout: &Layout) -> io::Result<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(table.read(path)?)
        .and_then(|reader| reader.with_batch_size(64 * 1024).build())
        .map_err(io::Error::other)?;
    // A file older than a column has no such column.
    let widened = |batch: RecordBatch| cast_record_batch(&batch, Arc::clone(&layout.schema), false, true);
    reader.map(|batch| widened(batch.map_err(io::Error::other)?).map_err(io::Error::other)).collect()
}

/// Writes rows of sorted files as one file; `changes` tells whether rows of the table come or go by it.
pub(super) fn write_rows(
    table: &dyn Files,
    part: Part,
    batches: &[RecordBatch],
    layout: &Layout,
    changes: bool,
    now: Micros,
) -> Result<Add, Fault> {
    let Layout { schema, plan } = layout;
    let clustering = plan.table.clustering.iter().filter_map(|&index| plan.columns.get(index));
    let clustering: Vec<_> = clustering.filter_map(|column| schema.index_of(&column.name).ok()).collect();
    let merged = data_file::merge(part, batches, &clustering, &stats_columns(plan)).map_err(io::Error::other)?;
    let (file, add) = log::new_file(merged, changes, now);
    table.store(vec![file])?;
    Ok(add)
}

fn replace(state: &mut State, merge: &Merge, add: &Add, now: Micros) {
    let files = state.files.entry(merge.part).or_default();
    files.retain(|file| !merge.files.iter().any(|merged| merged.path == file.path));
    state.removed.extend(merge.files.iter().map(|file| (now, file.path.clone())));
    let rows = merge.files.iter().map(|file| file.rows).sum();
    let newest = merge.files.iter().map(|file| file.added_at).max().unwrap_or(now);
    state.add(merge.part, add, rows, newest);
}

/// Removes log entries and checkpoints older than the newest checkpoint that was there at `before`, so that a reader
/// of any version since then still finds what it needs.
fn clean_log(table: &dyn Files, before: Micros) -> io::Result<()> {
    let entries = table.log_entries()?;
    let version = |name: &str| name.get(..20).and_then(|digits| digits.parse::<u64>().ok());
    let old = || entries.iter().filter(|entry| entry.modified.is_some_and(|modified| modified < before));
    let checkpoints = old().filter(|entry| entry.name.contains(".checkpoint"));
    let keep = checkpoints.filter_map(|entry| version(&entry.name)).max().unwrap_or(0);
    let covered = entries.iter().filter(|entry| version(&entry.name).is_some_and(|version| version < keep));
    // Of a crash between its writing and its removal.
    let torn = old().filter(|entry| version(&entry.name).is_none() && entry.name.ends_with(".json.tmp"));
    let paths: Vec<_> = covered.chain(torn).map(|entry| format!("{LOG}/{}", entry.name)).collect();
    if paths.is_empty() { Ok(()) } else { table.delete(&paths) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_few_and_rows_are_rewritten_a_few_times_only() {
        let options = Options::default();
        let part = Part::Date(Some(20_000));
        let mut files = BTreeMap::from([(part, Vec::new())]);
        let (mut rewritten, mut most, appends) = (0, 0, 20_000_u64);
        for append in 0..appends {
            let file = |rows, bytes| DataFile { path: format!("{append}-{rows}"), rows, bytes, added_at: 0 };
            files.entry(part).or_default().push(file(275, 16_000));
            while let Some(merge) = next_merge(&files, 0, &options) {
                assert!(merge.files.len() >= 2);
                let rows = merge.files.iter().map(|file| file.rows).sum();
                let bytes = merge.files.iter().map(|file| file.bytes).sum();
                let live = files.entry(part).or_default();
                live.retain(|file| !merge.files.contains(file));
                live.push(file(rows, bytes));
                rewritten += rows;
            }
            let full = |file: &&DataFile| file.rows < options.full_file_rows;
            most = most.max(files.values().flatten().filter(full).count());
        }
        let rows: u64 = files.values().flatten().map(|file| file.rows).sum();
        assert_eq!(rows, appends * 275);
        assert!(most <= 3 * 7 + 1, "{most} small files");
        assert!(rewritten <= 3 * rows, "each row rewritten {} times", rewritten / rows);
        assert!(files.values().flatten().count() < 80, "{} files", files.values().flatten().count());
    }

    #[test]
    fn what_a_merge_takes_is_bounded() {
        let options = Options::default();
        let file = |number: u64| DataFile { path: number.to_string(), rows: 100_000, bytes: 15 << 20, added_at: 0 };
        let files = BTreeMap::from([(Part::Whole, (0..20).map(file).collect())]);
        assert_eq!(next_merge(&files, 0, &options).unwrap().files.len(), 2);
    }
}
