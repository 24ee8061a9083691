//! `contextflow query`: SQL over the local warehouse, whether or not the pipeline runs.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use deltalake::arrow::array::RecordBatch;
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::util::pretty::pretty_format_batches;
use deltalake::arrow::{csv, json};
use serde_json::{Map, Value};
use shared::sink::delta::Warehouse;

use crate::error::Failure;

/// Arguments of `contextflow query`.
#[derive(clap::Args)]
pub struct Args {
    /// One SELECT; read from standard input unless given
    sql: Option<String>,
    /// The pipeline's data
    #[arg(long, default_value = "./.contextflow", value_name = "FOLDER")]
    data_dir: PathBuf,
    /// A folder of further schema files
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    schemas: Option<PathBuf>,
    /// Print an array of row objects
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV with a header
    #[arg(long)]
    csv: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> Result<(), Failure> {
    let sql = match args.sql {
        Some(sql) => sql,
        None => read_stdin()?,
    };
    let folder = args.data_dir.join("warehouse");
    if !folder.is_dir() {
        let place = args.data_dir.display();
        return Err(Failure::usage(format!(
            "no warehouse in {place}; run `contextflow dev` first or give --data-dir FOLDER"
        )));
    }
    let registry = super::registry(args.schemas.as_deref())?;
    let warehouse = Warehouse::open(&folder, &registry).map_err(Failure::work)?;
    let batches = warehouse.sql(&sql).await.map_err(Failure::usage)?;
    if args.json {
        println!("{}", serde_json::to_string(&rows_of(&batches).map_err(Failure::work)?).map_err(Failure::work)?);
    } else if args.csv {
        let mut writer = csv::Writer::new(std::io::stdout().lock());
        batches.iter().try_for_each(|batch| writer.write(batch)).map_err(Failure::work)?;
    } else {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        println!("{}", pretty_format_batches(&batches).map_err(Failure::work)?);
        println!("{rows} row{}", if rows == 1 { "" } else { "s" });
    }
    Ok(())
}

fn read_stdin() -> Result<String, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("no SQL; give it as an argument or on standard input"));
    }
    let mut sql = String::new();
    std::io::stdin().read_to_string(&mut sql).map_err(Failure::usage)?;
    Ok(sql)
}

/// Rows as JSON objects; columns without a value are `null`.
pub fn rows_of(batches: &[RecordBatch]) -> Result<Vec<Map<String, Value>>, ArrowError> {
    let mut writer =
        json::WriterBuilder::new().with_explicit_nulls(true).build::<_, json::writer::JsonArray>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    let bytes = writer.into_inner();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| ArrowError::JsonError(error.to_string()))
}
