//! What `cloud.rs` offers, in a binary that was built without clouds: how to get them.

use std::sync::Arc;
use std::time::Duration;

use shared::publish::Publisher;

use super::{Place, query, schema};
use crate::error::Failure;

/// `contextflow schema diff`.
pub async fn schema_diff(_: &schema::DiffArgs) -> Result<(), Failure> {
    Err(missing("`schema diff` compares the schemas with BigQuery", "schema diff"))
}

/// `contextflow schema apply`.
pub async fn schema_apply(_: &schema::ApplyArgs) -> Result<(), Failure> {
    Err(missing("`schema apply` changes BigQuery", "schema apply"))
}

/// `contextflow query --warehouse bigquery`.
pub async fn query(_: &str, _: &Place) -> Result<query::Answer, Failure> {
    Err(missing("`--warehouse bigquery` asks BigQuery", "query --warehouse bigquery …"))
}

/// `contextflow generate --to pubsub://…`.
pub async fn topic(to: &str, _: Duration) -> Result<Arc<dyn Publisher>, Failure> {
    Err(missing(&format!("{to} is a topic of Pub/Sub"), "generate --to pubsub://PROJECT/TOPIC"))
}

fn missing(what: &str, command: &str) -> Failure {
    Failure::usage(format!(
        "{what}, and this contextflow was built without clouds; get it with `cargo run --features cloud -- {command}`"
    ))
}
