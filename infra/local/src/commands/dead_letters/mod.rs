//! `contextflow dead-letters`: what could not be used, why, and the way back.

mod list;
mod replay;
mod show;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use shared::schema::Registry;

use super::Place;
use super::query::{self, Engine};
use crate::dead_letters::{Local, Source};
use crate::error::Failure;

/// Arguments of `contextflow dead-letters`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Letters by stage and reason, the most frequent first
    List(list::Args),
    /// One letter: its fields, its raw text, and where it differs from the schema
    Show(show::Args),
    /// Send letters through the pipeline again, with the same event ids; what passes counts as done
    Replay(replay::Args),
}

/// Whose letters.
#[derive(clap::Args)]
struct Whose {
    /// Whose letters
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    warehouse: Engine,
    #[command(flatten)]
    place: Place,
    /// The local pipeline's data
    #[arg(long, default_value = "./.contextflow", value_name = "FOLDER")]
    data_dir: PathBuf,
    /// A folder of further schema files
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    schemas: Option<PathBuf>,
}

impl Whose {
    fn registry(&self) -> Result<Registry, Failure> {
        super::registry(self.schemas.as_deref())
    }

    async fn open(&self, registry: &Registry) -> Result<Box<dyn Source>, Failure> {
        match self.warehouse {
            Engine::Local => {
                let warehouse = Arc::new(query::local(&self.data_dir, registry)?);
                Ok(Box::new(Local { warehouse, bucket: self.data_dir.join("bucket") }))
            }
            Engine::BigQuery => super::cloud::dead_letters(&self.place).await,
        }
    }
}

/// Runs the command.
pub async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List(args) => list::run(&args).await,
        Command::Show(args) => show::run(&args).await,
        Command::Replay(args) => replay::run(&args).await,
    }
}
