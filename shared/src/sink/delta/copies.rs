//! Removal of exact copies from closed partitions: rows with one partition time, identity and fingerprint.
//!
//! Part of the maintenance that appends drive. A partition is looked at once it is closed, and again only after another
//! append to it. Conflicts (one identity, different content) stay, and so do rows without a fingerprint. Of copies the first
//! received stays, so the deduplicated view shows what it showed before.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::{Arc, PoisonError};

use deltalake::arrow::array::{Array as _, AsArray as _, BooleanArray, Int64Array, RecordBatch};
use deltalake::arrow::compute;
use deltalake::arrow::datatypes::DataType;
use deltalake::kernel::{Action, Add};
use deltalake::parquet::arrow::ProjectionMask;
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tracing::info;

use super::DeltaError;
use super::compact::{Layout, read_rows, write_rows};
use super::data_file::Part;
use super::dedup::numbers;
use super::files::Files;
use super::layout::Fault;
use super::log::{self, DataFile, State};
use super::table::Table;
use crate::clock::{DAY, Micros};
use crate::schema::Plan;

/// A partition is closed when so many days have begun since its own.
const CLOSED_AFTER: i64 = 2;
/// Partitions that are older are left alone.
const LOOK_BACK: i64 = 35;
/// Rows whose hashes are held at once, in 8 bytes each; a larger partition is read several times.
const ROWS_AT_ONCE: u64 = 16 * 1024 * 1024;

/// Files of a closed partition.
struct Closed {
    part: Part,
    files: Vec<DataFile>,
    /// When the newest row came.
    newest: Micros,
    layout: Layout,
}

/// A file without its copies; `None` where nothing else was in it.
struct Rewritten {
    old: DataFile,
    add: Option<(Add, u64)>,
    removed: u64,
}

impl Table {
    /// Removes the copies of partitions that were closed, or written, since the last look.
    pub(super) async fn remove_copies(&self) -> Result<(), DeltaError> {
        while let Some(closed) = self.closed_partition().await {
            let (part, newest, now) = (closed.part, closed.newest, self.clock.now());
            let table = Arc::clone(&self.files);
            let found = self.worker.run(move || without_copies(&*table, &closed, now)).await?;
            let found = found.map_err(|error| error.into_delta(&self.name))?;
            if !found.is_empty() {
                let removed: u64 = found.iter().map(|file| file.removed).sum();
                self.replace(part, Arc::new(found), now).await?;
                info!(table = self.name, partition = part.folder(), removed, "duplicates removed");
            }
            self.looked_at.lock().unwrap_or_else(PoisonError::into_inner).insert(part, newest);
        }
        Ok(())
    }

    async fn closed_partition(&self) -> Option<Closed> {
        let slot = self.slot.lock().await;
        let (state, plan) = (slot.state.as_ref()?, slot.plan.as_ref()?);
        plan.system?;
        let now = self.clock.now();
        let today = now.div_euclid(DAY);
        let looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        state.files.iter().find_map(|(part, files)| {
            let Part::Date(Some(date)) = part else { return None };
            let newest = files.iter().map(|file| file.added_at).max()?;
            let is_closed = (CLOSED_AFTER..=LOOK_BACK).contains(&(today - i64::from(*date)))
                && newest < now - self.options.settle_after;
            let is_due = is_closed && looked_at.get(part) != Some(&newest);
            let layout = || Layout { schema: Arc::clone(&state.schema), plan: Arc::clone(plan) };
            is_due.then(|| Closed { part: *part, files: files.clone(), newest, layout: layout() })
        })
    }

    async fn replace(&self, part: Part, files: Arc<Vec<Rewritten>>, now: Micros) -> Result<(), DeltaError> {
        let removes = files.iter().map(|file| Action::Remove(log::tombstone(part, &file.old, true, now)));
        let adds = files.iter().filter_map(|file| Some(Action::Add(file.add.as_ref()?.0.clone())));
        let actions: Vec<_> = removes.chain(adds).collect();
        let rewritten = Arc::clone(&files);
        let fitting = |state: &State| {
            let live = state.files.get(&part);
            let is_live = |file: &DataFile| live.is_some_and(|live| live.iter().any(|known| known.path == file.path));
            rewritten.iter().all(|file| is_live(&file.old)).then(|| actions.clone())
        };
        let apply = move |mut state: State, now| {
            for Rewritten { old, add, .. } in files.iter() {
                state.files.entry(part).or_default().retain(|file| file.path != old.path);
                state.removed.push_back((now, old.path.clone()));
                if let Some((add, rows)) = add {
                    state.add(part, add, *rows, old.added_at);
                }
            }
            Some(state)
        };
        self.commit("DELETE", fitting, apply).await
    }
}

