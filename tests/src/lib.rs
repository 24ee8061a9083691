//! What black-box tests share: calls of a router, Pub/Sub pushes, the three functions over ports in memory, and
//! warehouses that fail as told.
//!
//! Nothing here knows how a function works inside: requests go in, answers, messages, rows and objects come out.

pub mod bigquery;
pub mod binary;
pub mod bucket;
mod call;
pub mod deployment;
mod functions;
pub mod google_server;
pub mod infra;
mod naughty;
pub mod parts;
pub mod proxy;
pub mod publisher_process;
pub mod pubsub;
mod push;
mod schemas;
pub mod signer;
pub mod storage_write;
pub mod sts;
pub mod topic_server;
pub mod visits;
mod warehouse;

pub use call::{Answer, call, get, post, post_json, problem_codes};
pub use functions::{
    BatcherFixture, EnricherFixture, PublisherFixture, limits, objects, patient_batcher, publisher_deps, quick_batcher,
};
pub use naughty::naughty_strings;
pub use push::{ENRICHED_SUB, PUBLISHED_AT, RAW_SUB, delivery, forwarded, json_lines, push, push_from};
pub use schemas::{built_in, registry_with};
pub use warehouse::{GatedSink, PanickingSink, ScriptedSink};

use shared::clock::Micros;

/// 2026-10-20T00:15:02.920Z: the time at which the clocks of the fixtures stand.
pub const NOW: Micros = 1_792_455_302_920_000;
/// [`NOW`] as RFC 3339.
pub const NOW_TEXT: &str = "2026-10-20T00:15:02.920Z";
