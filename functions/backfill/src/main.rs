//! The job as a process: flags and environment in, one JSON object out. Without clouds it loads nowhere, for measuring.

use std::process::ExitCode;
use std::sync::Arc;

use backfill::config::{self, Options};
use backfill::{Error, Progress};
use clap::Parser;
use mimalloc::MiMalloc;
use shared::settings::{SettingError, Settings};
use shared::telemetry;

/// A visit is many small allocations.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
#[command(name = "backfill", version, about = "JSON lines of files and buckets into the tables of the warehouse")]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::from_env();
    let logging = telemetry::init(settings.text("RUST_LOG", "info"), settings.get("GOOGLE_CLOUD_PROJECT"));
    config::end(work(&Cli::parse().options, settings, logging).await)
}

async fn work(options: &Options, settings: Settings, logging: Result<(), SettingError>) -> Result<(), Error> {
    logging.map_err(|error| Error::Usage(error.to_string()))?;
    let (deps, request) = config::wire(options, settings).await?;
    backfill::run(deps, request, Arc::new(Progress::default())).await?.print(options.json)
}
