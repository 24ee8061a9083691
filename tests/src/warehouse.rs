//! Warehouses that fail as told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use shared::sink::{Batch, MemorySink, Outcome, Sink};
use tokio::sync::Semaphore;

/// A warehouse that answers each row as told for its id, and keeps the rows that it answers `Done`.
#[derive(Default)]
pub struct ScriptedSink {
    script: Mutex<Script>,
    landed: MemorySink,
}

#[derive(Default)]
struct Script {
    by_id: BTreeMap<String, Outcome>,
    otherwise: Option<Outcome>,
    unreachable: bool,
}

impl ScriptedSink {
    /// Rows with this id get `outcome` until [`ScriptedSink::forgive`].
    pub fn answer(&self, id: &str, outcome: Outcome) {
        self.script().by_id.insert(id.to_string(), outcome);
    }

    /// Every row without an answer of its own gets `outcome`.
    pub fn answer_all(&self, outcome: Outcome) {
        self.script().otherwise = Some(outcome);
    }

    /// From now on every row lands.
    pub fn forgive(&self) {
        *self.script() = Script::default();
    }

    /// `ready` fails.
    pub fn cut_off(&self) {
        self.script().unreachable = true;
    }

    /// The rows that landed, in the order of arrival.
    pub fn rows(&self, event_type: &str) -> Vec<Bytes> {
        self.landed.rows(event_type)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self, row: &[u8]) -> Outcome {
        let row: Value = serde_json::from_slice(row).expect("a sink is handed rows of JSON");
        let id = row["event_id"].as_str().unwrap_or_default();
        let script = self.script();
        script.by_id.get(id).cloned().or(script.otherwise.clone()).unwrap_or(Outcome::Done)
    }
}

#[async_trait]
impl Sink for ScriptedSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        let outcomes: Vec<_> = batch.rows.iter().map(|row| self.outcome(row)).collect();
        let landing = batch.rows.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Done);
        let rows = landing.map(|(row, _)| row.clone()).collect();
        self.landed.append(&Batch { rows, ..batch.clone() }).await;
        outcomes
    }

    async fn ready(&self) -> Result<(), String> {
        if self.script().unreachable { Err("the warehouse is cut off".into()) } else { Ok(()) }
    }
}

/// A warehouse whose appends stand still until they are let through, each with the outcome for all its rows.
pub struct GatedSink {
    arrived: Semaphore,
    gate: Semaphore,
    outcome: Mutex<Outcome>,
    appends: AtomicUsize,
}

impl Default for GatedSink {
    fn default() -> Self {
        Self {
            arrived: Semaphore::new(0),
            gate: Semaphore::new(0),
            outcome: Mutex::new(Outcome::Done),
            appends: AtomicUsize::new(0),
        }
    }
}

impl GatedSink {
    /// Waits until an append stands at the gate.
    pub async fn arrival(&self) {
        self.arrived.acquire().await.expect("the gate stays").forget();
    }

    /// Lets one append through with `outcome`.
    pub fn let_through(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        self.gate.add_permits(1);
    }

    /// How many appends were asked for.
    pub fn appends(&self) -> usize {
        self.appends.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Sink for GatedSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        self.arrived.add_permits(1);
        self.gate.acquire().await.expect("the gate stays").forget();
        vec![self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone(); batch.rows.len()]
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A warehouse whose first append panics; the later ones land.
#[derive(Default)]
pub struct PanickingSink {
    appends: AtomicUsize,
    landed: MemorySink,
}

impl PanickingSink {
    /// The rows that landed.
    pub fn rows(&self, event_type: &str) -> Vec<Bytes> {
        self.landed.rows(event_type)
    }
}

#[async_trait]
impl Sink for PanickingSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        if self.appends.fetch_add(1, Ordering::SeqCst) == 0 {
            std::panic::resume_unwind(Box::new("the first append of this sink panics")); // without a backtrace
        }
        self.landed.append(batch).await
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
