//! The warehouse as its users meet it: appended to, read back, merged, reopened.

mod append;
mod bucket;
mod care;
mod load;
mod query;
mod types;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use deltalake::arrow::array::{AsArray, RecordBatch};
use deltalake::arrow::datatypes::Int64Type;

use super::files::Place;
use super::rows::{self, lines};
use super::{DeltaSink, Options, QueryError, Warehouse};
use crate::clock::{Clock, SECOND};
use crate::decode::time;
use crate::row::Value;
use crate::schema::{Plan, Registry};
use crate::sink::contract::{batch, click, values};
use crate::sink::{Outcome, Sink as _};

/// Small enough for a test to see every rule at work.
fn eager() -> Options {
    Options { merge_at: 4, checkpoint_every: 10, ..Options::default() }
}

fn registry() -> Registry {
    Registry::built_in().unwrap()
}

fn plan(event_type: &str) -> Arc<Plan> {
    Arc::clone(registry().get(event_type).unwrap())
}

fn folder(root: &Path) -> Place {
    Place::Folder(root.to_path_buf())
}

/// The rows of a plan's table as lines of the enriched message.
async fn read_back(root: &Path, plan: &Arc<Plan>) -> Vec<Bytes> {
    read_from(&folder(root), plan).await
}

async fn read_from(place: &Place, plan: &Arc<Plan>) -> Vec<Bytes> {
    let warehouse = Warehouse::of([plan], place).unwrap();
    rows::all(&warehouse, plan).await
}

/// One number out of a query of one.
async fn number(warehouse: &Warehouse, query: &str) -> i64 {
    let batches = warehouse.sql(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let rows: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).collect();
    assert_eq!(rows.len(), 1, "{query}");
    rows[0].column(0).as_primitive::<Int64Type>().value(0)
}

fn parquet_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("_delta_log") {
            found.extend(parquet_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
    found
}
