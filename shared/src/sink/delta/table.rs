//! One table and the turns that its commits take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use deltalake::kernel::{Action, Add};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Duration, Instant, sleep_until};

use super::arrow::RowsBuilder;
use super::data_file::{self, Encoded, Part};
use super::files::Files;
use super::gather::Gathered;
use super::layout::{self, Fault};
use super::log::{self, CommitError, State};
use super::worker::Worker;
use super::{Batch, DeltaError, Options, Outcome};
use crate::clock::{Clock, Micros};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::row::{Row, Value};
use crate::schema::Plan;

/// How often a commit gives way to another engine's before the append is handed back.
const COMMIT_ATTEMPTS: usize = 5;

/// One table of the warehouse and the right to write it.
#[derive(Debug)]
pub(super) struct Table {
    /// `dataset.table`.
    pub(super) name: String,
    pub(super) files: Arc<dyn Files>,
    pub(super) clock: Clock,
    pub(super) options: Options,
    pub(super) slot: Arc<Mutex<Slot>>,
    pub(super) worker: Arc<Worker>,
    /// Whether a task looks after the table already.
    pub(super) in_care: AtomicBool,
    /// Closed partitions that were searched for copies, and their newest rows then.
    pub(super) looked_at: std::sync::Mutex<BTreeMap<Part, Micros>>,
    /// Appends that wait for the next commit.
    pub(super) gathered: Gathered,
}

/// What the writer knows of the table; its lock makes appends to one table take turns.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Empty before the first use and after another engine's commit.
    pub(super) state: Option<State>,
    /// The plan that the table is known to hold.
    pub(super) plan: Option<Arc<Plan>>,
    /// When the next commit may be made; none: at once.
    pub(super) due: Option<Instant>,
}

/// Rows that no version holds yet.
struct Staged {
    /// Of each batch.
    outcomes: Vec<Vec<Outcome>>,
    files: Vec<(Part, Add, u64)>,
}

impl Table {
    pub(super) fn new(
        name: String,
        files: Arc<dyn Files>,
        clock: Clock,
        options: Options,
        worker: Arc<Worker>,
    ) -> Self {
        Self {
            name,
            files,
            clock,
            options,
            slot: Arc::default(),
            worker,
            in_care: AtomicBool::new(false),
            looked_at: std::sync::Mutex::default(),
            gathered: Gathered::default(),
        }
    }

    /// Makes sure that the table exists and has the plan's columns.
    pub(super) async fn ensure(&self, plan: &Arc<Plan>) -> Result<(), DeltaError> {
        let mut slot = self.current().await?;
        if slot.state.is_some() && slot.plan.as_ref().is_some_and(|known| Arc::ptr_eq(known, plan) || known == plan) {
            return Ok(());
        }
        slot.wait().await;
        let (table, plan, now) = (Arc::clone(&self.files), Arc::clone(plan), self.clock.now());
        let options = self.options.clone();
        let name = self.name.clone();
        blocking(move || {
            let before = slot.state.take();
            let known = before.as_ref().map(|state| state.version);
            let state = match before {
                None => layout::create(&*table, &plan, &options, now),
                Some(state) => layout::widen(&*table, &plan, state, now),
            };
            let state = state.map_err(|error| error.into_delta(&name))?;
            if known != Some(state.version) {
                slot.committed(&options);
            }
            slot.state = Some(state);
            slot.plan = Some(plan);
            Ok(())
        })
        .await?
    }

    /// Appends the rows of batches of one plan as one version; nothing of it is visible unless all of it is. One list of
    /// outcomes a batch.
    pub(super) async fn append_all(&self, batches: Vec<Batch>) -> Result<Vec<Vec<Outcome>>, DeltaError> {
        let Some(plan) = batches.first().map(|batch| Arc::clone(&batch.plan)) else { return Ok(Vec::new()) };
        self.ensure(&plan).await?;
        let (table, now) = (Arc::clone(&self.files), self.clock.now());
        let Staged { outcomes, files } =
            blocking(move || stage(&*table, &batches, now)).await?.map_err(|error| error.into_delta(&self.name))?;
        if files.is_empty() {
            return Ok(outcomes);
        }
        let actions: Vec<_> = files.iter().map(|(_, add, _)| Action::Add(add.clone())).collect();
        let apply = move |mut state: State, now| {
            for (part, add, rows) in &files {
                state.add(*part, add, *rows, now);
            }
            Some(state)
        };
        self.commit("WRITE", |_| Some(actions.clone()), apply).await?;
        Ok(outcomes)
    }

