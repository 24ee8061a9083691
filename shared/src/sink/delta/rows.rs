//! Rows of the warehouse in the form in which a sink takes them, for whoever checks that they are the same.

use std::sync::Arc;

use bytes::Bytes;
use deltalake::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use deltalake::arrow::datatypes::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};

use super::Warehouse;
use crate::decode::time;
use crate::encode;
use crate::row::Value;
use crate::schema::{Column, Kind, Mode, Plan};

/// All rows of a plan's table as lines of the enriched message.
pub async fn all(warehouse: &Warehouse, plan: &Arc<Plan>) -> Vec<Bytes> {
    lines(plan, &warehouse.sql(&format!("SELECT * FROM {}", plan.table.full_name())).await.unwrap())
}

pub(super) fn lines(plan: &Plan, batches: &[RecordBatch]) -> Vec<Bytes> {
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
