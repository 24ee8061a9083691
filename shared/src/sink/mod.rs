//! The port to a warehouse: what a batcher appends to.

#[cfg(feature = "bigquery")]
pub mod bigquery;
#[cfg(any(test, feature = "contract"))]
#[expect(clippy::unwrap_used, reason = "checks, not a part of any program")]
pub mod contract;
#[cfg(feature = "delta")]
pub mod delta;
mod memory;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use memory::MemorySink;

use crate::clock::Micros;
use crate::dead_letter::Reason;
use crate::schema::Plan;

/// What became of one item. It decides who tries again: `Retry` is somebody's turn, `Poison` is nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Durable where it belongs.
    Done,
    /// May work later with the same bytes; the text says what failed.
    Retry(String),
    /// Never works with these bytes: a dead letter.
    Poison(Reason),
}

/// Rows of one table in the form of the enriched message.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The table's plan.
    pub plan: Arc<Plan>,
    /// One JSON object a row, every column by its own name, `event_id` and `received_at` included. Each was decoded
    /// with the plan before; a sink may still find one that it cannot use.
    pub rows: Vec<Bytes>,
    /// What the rows' `loaded_at` is to be.
    pub loaded_at: Micros,
}

/// A warehouse.
///
/// `append` is infallible as a call: it answers one [`Outcome`] a row, aligned by position, and one bad row costs one
/// row, never its batch. `Done` means that the row can be queried and outlives a crash. A sink makes no routing
/// decision, keeps nothing between calls that an answer has not vouched for, and may be called concurrently.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Appends all rows of the batch to its table.
    async fn append(&self, batch: &Batch) -> Vec<Outcome>;

    /// Whether the warehouse can be reached; the error says what is in the way.
    async fn ready(&self) -> Result<(), String>;

    /// Nothing more is appended: the process is to end, and another may take over at once.
    async fn close(&self) -> Result<(), String> {
        Ok(())
    }
}
