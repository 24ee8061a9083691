//! One table and the turns that its appends take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use deltalake::kernel::{Action, Add};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::arrow::RowsBuilder;
use super::data_file::{self, Encoded, Part};
use super::layout::{self, Fault};
use super::log::{self, CommitError, State};
use super::worker::Worker;
use super::{Batch, DeltaError, Options, Outcome};
use crate::clock::{Clock, DAY, Micros};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::row::{Row, Value};
use crate::schema::Plan;

/// How often a commit gives way to another engine's before the append is handed back.
const COMMIT_ATTEMPTS: usize = 5;
/// How many files of an append are written at once.
const STORE_THREADS: usize = 8;

/// One table of the warehouse and the right to write it.
#[derive(Debug)]
pub(super) struct Table {
    /// `dataset.table`.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) clock: Clock,
    pub(super) options: Options,
    pub(super) slot: Arc<Mutex<Slot>>,
    pub(super) worker: Arc<Worker>,
    /// Whether a task looks after the table already.
    pub(super) in_care: AtomicBool,
}

/// What the writer knows of the table; its lock makes appends to one table take turns.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Empty before the first use and after another engine's commit.
    pub(super) state: Option<State>,
    /// The plan that the table is known to hold.
    pub(super) plan: Option<Arc<Plan>>,
}

/// Rows on disk that no version holds yet.
struct Staged {
    outcomes: Vec<Outcome>,
    files: Vec<(Part, Add, u64)>,
}

impl Table {
    pub(super) fn new(root: &Path, plan: &Plan, clock: Clock, options: Options, worker: Arc<Worker>) -> Self {
        Self {
            name: plan.table.full_name(),
            folder: root.join(&plan.table.dataset).join(&plan.table.name),
            clock,
            options,
            slot: Arc::default(),
            worker,
            in_care: AtomicBool::new(false),
        }
    }

    /// Makes sure that the table exists and has the plan's columns.
    pub(super) async fn ensure(&self, plan: &Arc<Plan>) -> Result<(), DeltaError> {
        let mut slot = self.current().await?;
        if slot.state.is_some() && slot.plan.as_ref().is_some_and(|known| Arc::ptr_eq(known, plan) || known == plan) {
            return Ok(());
        }
        let (table, plan, now) = (self.folder.clone(), Arc::clone(plan), self.clock.now());
        let options = self.options.clone();
        let name = self.name.clone();
        blocking(move || {
            let state = match slot.state.take() {
                None => layout::create(&table, &plan, &options, now),
                Some(state) => layout::widen(&table, &plan, state, now),
            };
            slot.state = Some(state.map_err(|error| error.into_delta(&name))?);
            slot.plan = Some(plan);
            Ok(())
        })
        .await?
    }

    /// Appends the rows of `batch` as one version; nothing of it is visible unless all of it is.
    pub(super) async fn append(&self, batch: &Batch) -> Result<Vec<Outcome>, DeltaError> {
        self.ensure(&batch.plan).await?;
        let (table, rows, now) = (self.folder.clone(), batch.clone(), self.clock.now());
        let Staged { outcomes, files } =
            blocking(move || stage(&table, &rows, now)).await?.map_err(|error| error.into_delta(&self.name))?;
        if files.is_empty() {
            return Ok(outcomes);
        }
        let actions = files.iter().map(|(_, add, _)| Action::Add(add.clone())).collect();
        let apply = move |state: &mut State, now| {
            for (part, add, rows) in &files {
                state.add(*part, add, *rows, now);
            }
        };
        self.commit("WRITE", actions, |_| true, apply).await?;
        Ok(outcomes)
    }

