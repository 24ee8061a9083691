//! Tables in memory, for tests and measurements.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Batch, Outcome, Sink};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::row::Row;
use crate::schema::Plan;

/// Keeps rows by event type as they come, and fails as often as told to.
#[derive(Debug, Default)]
pub struct MemorySink {
    tables: Mutex<BTreeMap<String, Vec<Bytes>>>,
    failures: AtomicUsize,
    appends: AtomicUsize,
}

impl MemorySink {
    /// The next `count` appends answer `Retry` for every row and store nothing.
    pub fn fail_next(&self, count: usize) {
        self.failures.store(count, Ordering::SeqCst);
    }

    /// How many appends were asked for, failed ones included.
    pub fn appends(&self) -> usize {
        self.appends.load(Ordering::SeqCst)
    }

    /// The rows of the table of `event_type`, in the order of arrival.
    pub fn rows(&self, event_type: &str) -> Vec<Bytes> {
        self.tables.lock().map(|tables| tables.get(event_type).cloned().unwrap_or_default()).unwrap_or_default()
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        let must_fail =
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let Ok(mut tables) = self.tables.lock() else {
            return vec![Outcome::Retry("the memory sink is poisoned".into()); batch.rows.len()];
        };
        if must_fail {
            return vec![Outcome::Retry("the memory sink was told to fail".into()); batch.rows.len()];
        }
        let table = tables.entry(batch.plan.event_type.clone()).or_default();
        let append = |line: &Bytes| {
            if let Some(reason) = fault_of(&batch.plan, line) {
                return Outcome::Poison(reason);
            }
            table.push(line.clone());
            Outcome::Done
        };
        batch.rows.iter().map(append).collect()
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

fn fault_of(plan: &Plan, line: &[u8]) -> Option<Reason> {
    let mut row = Row::default();
    match decode::row(plan, line, &mut row) {
        Ok(()) => reason_of(&row.problems),
        Err(problem) => Some(Reason::from(&problem)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sink::contract;

    #[tokio::test]
    async fn it_keeps_the_contract() {
        let sink = Arc::new(MemorySink::default());
        let tables = Arc::clone(&sink);
        let read = move |plan: Arc<Plan>| std::future::ready(tables.rows(&plan.event_type));
        contract::holds(sink, read).await;
    }
}
