//! The warehouse as its users meet it: appended to, read back, merged, reopened.

mod append;
mod care;
mod query;
mod types;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use deltalake::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use deltalake::arrow::datatypes::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};

use super::{DeltaSink, Options, QueryError, Warehouse};
use crate::clock::{Clock, SECOND};
use crate::decode::time;
use crate::encode;
use crate::row::Value;
use crate::schema::{Column, Kind, Mode, Plan, Registry};
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

/// The rows of a plan's table as lines of the enriched message.
async fn read_back(root: &Path, plan: &Arc<Plan>) -> Vec<Bytes> {
    let warehouse = Warehouse::of([plan], root).unwrap();
    lines(plan, &warehouse.sql(&format!("SELECT * FROM {}", plan.table.full_name())).await.unwrap())
}

fn lines(plan: &Plan, batches: &[RecordBatch]) -> Vec<Bytes> {
    let mut lines = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cell = |column: &Column| value(column, batch.column_by_name(&column.name).unwrap(), row);
            let values: Vec<_> = plan.columns.iter().map(cell).collect();
            let mut line = Vec::new();
            encode::object(&plan.columns, &values, &mut line);
            lines.push(line.into());
        }
    }
    lines
}

fn value(column: &Column, array: &ArrayRef, row: usize) -> Value<'static> {
    if column.mode == Mode::Repeated {
        assert!(array.is_valid(row), "{}: a list is never null", column.name);
        let elements = array.as_list::<i32>().value(row);
        return Value::Repeated((0..elements.len()).map(|index| scalar(&column.kind, &elements, index)).collect());
    }
    scalar(&column.kind, array, row)
}

fn scalar(kind: &Kind, array: &ArrayRef, row: usize) -> Value<'static> {
    if array.is_null(row) {
        return Value::Null;
    }
    let text = || array.as_string::<i32>().value(row).to_string();
    match kind {
        Kind::String | Kind::Json => Value::Text(text().into()),
        Kind::BigNumeric => Value::BigNumeric(text().into()),
        Kind::Time => Value::Time(time::time(&text()).unwrap()),
        Kind::Bytes => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        Kind::Integer => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        Kind::Float => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        Kind::Numeric => Value::Numeric(array.as_primitive::<Decimal128Type>().value(row)),
        Kind::Boolean => Value::Bool(array.as_boolean().value(row)),
        Kind::Timestamp => Value::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        Kind::DateTime => Value::DateTime(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        Kind::Date => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        Kind::Record(fields) => {
            let record = array.as_struct();
            let field = |field: &Column| value(field, record.column_by_name(&field.name).unwrap(), row);
            Value::Record(fields.columns.iter().map(field).collect())
        }
    }
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