/// Writes anew the files that hold copies.
fn without_copies(table: &dyn Files, closed: &Closed, now: Micros) -> Result<Vec<Rewritten>, Fault> {
    let Some(columns) = Columns::of(&closed.layout.plan) else { return Ok(Vec::new()) };
    let copies = copies(table, &closed.files, &columns)?;
    let mut rewritten = Vec::new();
    for (file, copies) in closed.files.iter().zip(copies).filter(|(_, copies)| !copies.is_empty()) {
        let mut first = 0;
        let mut kept = Vec::new();
        for batch in read_rows(table, &file.path, &closed.layout)? {
            let is_kept: BooleanArray =
                (first..first + batch.num_rows()).map(|row| Some(!copies.contains(&row))).collect();
            first += batch.num_rows();
            kept.push(compute::filter_record_batch(&batch, &is_kept).map_err(io::Error::other)?);
        }
        let (rows, removed) = (first as u64 - copies.len() as u64, copies.len() as u64);
        let add = if rows > 0 { Some(write_rows(table, closed.part, &kept, &closed.layout, true, now)?) } else { None };
        rewritten.push(Rewritten { old: file.clone(), add: add.map(|add| (add, rows)), removed });
    }
    Ok(rewritten)
}

/// Of each file, the rows that are copies of a row that stays.
fn copies(table: &dyn Files, files: &[DataFile], columns: &Columns) -> io::Result<Vec<HashSet<usize>>> {
    let keyed = RandomState::new();
    let hash = |key: &Key<'_>| keyed.hash_one((key.time, key.fingerprint, key.identity));
    let rows: u64 = files.iter().map(|file| file.rows).sum();
    let passes = rows.div_ceil(ROWS_AT_ONCE).max(1);
    let mut twice = HashSet::new();
    for pass in 0..passes {
        let mut hashes = Vec::new();
        for file in files {
            columns.read(table, &file.path, |_, key| {
                let hash = hash(&key);
                if hash % passes == pass {
                    hashes.push(hash);
                }
            })?;
        }
        hashes.sort_unstable();
        twice.extend(hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]));
    }
    let mut copies = vec![HashSet::new(); files.len()];
    if twice.is_empty() {
        return Ok(copies);
    }
    let mut first: HashMap<_, Place> = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        columns.read(table, &file.path, |row, key| {
            if !twice.contains(&hash(&key)) {
                return;
            }
            let found: Place = (key.order, number, row);
            let known = first.entry((key.time, key.fingerprint, key.identity.to_string())).or_insert(found);
            if *known == found {
                return;
            }
            let later = if found < *known { std::mem::replace(known, found) } else { found };
            copies[later.1].insert(later.2);
        })?;
    }
    Ok(copies)
}

/// When a row was received and loaded, its file, and its number in it.
type Place = ([i64; 2], usize, usize);

/// What tells a row from others, and which of two copies is the first.
struct Key<'r> {
    time: i64,
    identity: &'r str,
    fingerprint: i64,
    /// When it was received and loaded.
    order: [i64; 2],
}

/// Names of the columns that are read.
struct Columns {
    time: String,
    identity: String,
    fingerprint: String,
    order: [String; 2],
}

impl Columns {
    fn of(plan: &Plan) -> Option<Self> {
        let name = |index: usize| plan.columns.get(index).map(|column| column.name.clone());
        let system = plan.system?;
        Some(Self {
            time: plan.partition_column()?.name.clone(),
            identity: name(system.event_id)?,
            fingerprint: name(system.fingerprint)?,
            order: [name(system.received_at)?, name(system.loaded_at)?],
        })
    }

    /// Hands over the rows of a file that have all that a key needs, by their numbers.
    fn read(&self, table: &dyn Files, path: &str, mut row: impl FnMut(usize, Key<'_>)) -> io::Result<()> {
        let file = ParquetRecordBatchReaderBuilder::try_new(table.read(path)?).map_err(io::Error::other)?;
        let names = [&self.time, &self.identity, &self.fingerprint, &self.order[0], &self.order[1]];
        let mask = ProjectionMask::columns(file.parquet_schema(), names.map(String::as_str));
        let batches = file.with_projection(mask).with_batch_size(64 * 1024).build().map_err(io::Error::other)?;
        let mut before = 0;
        for batch in batches {
            let batch = batch.map_err(io::Error::other)?;
            let column = |name: &str| of_batch(&batch, name).transpose();
            // A file that is older than a column has no such column.
            let (Some(times), Some(fingerprints)) = (column(&self.time)?, column(&self.fingerprint)?) else {
                return Ok(());
            };
            let Some(identities) = batch.column_by_name(&self.identity) else { return Ok(()) };
            let identities = compute::cast(identities, &DataType::Utf8).map_err(io::Error::other)?;
            let order = [column(&self.order[0])?, column(&self.order[1])?];
            let value = |values: &Int64Array, row| values.is_valid(row).then(|| values.value(row));
            for (index, identity) in identities.as_string::<i32>().iter().enumerate() {
                let (Some(identity), Some(time), Some(fingerprint)) =
                    (identity, value(&times, index), value(&fingerprints, index))
                else {
                    continue;
                };
                let order = order
                    .each_ref()
                    .map(|values| values.as_ref().and_then(|values| value(values, index)).unwrap_or(i64::MIN));
                row(before + index, Key { time, identity, fingerprint, order });
            }
            before += batch.num_rows();
        }
        Ok(())
    }
}

fn of_batch(batch: &RecordBatch, name: &str) -> Option<io::Result<Int64Array>> {
    batch.column_by_name(name).map(|values| numbers(values).map_err(io::Error::other))
}
