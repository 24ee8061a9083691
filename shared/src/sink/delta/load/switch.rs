//! The switch from the tables as they were to those with a load's rows, for all tables at once.
//!
//! A pointer at the root of the warehouse says which load was shown last. To show one,
//!
//! 1. the pointer is replaced by one that names the load, each table's version as it is, and what is to become of it:
//!    from now on readers keep to these versions, and the load is sure to be shown;
//! 2. each table gets the load's files as one version of its log, marked with the run;
//! 3. the pointer is replaced by one that names the load alone: readers see the newest versions again.
//!
//! A reader takes the pointer before and after it looks for the newest versions, and looks again where it has changed.
//! Whoever writes the warehouse next completes a switch that a crash cut short, before anything else; the marks tell
//! which tables have their version. Between loads the pointer binds nobody, so that streams append without knowing of
//! it. Other engines, which do not know the pointer, see each table's newest version.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use deltalake::kernel::{Action, Add};
use tokio::sync::Mutex;
use tracing::info;

use super::super::DeltaError;
use super::super::data_file::Part;
use super::super::files::Files;
use super::super::layout;
use super::super::log::{self, State};
use super::super::table::{Table, blocking};
use super::pointer::{Change, Pointer};
use super::staging::staged_path;
use crate::clock::Micros;
use crate::load::Mode;
use crate::schema::Plan;

/// The pointer's one writer.
#[derive(Debug)]
pub(in super::super) struct Switch {
    /// Address of the warehouse.
    place: String,
    root: Arc<dyn Files>,
    /// Whether no switch is under way, as far as is known.
    is_complete: AtomicBool,
    turn: Mutex<()>,
}

impl Switch {
    pub(in super::super) fn new(place: String, root: Arc<dyn Files>) -> Self {
        Self { place, root, is_complete: AtomicBool::new(false), turn: Mutex::default() }
    }

    /// Shows a load.
    pub(super) async fn publish(&self, run: &str, changes: Vec<(Arc<Table>, Change)>) -> Result<(), DeltaError> {
        let _turn = self.turn.lock().await;
        let found = self.read().await?;
        if found.is_switching() {
            let reason = format!("load {} is not shown completely; begin again, which completes it", found.run);
            return Err(DeltaError::Load { run: run.into(), reason });
        }
        self.is_complete.store(false, Ordering::Release);
        let tables = changes.iter().map(|(_, change)| change.clone()).collect();
        self.write(Pointer { run: run.into(), tables }).await?;
        self.complete(run, &changes).await
    }

    /// Completes a switch that was cut short, if there is one; `table` finds its tables.
    pub(in super::super) async fn recover(&self, table: impl Fn(&Change) -> Arc<Table>) -> Result<(), DeltaError> {
        if self.is_complete.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let Pointer { run, tables } = self.read().await?;
        if tables.is_empty() {
            self.is_complete.store(true, Ordering::Release);
            return Ok(());
        }
        info!(run, "completing a load that was cut short while it was shown");
        let changes: Vec<_> = tables.into_iter().map(|change| (table(&change), change)).collect();
        self.complete(&run, &changes).await
    }

    async fn complete(&self, run: &str, changes: &[(Arc<Table>, Change)]) -> Result<(), DeltaError> {
        for (table, change) in changes {
            table.show(run, change).await.map_err(|error| {
                let reason = format!(
                    "{error}; readers see the tables as they were, and whoever writes the warehouse next tries again"
                );
                DeltaError::Load { run: run.into(), reason }
            })?;
        }
        self.write(Pointer { run: run.into(), tables: Vec::new() }).await?;
        self.is_complete.store(true, Ordering::Release);
        Ok(())
    }

    async fn read(&self) -> Result<Pointer, DeltaError> {
        let root = Arc::clone(&self.root);
        let doing = "reading which load was shown last";
        let io = |source| DeltaError::Io { place: self.place.clone(), doing, source };
        blocking(move || Pointer::read(&*root)).await?.map_err(io)
    }

