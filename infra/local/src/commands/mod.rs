//! The operator's commands, one file each.

pub mod backfill;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(not(feature = "cloud"))]
#[path = "without_cloud.rs"]
mod cloud;
pub mod cost;
pub mod dead_letters;
pub mod enrich;
pub mod generate;
mod parquet;
pub mod query;
pub mod release;
pub mod schema;
pub mod status;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use shared::enrich::Tables;
use shared::enrich::geo::GEO;
use shared::schema::{Plan, Registry};

use crate::error::Failure;

/// Where BigQuery is.
#[derive(clap::Args)]
pub struct Place {
    /// Project of Google Cloud
    #[arg(long, env = "GOOGLE_CLOUD_PROJECT", value_name = "ID")]
    pub project: Option<String>,
    /// BigQuery location, for example EU or europe-west1
    #[arg(long, value_name = "LOCATION")]
    pub location: Option<String>,
}

/// The schema that `name` stands for: a type that is built in, or a file.
pub fn plan(name: &str) -> Result<Arc<Plan>, Failure> {
    let mut registry = registry(None)?;
    if let Some(plan) = registry.get(name) {
        return Ok(Arc::clone(plan));
    }
    if !Path::new(name).exists() {
        let known: Vec<_> = registry.plans().map(|plan| plan.event_type.as_str()).collect();
        let known = known.join(", ");
        return Err(Failure::usage(format!("no schema `{name}`: neither a file nor one of {known}")));
    }
    let text = std::fs::read_to_string(name).map_err(|error| Failure::usage(format!("schema file {name}: {error}")))?;
    // A file that changes a built-in type stands in its place.
    registry = Registry::default();
    registry.add(name, &text).map_err(Failure::usage)
}

/// The built-in schemas and those of a folder.
pub fn registry(folder: Option<&Path>) -> Result<Registry, Failure> {
    match folder {
        Some(folder) => Registry::with_folder(folder),
        None => Registry::built_in(),
    }
    .map_err(Failure::usage)
}

/// The lookup tables, with the table of places in a file where one is given.
pub fn lookups(geo: Option<&Path>) -> Result<Tables, Failure> {
    let Some(path) = geo else { return Tables::built_in().map_err(Failure::work) };
    let fault = |reason: String| Failure::usage(format!("--geo {}: {reason}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
    Tables::with(GEO.name, &bytes).map_err(fault)
}

/// A bar on a terminal, nothing elsewhere.
pub fn progress(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::new_spinner(),
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
