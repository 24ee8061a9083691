//! `contextflow schema`: what tables there are, how BigQuery makes them, and whether it has them.

use std::path::PathBuf;

use clap::Subcommand;
use shared::schema::{Plan, ddl};

use crate::error::Failure;

/// Arguments of `contextflow schema`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every event type with its table
    List {
        /// A folder of further schema files
        #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
        schemas: Option<PathBuf>,
    },
    /// Check schema files; the first fault is named
    Check {
        /// Schema files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print CREATE TABLE, or the columns as `bq mk --schema` reads them
    Ddl {
        /// Event type or schema file
        schema: String,
        /// The JSON form for `bq mk`
        #[arg(long)]
        json: bool,
    },
    /// Compare BigQuery with the schemas; exit code 1 where it differs
    Diff(DiffArgs),
    /// Make BigQuery follow the schemas: datasets, tables, columns, views
    ///
    /// Whatever would drop or narrow a column is refused (lines that begin with !), and then nothing is changed.
    Apply(ApplyArgs),
}

/// Arguments of `contextflow schema diff`.
#[derive(clap::Args)]
pub struct DiffArgs {
    /// A folder of further schema files
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    pub schemas: Option<PathBuf>,
    #[command(flatten)]
    pub place: super::Place,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `contextflow schema apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub diff: DiffArgs,
    /// Print what would be changed and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do the rest even where something is refused
    #[arg(long)]
    pub partial: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::List { schemas } => {
            for plan in super::registry(schemas.as_deref())?.plans() {
                println!("{}", line(plan));
            }
        }
        Command::Check { files } => {
            for file in files {
                let plan = super::plan(&file.display().to_string())?;
                println!("{}: good; {}", file.display(), line(&plan));
            }
        }
        Command::Ddl { schema, json } => {
            let plan = super::plan(schema)?;
            if *json {
                let columns = serde_json::to_string_pretty(&ddl::columns_json(&plan)).map_err(Failure::work)?;
                println!("{columns}");
            } else {
                print!("{}", ddl::create_table(&plan));
            }
        }
        Command::Diff(args) => super::cloud::schema_diff(args).await?,
        Command::Apply(args) => super::cloud::schema_apply(args).await?,
    }
    Ok(())
}

fn line(plan: &Plan) -> String {
    let ingest = serde_json::to_value(plan.ingest).ok();
    let ingest = ingest.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    format!(
        "{:<14} {:<8} {:<9} {} ({} columns)",
        plan.event_type,
        plan.version,
        ingest,
        plan.table.full_name(),
        plan.columns.len()
    )
}
