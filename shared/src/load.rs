//! The port to a bulk load: tables filled beside what readers see, then shown all at once.
//!
//! A run stages rows, makes them durable at checkpoints, and publishes once. Until then readers see the tables as they
//! were; a run that fails or is killed leaves them so.

#[cfg(any(test, feature = "contract"))]
#[expect(clippy::unwrap_used, reason = "checks, not a part of any program")]
pub mod contract;
mod memory;
mod null;

use std::sync::Arc;

use async_trait::async_trait;

pub use memory::MemoryLoader;
pub use null::NullLoader;

use crate::row::Value;
use crate::schema::{Granularity, Partition, Plan};

/// How the rows of a run meet those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The run's rows take the place of all others. Whether rows stay that are streamed into the table meanwhile is the
    /// adapter's to say.
    Replace,
    /// The run's rows take the place of those whose partition time lies on these days (since 1970-01-01, both ends).
    ReplaceDays {
        /// First day.
        first: i32,
        /// Last day.
        last: i32,
    },
    /// The run's rows are added.
    Append,
    /// As `Replace`, with the tables made anew from their schemas.
    Recreate,
}

impl Mode {
    /// Refuses tables that this mode cannot load: the error says which, and why.
    pub fn check(self, plan: &Plan) -> Result<(), String> {
        let by_day = |partition: &Partition| matches!(partition.granularity, Granularity::Day | Granularity::Hour);
        if !matches!(self, Self::ReplaceDays { .. }) || plan.table.partition.as_ref().is_some_and(by_day) {
            return Ok(());
        }
        Err(format!("{} is not partitioned by day: its days cannot be replaced", plan.table.full_name()))
    }
}

/// Refuses what is no name of a run; a name becomes a part of those of tables and files.
#[cfg(any(feature = "bigquery", feature = "delta"))]
pub(crate) fn check_run(run: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if (1..=40).contains(&run.len()) && run.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(format!("`{run}` names no run: give 1 to 40 of 0-9, a-z and _"))
}

/// A warehouse that can be loaded in bulk.
#[async_trait]
pub trait Loader: Send + Sync {
    /// Begins the load `run` of `tables`, or, with what a [`Load::checkpoint`] of the same run gave, goes on from there:
    /// what was staged after that checkpoint is forgotten.
    ///
    /// `run` is unique a run: `[0-9a-z_]`, at most 40 characters. The error says what is in the way.
    async fn begin(
        &self,
        run: &str,
        tables: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&serde_json::Value>,
    ) -> Result<Box<dyn Load>, String>;
}

/// One load under way.
#[async_trait]
pub trait Load: Send {
    /// Adds one row, a value a column of `tables[table]`, decoded and checked. Held in memory until [`Load::flush`].
    fn add(&mut self, table: usize, values: &[Value<'_>]);

    /// Bytes held in memory, about.
    fn held(&self) -> usize;

    /// Moves what is held towards the staging area. The error ends the run.
    async fn flush(&mut self) -> Result<(), String>;

    /// Makes everything added so far durable in the staging area; the answer is all that a later
    /// [`Loader::begin`] needs to go on from here.
    async fn checkpoint(&mut self) -> Result<serde_json::Value, String>;

    /// Shows the rows of the run, of all tables at once; of copies of a row of a streaming table it may be one.
    ///
    /// Durable when it returns; repeated after a crash in its middle (begin with the last checkpoint, publish) it ends in
    /// the same state, and so does a repetition of the whole run under the same name that takes a checkpoint and begins
    /// with it before it publishes.
    async fn publish(self: Box<Self>) -> Result<(), String>;

    /// Removes what was staged; the tables stay as they were.
    async fn abandon(self: Box<Self>) -> Result<(), String>;
}
