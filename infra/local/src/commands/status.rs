//! `contextflow status`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use shared::clock::Clock;
use shared::decode::time::timestamp_text;

use super::query::{self, Engine};
use crate::bus::Bus;
use crate::dead_letters::Local;
use crate::dev;
use crate::error::Failure;
use crate::status::{Backlog, Status};

/// How long a pipeline on this machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `contextflow status`.
#[derive(clap::Args)]
pub struct Args {
    /// Which pipeline: the one on this machine, or the deployed one with its tables in `BigQuery`
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    warehouse: Engine,
    #[command(flatten)]
    pub place: super::Place,
    /// The local pipeline's data
    #[arg(long, default_value = "./.contextflow", value_name = "FOLDER")]
    data_dir: PathBuf,
    /// The local pipeline's address, where it runs
    #[arg(long, default_value = dev::ADDRESS, value_name = "URL")]
    at: String,
    /// The deployed pipeline: where the kill-switch has its state (by default `gs://PROJECT-contextflow/kill-switch`)
    #[arg(long, env = "STATE_URI", value_name = "URI")]
    pub state: Option<String>,
    /// A folder of further schema files
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    pub schemas: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let clock = Clock::system();
    let status = match args.warehouse {
        Engine::Local => local(args, &clock).await?,
        Engine::BigQuery => super::cloud::status(args, &clock).await?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&status).map_err(Failure::work)?);
    } else {
        status.print(clock.now());
    }
    Ok(())
}

async fn local(args: &Args, clock: &Clock) -> Result<Status, Failure> {
    let registry = super::registry(args.schemas.as_deref())?;
    let warehouse = Arc::new(query::local(&args.data_dir, &registry)?);
    let local = Local { warehouse, bucket: args.data_dir.join("bucket") };
    let mut status = Status::of(&local, &registry, clock.now()).await;
    let place = args.data_dir.display();
    if let Some(subscriptions) = of_running(args).await {
        status.pipeline = format!("the pipeline in {place} runs on {}", args.at);
        status.subscriptions = subscriptions;
    } else {
        let waiting = Bus::at_rest(&args.data_dir.join(dev::BUS_FILE), dev::topology()).map_err(|error| {
            Failure::work(format!(
                "{error:#}; it is in use where the pipeline runs on another address than {}: say where with --at URL",
                args.at
            ))
        })?;
        let backlog = |stats: crate::bus::SubscriptionStats| Backlog {
            name: stats.name,
            waiting: Some(stats.waiting),
            oldest_published_at: stats.oldest_published_at.map(timestamp_text),
            is_pushed: Some(true),
        };
        status.pipeline = format!("the pipeline in {place} does not run");
        status.subscriptions = waiting.into_iter().map(backlog).collect();
    }
    status.kill_switch = "none: nothing here is charged for".into();
    Ok(status)
}

/// What waits in the pipeline that runs on these data; none where another one or nothing answers.
async fn of_running(args: &Args) -> Option<Vec<Backlog>> {
    #[derive(Deserialize)]
    struct Report {
        data_dir: PathBuf,
        subscriptions: Vec<Queue>,
    }
    #[derive(Deserialize)]
    struct Queue {
        name: String,
        waiting: u64,
        outstanding: u64,
        oldest_published_at: Option<String>,
    }
    let client = reqwest::Client::builder().timeout(PATIENCE).build().ok()?;
    let answer = client.get(format!("{}/api/report", args.at.trim_end_matches('/'))).send().await.ok()?;
    let report: Report = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
    let backlog = |Queue { name, waiting, outstanding, oldest_published_at }| Backlog {
        name,
        waiting: Some(waiting + outstanding),
        oldest_published_at,
        is_pushed: Some(true),
    };
    let is_meant = std::fs::canonicalize(&args.data_dir).is_ok_and(|meant| meant == report.data_dir);
    is_meant.then(|| report.subscriptions.into_iter().map(backlog).collect())
}
