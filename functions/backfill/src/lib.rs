//! The backfill: files of JSON lines become rows of the tables that a mapping names, shown all at once when the run ends.
//!
//! A run reads every file from its first to its last line. A line that cannot be used goes to the dead letters, and so
//! does a part of a line that is judged for itself; the rest lands. The run makes what it has done durable at
//! checkpoints, so that a killed run goes on from the last one, and it is recorded. One run is at work on a target.

mod again;
pub mod config;
mod dead_letters;
mod findings;
mod job;
mod lines;
mod record;
mod report;
mod right;
mod run;
mod source;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use shared::bucket::Location;
use shared::clock::Clock;
use shared::enrich::Tables;
use shared::enrich::address::Anonymise;
use shared::load::{Loader, Mode};
use shared::mapping::Mapping;
use shared::schema::Registry;
use shared::settings::Settings;
use shared::sink::Sink;
use tokio::runtime::Handle;

pub use again::{Again, again, problems};
pub use report::{Count, Report};

/// Why a run ended without a report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for, or the source, cannot be used. Nothing was changed.
    #[error("{0}")]
    Usage(String),
    /// The work failed.
    #[error("{0}")]
    Work(String),
}

/// What a run works with.
pub struct Deps {
    /// The tables.
    pub loader: Arc<dyn Loader>,
    /// Where dead letters are rows; without one they are only objects.
    pub dead_letter_table: Option<Arc<dyn Sink>>,
    /// The schemas.
    pub registry: Arc<Registry>,
    /// What rows of streaming tables are enriched from.
    pub lookups: Tables,
    /// What becomes of client addresses in them.
    pub anonymise: Anonymise,
    /// Where the runs of this target are recorded; nothing is recorded, and nobody kept out, without it.
    pub state: Option<Location>,
    /// Where dead letters are kept, in a folder a run; they are only counted without it.
    pub dead_letters: Option<Location>,
    /// For the source's bucket.
    pub settings: Settings,
    /// The time.
    pub clock: Clock,
    /// How another run is told who is at work.
    pub owner: String,
}

/// What a run is to do.
pub struct Request {
    /// A file, folder, pattern, `gs://` or `s3://` address.
    pub source: String,
    /// What its lines are.
    pub form: Form,
    /// The tables and how a line becomes their rows.
    pub mapping: Mapping,
    /// What becomes of the rows that are there.
    pub mode: Mode,
    /// Go on with the run that was killed.
    pub resume: bool,
    /// With more dead letters the run fails and the tables stay.
    pub max_dead_letters: Option<Limit>,
    /// Bytes of the source from one checkpoint to the next.
    pub checkpoint_bytes: u64,
}

/// What the lines of a source are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Events as their senders wrote them.
    Events,
    /// Rows of the enriched message, each once; of `days` (since 1970-01-01, both ends) where they are given.
    Archive {
        /// First and last day.
        days: Option<(i32, i32)>,
    },
}

/// How many dead letters are too many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// More than this.
    Number(u64),
    /// More than this share of the lines, 1 for all.
    Share(f64),
}

/// How far a run is, for whoever watches it: bytes of the files as they lie there.
#[derive(Debug, Default)]
pub struct Progress {
    /// Of all files; 0 until it is known.
    pub total: AtomicU64,
    /// Read so far.
    pub done: Arc<AtomicU64>,
}

/// Runs a load to its end. The report of a run that failed for its input says why, and the tables are as they were.
pub async fn run(deps: Deps, request: Request, progress: Arc<Progress>) -> Result<Report, Error> {
    let runtime = Handle::current();
    let work = tokio::task::spawn_blocking(move || run::run(&runtime, &deps, &request, &progress));
    work.await.unwrap_or_else(|stopped| Err(Error::Work(format!("the run was stopped: {stopped}"))))
}