    /// Writes the next version of what `actions` has for the newest; it has none where its actions do not fit any more.
    /// `apply` takes them over into the state; without a state it is read anew.
    ///
    /// Runs to its end even when the caller's future is dropped halfway.
    pub(super) async fn commit(
        &self,
        operation: &'static str,
        actions: impl Fn(&State) -> Option<Vec<Action>>,
        apply: impl Fn(State, Micros) -> Option<State> + Clone + Send + 'static,
    ) -> Result<(), DeltaError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let mut slot = self.current().await?;
            let Some(actions) = slot.state.as_ref().and_then(&actions) else { break };
            slot.wait().await;
            let (table, options) = (Arc::clone(&self.files), self.options.clone());
            let (now, apply) = (self.clock.now(), apply.clone());
            let committed = blocking(move || {
                let Some(mut state) = slot.state.take() else { return Err(CommitError::Taken) };
                let committed = log::commit(&*table, state.version + 1, operation, now, actions);
                if committed.is_ok() {
                    state.version += 1;
                    state.since_checkpoint += 1;
                    slot.state = apply(state, now);
                    slot.committed(&options);
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

    /// The state of the newest version, locked; read on first use and where another engine has written.
    pub(super) async fn current(&self) -> Result<OwnedMutexGuard<Slot>, DeltaError> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if slot.state.is_none() {
            slot.plan = None;
            slot.state = State::load(&self.files, self.clock.now()).await.map_err(|error| self.unreadable(error))?;
        }
        Ok(slot)
    }

    /// Waits until the next commit may be made.
    pub(super) async fn wait(&self) {
        let due = self.slot.lock().await.due;
        if let Some(due) = due {
            sleep_until(due).await;
        }
    }

    pub(super) fn io(&self, doing: &'static str, source: std::io::Error) -> DeltaError {
        DeltaError::Io { place: self.name.clone(), doing, source }
    }

    pub(super) fn unreadable(&self, source: deltalake::DeltaTableError) -> DeltaError {
        DeltaError::Table { table: self.name.clone(), source: Box::new(source) }
    }
}

impl Slot {
    /// Waits until the next commit may be made.
    async fn wait(&self) {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
    }

    fn committed(&mut self, options: &Options) {
        let interval = u64::try_from(options.commit_interval).unwrap_or(0);
        self.due = (interval > 0).then(|| Instant::now() + Duration::from_micros(interval));
    }
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DeltaError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| DeltaError::Interrupted(error.to_string()))
}

/// Decodes, sorts, encodes and stores the rows of `batches`.
fn stage(table: &dyn Files, batches: &[Batch], now: Micros) -> Result<Staged, Fault> {
    let (outcomes, encoded) = encode(batches).map_err(|error| Fault::Io(std::io::Error::other(error)))?;
    let mut files = Vec::with_capacity(encoded.len());
    let mut stored = Vec::with_capacity(encoded.len());
    for data in encoded {
        let (part, rows) = (data.part, data.rows as u64);
        let (file, add) = log::new_file(data, true, now);
        stored.push(file);
        files.push((part, add, rows));
    }
    table.store(stored)?;
    Ok(Staged { outcomes, files })
}

type EncodedBatches = (Vec<Vec<Outcome>>, Vec<Encoded>);

fn encode(batches: &[Batch]) -> Result<EncodedBatches, deltalake::parquet::errors::ParquetError> {
    let Some(plan) = batches.first().map(|batch| &*batch.plan) else { return Ok((Vec::new(), Vec::new())) };
    let count = batches.iter().map(|batch| batch.rows.len()).sum();
    let mut parts = Vec::with_capacity(count);
    let mut builder = RowsBuilder::new(&plan.columns, count);
    let mut row = Row::default();
    let mut outcomes = Vec::with_capacity(batches.len());
    for batch in batches {
        let mut append = |line| {
            if let Some(reason) = fault_of(plan, line, &mut row) {
                return Outcome::Poison(reason);
            }
            if let Some(system) = plan.system {
                row.set(system.loaded_at, Value::Timestamp(batch.loaded_at));
            }
            parts.push(Part::of(plan, &row.values));
            builder.push(&row.values);
            Outcome::Done
        };
        outcomes.push(batch.rows.iter().map(|line| append(line)).collect());
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
