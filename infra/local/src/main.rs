//! `contextflow`: the whole pipeline in one process, and the operator's commands.

mod bus;
mod commands;
mod cost;
mod dead_letters;
mod dev;
mod error;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{backfill, enrich, generate, query, release, schema};
use error::Failure;

/// Clickstream from a button to a table: run the pipeline, feed it, ask it.
#[derive(Parser)]
#[command(name = "contextflow", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error, in the form of `RUST_LOG`
    #[arg(long, global = true, env = "RUST_LOG", default_value = "warn,contextflow=info", value_name = "FILTER")]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole pipeline on this machine
    Dev(dev::Args),
    /// Make synthetic events and send them to an address, a topic or into a file
    Generate(generate::Args),
    /// Decode, validate and enrich NDJSON: the enricher as a filter
    Enrich(enrich::Args),
    /// Load files of JSON lines, years of them, into the warehouse's tables
    Backfill(Box<backfill::Args>),
    /// Ask the warehouse in SQL
    Query(query::Args),
    /// What could not be used: list it, look at it, send it through the pipeline again
    DeadLetters(commands::dead_letters::Args),
    /// List, check and print schemas; compare BigQuery with them and change it
    Schema(schema::Args),
    /// What waits, what landed last, what failed, and what stops the spending
    Status(Box<commands::status::Args>),
    /// What a month costs on the clouds, line by line
    Cost(commands::cost::Args),
    /// Undo what the kill-switch has done: subscriptions push again, the publisher may publish again
    ///
    /// What was called for in this interval of the budget is not done again in it; what was not called for yet comes at its
    /// own share of the limit. A project whose billing was taken away is linked by hand: the command is printed. Without
    /// billing its bucket, where the state lies, does not answer: link it first, and then run this.
    Release(release::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    end_where_nobody_reads();
    let logging = shared::telemetry::init(&cli.log, None).map_err(Failure::usage);
    match logging.and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("contextflow: {failure}");
            failure.exit_code()
        }
    }
}

/// A reader that has enough (`… | head`) ends the command instead of a panic.
fn end_where_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let reason = panic.payload_as_str().unwrap_or_default();
        if reason.starts_with("failed printing to stdout") && reason.contains("Broken pipe") {
            std::process::exit(0);
        }
        report(panic);
    }));
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Cost(args) => commands::cost::run(&args),
        Command::Enrich(args) => enrich::run(&args),
        Command::Dev(args) => on_runtime(dev::run(args)),
        Command::Backfill(args) => on_runtime(backfill::run(*args)),
        Command::Generate(args) => on_runtime(generate::run(args)),
        Command::Status(args) => on_runtime(async move { commands::status::run(&args).await }),
        Command::Query(args) => on_runtime(query::run(args)),
        Command::DeadLetters(args) => on_runtime(commands::dead_letters::run(args)),
        Command::Schema(args) => on_runtime(async move { schema::run(&args).await }),
        Command::Release(args) => on_runtime(release::run(args)),
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::work(format!("failed to start the runtime: {error}")))?.block_on(work)
}