    async fn write(&self, pointer: Pointer) -> Result<(), DeltaError> {
        let root = Arc::clone(&self.root);
        let doing = "writing which load is shown";
        let io = |source| DeltaError::Io { place: self.place.clone(), doing, source };
        blocking(move || pointer.write(&*root)).await?.map_err(io)
    }
}

impl Table {
    /// Makes sure that there is a table for a load to be shown in, and that its rows will fit.
    pub(super) async fn prepare_load(&self, plan: &Arc<Plan>, mode: Mode) -> Result<(), DeltaError> {
        let is_there = self.current().await?.state.is_some();
        if mode != Mode::Recreate || !is_there {
            self.ensure(plan).await?;
        }
        self.change(plan, mode, Vec::new()).await.map(drop)
    }

    /// What showing the files of a load does to the table.
    pub(super) async fn change(&self, plan: &Plan, mode: Mode, files: Vec<Add>) -> Result<Change, DeltaError> {
        let slot = self.current().await?;
        let state = slot.state.as_ref().ok_or_else(|| self.gone())?;
        let definition = match mode {
            Mode::Recreate => layout::remake(plan, state, &self.options),
            Mode::Replace | Mode::ReplaceDays { .. } | Mode::Append => Ok(Vec::new()),
        };
        Ok(Change {
            dataset: plan.table.dataset.clone(),
            name: plan.table.name.clone(),
            version: state.version,
            replaces: mode != Mode::Append,
            days: if let Mode::ReplaceDays { first, last } = mode { Some((first, last)) } else { None },
            definition: definition.map_err(|fault| fault.into_delta(&self.name))?,
            files,
        })
    }

    /// Makes the version with the files of a load, unless it is there.
    async fn show(&self, run: &str, change: &Change) -> Result<(), DeltaError> {
        if self.holds_load(run).await? {
            return Ok(());
        }
        if self.current().await?.state.is_none() {
            return Err(self.gone());
        }
        let paths: Vec<_> = change.files.iter().map(|file| (staged_path(run, &file.path), file.path.clone())).collect();
        let files = Arc::clone(&self.files);
        blocking(move || files.rename(&paths)).await?.map_err(|error| self.io("moving staged files", error))?;
        let actions = |state: &State| Some(actions(run, change, state, self.clock.now()));
        // What the log says now is not kept, as the load may have come from another process.
        self.commit("LOAD", actions, |_, _| None).await
    }

    /// Whether the rows of the load are shown.
    pub(super) async fn holds_load(&self, run: &str) -> Result<bool, DeltaError> {
        log::holds_load(&*self.files, run).await.map_err(|error| self.unreadable(error))
    }

    /// Removes what loads have staged, except for the files `kept`; `false` where one of those is not there.
    pub(super) async fn unstage(&self, kept: HashSet<String>) -> Result<bool, DeltaError> {
        let files = Arc::clone(&self.files);
        let removed = blocking(move || {
            let (there, left): (Vec<_>, Vec<_>) =
                files.staged_files()?.into_iter().partition(|path| kept.contains(path));
            files.unstage(&left)?;
            Ok(there.len() == kept.len())
        });
        removed.await?.map_err(|error| self.io("removing staged files", error))
    }

    fn gone(&self) -> DeltaError {
        DeltaError::Schema {
            table: self.name.clone(),
            reason: "it was removed while it was loaded; load it anew".into(),
        }
    }
}

/// The version that shows a load.
fn actions(run: &str, change: &Change, state: &State, now: Micros) -> Vec<Action> {
    let mut actions = vec![Action::Txn(log::load_mark(run, now))];
    actions.extend(change.definition.iter().cloned());
    if change.replaces {
        let is_replaced = |part: &Part| match (change.days, part) {
            (None, _) => true,
            (Some((first, last)), Part::Date(Some(day))) => (first..=last).contains(day),
            (Some(_), _) => false,
        };
        let parts = state.files.iter().filter(|(part, _)| is_replaced(part));
        let removed = parts.flat_map(|(part, files)| files.iter().map(move |file| (*part, file)));
        actions.extend(removed.map(|(part, file)| Action::Remove(log::tombstone(part, file, true, now))));
    }
    actions.extend(change.files.iter().cloned().map(Action::Add));
    actions
}
