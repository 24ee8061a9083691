//! `contextflow dead-letters replay`.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use shared::clock::Clock;
use shared::enrich::address::Anonymise;

use crate::commands::query::Engine;
use crate::commands::{self, backfill, cloud};
use crate::dead_letters::Selection;
use crate::dead_letters::replay::{Replay, Summary};
use crate::dev::{self, dead_letters::Request};
use crate::error::Failure;

/// How long a replay may take before its answer is no longer waited for.
const PATIENCE: Duration = Duration::from_hours(1);

/// Arguments of `contextflow dead-letters replay`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    whose: super::Whose,
    #[command(flatten)]
    selection: Selection,
    /// Say how many would pass now, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Local letters: the address of the `contextflow dev` that writes the warehouse. `BigQuery`'s: a topic
    /// (`pubsub://PROJECT/TOPIC`, the project's raw topic unless given) or the address of a publisher
    #[arg(long, value_name = "URL|TOPIC")]
    to: Option<String>,
    /// `BigQuery`'s letters of files: what becomes of client addresses, off, truncate or drop; local ones are as `dev` says
    #[arg(long, env = "IP_ANONYMISE", default_value = "off", value_name = "POLICY")]
    ip_anonymise: Anonymise,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let summary = match (args.whose.warehouse, args.dry_run) {
        (Engine::Local, false) => through_dev(args).await?,
        (Engine::Local, true) => in_process(args, None).await?,
        (Engine::BigQuery, _) => in_process(args, args.to.as_deref()).await?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&summary).map_err(Failure::work)?);
        return Ok(());
    }
    let Summary { letters, passing, events, left } = &summary;
    match (args.dry_run, letters) {
        (_, 0) => println!("0 to replay"),
        (true, _) => println!("{passing} of {letters} would pass now, with {events} events"),
        (false, _) => println!("{passing} of {letters} replayed, with {events} events"),
    }
    for left in left {
        println!("{:>7} stay: {}, for example {}: {}", left.letters, left.reason, left.example, left.detail);
    }
    Ok(())
}

async fn in_process(args: &Args, to: Option<&str>) -> Result<Summary, Failure> {
    let registry = Arc::new(args.whose.registry()?);
    let source = args.whose.open(&registry).await?;
    let clock = Clock::system();
    let takes_rows = !to.is_some_and(|to| to.starts_with("http://") || to.starts_with("https://"));
    let ways = if args.dry_run {
        None
    } else {
        let (registry, lookups) = (Arc::clone(&registry), commands::lookups(None)?);
        let history = backfill::history(&args.whose.data_dir, registry, lookups, args.ip_anonymise, clock.clone())?;
        Some(cloud::ways(to, &args.whose.place, history).await?)
    };
    let replay = Replay { source: source.as_ref(), registry: &registry, clock: &clock, takes_rows };
    replay.run(&args.selection, ways.as_ref()).await
}

/// The local warehouse has one writer, so the work is done where that is.
async fn through_dev(args: &Args) -> Result<Summary, Failure> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let to = args.to.as_deref().unwrap_or(dev::ADDRESS).trim_end_matches('/');
    let data_dir = std::fs::canonicalize(&args.whose.data_dir).map_err(|error| {
        Failure::usage(format!("no warehouse in {}: {error}; give --data-dir FOLDER", args.whose.data_dir.display()))
    })?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(Failure::work)?;
    let request = Request { selection: args.selection.clone(), data_dir: Some(data_dir) };
    let body = serde_json::to_vec(&request).map_err(Failure::work)?;
    let request =
        client.post(format!("{to}/api/dead-letters/replay")).header("content-type", "application/json").body(body);
    let answer = request.send().await.map_err(|error| {
        let reason = if error.is_connect() { "nothing answers there".to_string() } else { error.to_string() };
        Failure::usage(format!(
            "{to}: {reason}; letters of the local warehouse are replayed by the `contextflow dev` that writes it: \
             start it, or say where it is with --to URL"
        ))
    })?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(Failure::work)?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| Failure::work(format!("{to}: {error}")));
    }
    let reason = serde_json::from_slice(&body).map_or_else(|_| format!("{status}"), |refusal: Refusal| refusal.error);
    let failure = format!("{to}: {reason}");
    Err(if status.is_client_error() { Failure::Usage(failure) } else { Failure::Work(failure) })
}
