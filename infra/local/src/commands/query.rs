//! `contextflow query`: SQL over the local warehouse, whether or not the pipeline runs, and over BigQuery.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use deltalake::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use deltalake::arrow::datatypes::{DataType, Field, Schema};
use deltalake::arrow::error::ArrowError;
use deltalake::arrow::util::pretty::pretty_format_batches;
use deltalake::arrow::{csv, json};
use serde_json::{Map, Value};
use shared::schema::Registry;
use shared::sink::delta::Warehouse;

use crate::error::Failure;

/// Arguments of `contextflow query`.
#[derive(clap::Args)]
pub struct Args {
    /// One SELECT; read from standard input unless given
    sql: Option<String>,
    /// Whom to ask
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    warehouse: Engine,
    #[command(flatten)]
    place: super::Place,
    /// The local pipeline's data
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

/// A warehouse.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The folder that `contextflow dev` writes
    Local,
    /// BigQuery, with whatever the credentials allow
    #[value(name = "bigquery")]
    BigQuery,
}

/// The answer of a warehouse that gives its values as JSON.
pub struct Answer {
    /// The columns' names.
    pub columns: Vec<String>,
    /// One value a column.
    pub rows: Vec<Vec<Value>>,
}

/// Runs the command.
pub async fn run(mut args: Args) -> Result<(), Failure> {
    let sql = match args.sql.take() {
        Some(sql) => sql,
        None => read_stdin()?,
    };
    match args.warehouse {
        Engine::Local => {
            let registry = super::registry(args.schemas.as_deref())?;
            let batches = local(&args.data_dir, &registry)?.sql(&sql).await.map_err(Failure::usage)?;
            let rows = if args.json { rows_of(&batches).map_err(Failure::work)? } else { Vec::new() };
            print(&args, &rows, &batches)
        }
        Engine::BigQuery => {
            let answer = super::cloud::query(&sql, &args.place).await?;
            if answer.columns.is_empty() && !args.json && !args.csv {
                println!("done"); // A statement that answers nothing.
                return Ok(());
            }
            let batch = text_of(&answer).map_err(Failure::work)?;
            let object = |row: Vec<Value>| answer.columns.iter().cloned().zip(row).collect();
            let rows: Vec<Map<_, _>> = answer.rows.into_iter().map(object).collect();
            print(&args, &rows, &[batch])
        }
    }
}

/// The warehouse in the local pipeline's folder.
pub fn local(data_dir: &Path, registry: &Registry) -> Result<Warehouse, Failure> {
    let folder = data_dir.join("warehouse");
    if !folder.is_dir() {
        let place = data_dir.display();
        return Err(Failure::usage(format!(
            "no warehouse in {place}; run `contextflow dev` first or give --data-dir FOLDER"
        )));
    }
    Warehouse::open(&folder, registry).map_err(Failure::work)
}

fn print(args: &Args, rows: &[Map<String, Value>], batches: &[RecordBatch]) -> Result<(), Failure> {
    if args.json {
        println!("{}", serde_json::to_string(rows).map_err(Failure::work)?);
    } else if args.csv {
        let mut writer = csv::Writer::new(std::io::stdout().lock());
        batches.iter().try_for_each(|batch| writer.write(batch)).map_err(Failure::work)?;
    } else {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        println!("{}", pretty_format_batches(batches).map_err(Failure::work)?);
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

/// Every value as its text; arrays and structs are JSON.
fn text_of(answer: &Answer) -> Result<RecordBatch, ArrowError> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let column = |index: usize| -> ArrayRef {
        Arc::new(answer.rows.iter().map(|row| row.get(index).and_then(text)).collect::<StringArray>())
    };
    let fields: Vec<_> = answer.columns.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let columns = (0..fields.len()).map(column).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(answer.rows.len()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)
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

#[cfg(test)]
mod tests {
    use deltalake::arrow::array::Float64Array;

    use super::*;

    #[test]
    fn a_float_keeps_its_last_digit() {
        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![119.979_999_999_999_99, 0.1, 5e-324]));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let texts: Vec<_> = rows_of(&[batch]).unwrap().iter().map(|row| row["n"].to_string()).collect();
        assert_eq!(texts, ["119.97999999999999", "0.1", "5e-324"]);
    }
}
