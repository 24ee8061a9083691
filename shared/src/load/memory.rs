//! Tables in memory, for tests and measurements: a load into them keeps the port's promises.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Load, Loader, Mode};
use crate::clock::DAY;
use crate::row::{Row, Value};
use crate::schema::Plan;
use crate::{decode, encode};

type Tables = BTreeMap<String, Vec<Bytes>>;

/// Keeps rows by event type, as lines of JSON.
#[derive(Debug, Default, Clone)]
pub struct MemoryLoader {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    shown: Tables,
    /// Rows at each checkpoint, by run.
    staged: BTreeMap<String, Vec<Tables>>,
    /// Runs that were published.
    published: BTreeSet<String>,
    /// How many bytes may still be flushed before the place is full.
    room: Option<usize>,
}

impl MemoryLoader {
    /// From now on there is room for so many bytes, as on a disk that gets full.
    pub fn leave_room(&self, bytes: usize) {
        self.locked(|state| state.room = Some(bytes));
    }

    /// The rows that readers see of the table of `event_type`.
    pub fn rows(&self, event_type: &str) -> Vec<Bytes> {
        self.locked(|state| state.shown.get(event_type).cloned().unwrap_or_default())
    }

    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Loader for MemoryLoader {
    async fn begin(
        &self,
        run: &str,
        tables: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&serde_json::Value>,
    ) -> Result<Box<dyn Load>, String> {
        tables.iter().try_for_each(|plan| mode.check(plan))?;
        let rows = match checkpoint {
            None => Tables::new(),
            Some(number) => self
                .locked(|state| {
                    let index = number.as_u64().and_then(|number| usize::try_from(number).ok());
                    let of_run = state.staged.get_mut(run)?;
                    of_run.truncate(index?.checked_add(1)?);
                    of_run.last().cloned()
                })
                .ok_or_else(|| format!("no checkpoint {number} of the run {run}"))?,
        };
        let loader = self.clone();
        Ok(Box::new(MemoryLoad { loader, run: run.into(), plans: tables.to_vec(), mode, rows, held: 0 }))
    }
}

/// Whether a row's partition time lies on one of the days.
fn is_of(plan: &Plan, line: &[u8], days: RangeInclusive<i32>) -> bool {
    let mut row = Row::default();
    let is_row = decode::row(plan, line, &mut row).is_ok();
    let time = plan
        .table
        .partition
        .filter(|_| is_row)
        .and_then(|partition| row.values.get(partition.column)?.partition_time());
    time.is_some_and(|time| (i64::from(*days.start())..=i64::from(*days.end())).contains(&time.div_euclid(DAY)))
}

struct MemoryLoad {
    loader: MemoryLoader,
    run: String,
    plans: Vec<Arc<Plan>>,
    mode: Mode,
    rows: Tables,
    held: usize,
}

#[async_trait]
impl Load for MemoryLoad {
    fn add(&mut self, table: usize, values: &[Value<'_>]) {
        let Some(plan) = self.plans.get(table) else { return };
        let mut line = Vec::new();
        encode::object(&plan.columns, values, &mut line);
        self.held += line.len();
        self.rows.entry(plan.event_type.clone()).or_default().push(line.into());
    }

    fn held(&self) -> usize {
        self.held
    }

    async fn flush(&mut self) -> Result<(), String> {
        let held = std::mem::take(&mut self.held);
        self.loader.locked(|state| match &mut state.room {
            Some(room) if *room < held => Err("no space left".to_string()),
            Some(room) => {
                *room -= held;
                Ok(())
            }
            None => Ok(()),
        })
    }

    async fn checkpoint(&mut self) -> Result<serde_json::Value, String> {
        self.flush().await?;
        let rows = self.rows.clone();
        let number = self.loader.locked(|state| {
            let of_run = state.staged.entry(self.run.clone()).or_default();
            of_run.push(rows);
            of_run.len() - 1
        });
        Ok(number.into())
    }

    async fn publish(mut self: Box<Self>) -> Result<(), String> {
        self.flush().await?;
        self.loader.locked(|state| {
            if !state.published.insert(self.run.clone()) {
                return;
            }
            for plan in &self.plans {
                let rows = self.rows.remove(&plan.event_type).unwrap_or_default();
                let shown = state.shown.entry(plan.event_type.clone()).or_default();
                match self.mode {
                    Mode::Append => {}
                    Mode::Replace | Mode::Recreate => shown.clear(),
                    Mode::ReplaceDays { first, last } => shown.retain(|row| !is_of(plan, row, first..=last)),
                }
                shown.extend(rows);
            }
        });
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<(), String> {
        self.loader.locked(|state| state.staged.remove(&self.run));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::contract;

    #[tokio::test]
    async fn it_keeps_the_contract() {
        let loader = MemoryLoader::default();
        let rows = async |plan: &Plan| {
            let rows = loader.rows(&plan.event_type);
            rows.iter().map(|row| serde_json::from_slice(row).unwrap()).collect()
        };
        contract::suite(&loader, rows).await;
    }
}