    /// Writes `actions` as the next version, if they still fit the newest, and lets `apply` take them over into the
    /// state.
    ///
    /// Runs to its end even when the caller's future is dropped halfway.
    pub(super) async fn commit(
        &self,
        operation: &'static str,
        actions: Vec<Action>,
        fits: impl Fn(&State) -> bool,
        apply: impl Fn(&mut State, Micros) + Clone + Send + 'static,
    ) -> Result<(), DeltaError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let mut slot = self.current().await?;
            if !slot.state.as_ref().is_some_and(&fits) {
                break;
            }
            let (table, actions, now, apply) = (self.folder.clone(), actions.clone(), self.clock.now(), apply.clone());
            let committed = blocking(move || {
                let Some(state) = slot.state.as_mut() else { return Err(CommitError::Taken) };
                let committed = log::commit(&table, state.version + 1, operation, now, actions);
                match committed {
                    Ok(()) => {
                        state.version += 1;
                        state.since_checkpoint += 1;
                        apply(state, now);
                    }
                    Err(_) => slot.state = None,
                }
                committed
            })
            .await?;
            match committed {
                Ok(()) => return Ok(()),
                Err(CommitError::Taken) => {}
                Err(CommitError::Io(error)) => return Err(self.io("writing the log", error)),
            }
        }
        Err(DeltaError::Contended { table: self.name.clone() })
    }

    /// The state of the newest version, locked; read from disk on first use and where another engine has written.
    async fn current(&self) -> Result<OwnedMutexGuard<Slot>, DeltaError> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if slot.state.is_none() {
            slot.plan = None;
            slot.state = State::load(&self.folder, self.clock.now()).await.map_err(|error| self.unreadable(error))?;
        }
        Ok(slot)
    }

    pub(super) fn io(&self, doing: &'static str, source: std::io::Error) -> DeltaError {
        DeltaError::Io { place: self.name.clone(), doing, source }
    }

    pub(super) fn unreadable(&self, source: deltalake::DeltaTableError) -> DeltaError {
        DeltaError::Table { table: self.name.clone(), source: Box::new(source) }
    }
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DeltaError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| DeltaError::Interrupted(error.to_string()))
}

/// Decodes, sorts, encodes and stores the rows of `batch`.
fn stage(table: &Path, batch: &Batch, now: Micros) -> Result<Staged, Fault> {
    let (outcomes, encoded) = encode(batch).map_err(|error| Fault::Io(std::io::Error::other(error)))?;
    let mut files = Vec::with_capacity(encoded.len());
    for (data, add) in encoded.iter().zip(store(table, &encoded, now)?) {
        files.push((data.part, add, data.rows as u64));
    }
    Ok(Staged { outcomes, files })
}

/// Stores the files of an append; many of them, as of rows of many days, at once, since the time is the disk's.
fn store(table: &Path, files: &[Encoded], now: Micros) -> std::io::Result<Vec<Add>> {
    let some = |files: &[Encoded]| files.iter().map(|data| log::store(table, data, true, now)).collect();
    if files.len() <= STORE_THREADS {
        return some(files);
    }
    std::thread::scope(|scope| {
        let shares = files.chunks(files.len().div_ceil(STORE_THREADS));
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| some(share))).collect();
        let mut adds = Vec::with_capacity(files.len());
        for thread in threads {
            let stored: std::io::Result<Vec<Add>> =
                thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")));
            adds.extend(stored?);
        }
        Ok(adds)
    })
}

fn encode(batch: &Batch) -> Result<(Vec<Outcome>, Vec<Encoded>), deltalake::parquet::errors::ParquetError> {
    let plan = &batch.plan;
    let mut outcomes = Vec::with_capacity(batch.rows.len());
    let mut parts = Vec::with_capacity(batch.rows.len());
    let mut builder = RowsBuilder::new(&plan.columns, batch.rows.len());
    let mut row = Row::default();
    for line in &batch.rows {
        if let Some(reason) = fault_of(plan, line, &mut row) {
            outcomes.push(Outcome::Poison(reason));
            continue;
        }
        if let Some(system) = plan.system {
            row.set(system.loaded_at, Value::Timestamp(batch.loaded_at));
        }
        parts.push(part_of(plan, &row));
        builder.push(&row.values);
        outcomes.push(Outcome::Done);
    }
    let columns = layout::stats_columns(plan);
    let encoded = data_file::partitions(&builder.finish()?, &parts, &plan.table.clustering)?
        .iter()
        .map(|(part, rows)| data_file::encode(*part, rows, &columns))
        .collect::<Result<_, _>>()?;
    Ok((outcomes, encoded))
}

fn fault_of<'a>(plan: &Plan, line: &'a [u8], row: &mut Row<'a>) -> Option<Reason> {
    match decode::row(plan, line, row) {
        Ok(()) => reason_of(&row.problems),
        Err(problem) => Some(Reason::from(&problem)),
    }
}

fn part_of(plan: &Plan, row: &Row<'_>) -> Part {
    let Some(partition) = plan.table.partition else { return Part::Whole };
    let time = row.values.get(partition.column).and_then(Value::partition_time);
    Part::Date(time.and_then(|time| i32::try_from(time.div_euclid(DAY)).ok()))
}
