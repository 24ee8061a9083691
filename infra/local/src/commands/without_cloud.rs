//! What `cloud.rs` offers, in a binary that was built without clouds: how to get them.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use backfill::Deps;
use shared::clock::Clock;
use shared::publish::Publisher;

use super::{Place, query, release, schema, status};
use crate::dead_letters::Source;
use crate::dead_letters::replay::Ways;
use crate::error::Failure;
use crate::status::Status;

/// `contextflow schema diff`.
pub fn schema_diff(_: &schema::DiffArgs) -> Ready<Result<(), Failure>> {
    missing("`schema diff` compares the schemas with BigQuery", "schema diff")
}

/// `contextflow schema apply`.
pub fn schema_apply(_: &schema::ApplyArgs) -> Ready<Result<(), Failure>> {
    missing("`schema apply` changes BigQuery", "schema apply")
}

/// `contextflow backfill --warehouse bigquery`.
pub fn load(_: &Place, _: &mut Deps) -> Ready<Result<(), Failure>> {
    missing("`--warehouse bigquery` loads BigQuery", "backfill --warehouse bigquery …")
}

/// `contextflow query --warehouse bigquery`.
pub fn query(_: &str, _: &Place) -> Ready<Result<query::Answer, Failure>> {
    missing("`--warehouse bigquery` asks BigQuery", "query --warehouse bigquery …")
}

/// `contextflow dead-letters … --warehouse bigquery`.
pub fn dead_letters(_: &Place) -> Ready<Result<Box<dyn Source>, Failure>> {
    missing("`--warehouse bigquery` asks BigQuery", "dead-letters list --warehouse bigquery")
}

/// `contextflow dead-letters replay --warehouse bigquery`.
pub fn ways(_: Option<&str>, _: &Place, _: Deps) -> Ready<Result<Ways, Failure>> {
    missing("`--warehouse bigquery` replays through Pub/Sub", "dead-letters replay --warehouse bigquery")
}

/// `contextflow status --warehouse bigquery`.
pub fn status(_: &status::Args, _: &Clock) -> Ready<Result<Status, Failure>> {
    missing("`--warehouse bigquery` asks the deployed pipeline", "status --warehouse bigquery")
}

/// `contextflow release`.
pub fn release(_: &release::Args) -> Ready<Result<release::Report, Failure>> {
    missing("`release` undoes what the kill-switch has done on Google Cloud", "release --project PROJECT")
}

/// `contextflow generate --to pubsub://…`.
pub fn topic(to: &str, _: Duration) -> Ready<Result<Arc<dyn Publisher>, Failure>> {
    missing(&format!("{to} is a topic of Pub/Sub"), "generate --to pubsub://PROJECT/TOPIC")
}

fn missing<T>(what: &str, command: &str) -> Ready<Result<T, Failure>> {
    ready(Err(Failure::usage(format!(
        "{what}, and this contextflow was built without clouds; get it with `cargo run --features cloud -- {command}`"
    ))))
}
