//! From decoded rows to Arrow, driven by a plan's columns alone.
//!
//! STRING and JSON are `Utf8`; BYTES `Binary`; INTEGER `Int64`; FLOAT `Float64`; NUMERIC `Decimal128(38, 9)`;
//! BIGNUMERIC `Utf8` with every digit, because decimals of Delta Lake end at 38; BOOLEAN `Boolean`; TIMESTAMP
//! microseconds in UTC; DATE `Date32`; DATETIME microseconds without a zone; TIME `Utf8` (`00:15:02.920`);
//! RECORD `Struct`; REPEATED `List` of elements that are never null.

use std::collections::HashMap;
use std::sync::Arc;

use deltalake::arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int64Builder, ListArray,
    NullBufferBuilder, RecordBatch, RecordBatchOptions, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use deltalake::arrow::buffer::{OffsetBuffer, ScalarBuffer};
use deltalake::arrow::datatypes::{DataType, Field, FieldRef, Fields as ArrowFields, Schema, SchemaRef, TimeUnit};
use deltalake::arrow::error::ArrowError;

use crate::decode::time;
use crate::row::{Row, Value};
use crate::schema::{Column, Kind, Mode, Plan};

/// Digits and decimals of a NUMERIC.
const NUMERIC: (u8, i8) = (38, 9);
/// Bytes a text is taken to have when builders are made.
const TEXT_BYTES: usize = 16;

/// The Arrow schema of a plan's columns, descriptions in the field metadata `comment` as Delta Lake has them.
pub fn arrow_schema(plan: &Plan) -> SchemaRef {
    Arc::new(Schema::new(fields(&plan.columns)))
}

/// The Arrow form of `rows`; fails where a REQUIRED column holds no value.
pub fn record_batch(plan: &Plan, rows: &[Row<'_>]) -> Result<RecordBatch, ArrowError> {
    let mut builder = RowsBuilder::new(&plan.columns, rows.len());
    for row in rows {
        builder.push(&row.values);
    }
    builder.finish()
}

/// Collects rows into columns.
pub struct RowsBuilder {
    schema: SchemaRef,
    columns: Vec<Cells>,
    rows: usize,
}

impl RowsBuilder {
    /// An empty builder with room for `capacity` rows of `columns`.
    pub fn new(columns: &[Column], capacity: usize) -> Self {
        let schema = Arc::new(Schema::new(fields(columns)));
        let columns = schema.fields().iter().map(|field| Cells::new(field.data_type(), capacity)).collect();
        Self { schema, columns, rows: 0 }
    }

    /// Adds a row: a value a column. What is missing at the end, or not of its column's type, is null.
    pub fn push(&mut self, values: &[Value<'_>]) {
        for (index, cells) in self.columns.iter_mut().enumerate() {
            cells.push(values.get(index).unwrap_or(&Value::Null));
        }
        self.rows += 1;
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// `true` before the first row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows so far; the builder is empty afterwards. Fails where a REQUIRED column holds no value.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.columns.iter_mut().map(Cells::finish).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
    }
}

fn fields(columns: &[Column]) -> ArrowFields {
    columns.iter().map(field).collect()
}

fn field(column: &Column) -> Field {
    let one = data_type(&column.kind);
    let field = match column.mode {
        Mode::Required => Field::new(&column.name, one, false),
        Mode::Nullable => Field::new(&column.name, one, true),
        // `element` is what Parquet and Delta Lake call it. The list itself is never null in rows written here, but it
        // is absent from files older than the column.
        Mode::Repeated => {
            let element = Field::new("element", one, false);
            Field::new(&column.name, DataType::List(Arc::new(element)), true)
        }
    };
    match &column.description {
        Some(description) => field.with_metadata(HashMap::from([("comment".to_string(), description.clone())])),
        None => field,
    }
}

fn data_type(kind: &Kind) -> DataType {
    match kind {
        Kind::String | Kind::Json | Kind::BigNumeric | Kind::Time => DataType::Utf8,
        Kind::Bytes => DataType::Binary,
        Kind::Integer => DataType::Int64,
        Kind::Float => DataType::Float64,
        Kind::Numeric => DataType::Decimal128(NUMERIC.0, NUMERIC.1),
        Kind::Boolean => DataType::Boolean,
        Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Kind::Date => DataType::Date32,
        Kind::DateTime => DataType::Timestamp(TimeUnit::Microsecond, None),
        Kind::Record(record) => DataType::Struct(fields(&record.columns)),
    }
}

/// The values of one column so far.
enum Cells {
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Numeric(Decimal128Builder),
    Bool(BooleanBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    Record { fields: ArrowFields, children: Vec<Cells>, valid: NullBufferBuilder },
    Repeated { element: FieldRef, elements: Box<Cells>, ends: Vec<i32>, length: i32 },
}

impl Cells {
    fn new(data_type: &DataType, capacity: usize) -> Self {
        match data_type {
            DataType::Binary => Self::Bytes(BinaryBuilder::with_capacity(capacity, capacity * TEXT_BYTES)),
            DataType::Int64 => Self::Int(Int64Builder::with_capacity(capacity)),
            DataType::Float64 => Self::Float(Float64Builder::with_capacity(capacity)),
            DataType::Decimal128(..) => {
                Self::Numeric(Decimal128Builder::with_capacity(capacity).with_data_type(data_type.clone()))
            }
            DataType::Boolean => Self::Bool(BooleanBuilder::with_capacity(capacity)),
            DataType::Timestamp(..) => {
                let builder = TimestampMicrosecondBuilder::with_capacity(capacity);
                Self::Timestamp(builder.with_data_type(data_type.clone()))
            }
            DataType::Date32 => Self::Date(Date32Builder::with_capacity(capacity)),
            DataType::Struct(fields) => Self::Record {
                fields: fields.clone(),
                children: fields.iter().map(|field| Self::new(field.data_type(), capacity)).collect(),
                valid: NullBufferBuilder::new(capacity),
            },
            DataType::List(element) => Self::Repeated {
                element: Arc::clone(element),
                elements: Box::new(Self::new(element.data_type(), capacity)),
                ends: Vec::with_capacity(capacity),
                length: 0,
            },
            _ => Self::Text(StringBuilder::with_capacity(capacity, capacity * TEXT_BYTES)),
        }
    }

    fn push(&mut self, value: &Value<'_>) {
        match (self, value) {
            (Self::Text(cells), Value::Text(text)) => cells.append_value(text),
            (Self::Text(cells), Value::BigNumeric(text)) => cells.append_value(text),
            (Self::Text(cells), Value::Time(micros)) => {
                let mut text = Vec::with_capacity(TEXT_BYTES);
                time::write_time(*micros, &mut text);
                cells.append_value(String::from_utf8_lossy(&text));
            }
            (Self::Bytes(cells), Value::Bytes(bytes)) => cells.append_value(bytes),
            (Self::Int(cells), Value::Int(number)) => cells.append_value(*number),
            (Self::Float(cells), Value::Float(number)) => cells.append_value(*number),
            (Self::Numeric(cells), Value::Numeric(number)) => cells.append_value(*number),
            (Self::Bool(cells), Value::Bool(truth)) => cells.append_value(*truth),
            (Self::Timestamp(cells), Value::Timestamp(micros) | Value::DateTime(micros)) => {
                cells.append_value(*micros);
            }
            (Self::Date(cells), Value::Date(days)) => cells.append_value(*days),
            (Self::Record { children, valid, .. }, Value::Record(values)) => {
                for (index, child) in children.iter_mut().enumerate() {
                    child.push(values.get(index).unwrap_or(&Value::Null));
                }
                valid.append_non_null();
            }
            (Self::Repeated { elements, ends, length, .. }, Value::Repeated(values)) => {
                for value in values {
                    elements.push(value);
                    *length += 1;
                }
                ends.push(*length);
            }
            (cells, _) => cells.push_null(),
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Text(cells) => cells.append_null(),
            Self::Bytes(cells) => cells.append_null(),
            Self::Int(cells) => cells.append_null(),
            Self::Float(cells) => cells.append_null(),
            Self::Numeric(cells) => cells.append_null(),
            Self::Bool(cells) => cells.append_null(),
            Self::Timestamp(cells) => cells.append_null(),
            Self::Date(cells) => cells.append_null(),
            Self::Record { children, valid, .. } => {
                children.iter_mut().for_each(Self::push_null);
                valid.append_null();
            }
            // REPEATED has no null: absent is empty.
            Self::Repeated { ends, length, .. } => ends.push(*length),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Text(cells) => Arc::new(cells.finish()),
            Self::Bytes(cells) => Arc::new(cells.finish()),
            Self::Int(cells) => Arc::new(cells.finish()),
            Self::Float(cells) => Arc::new(cells.finish()),
            Self::Numeric(cells) => Arc::new(cells.finish()),
            Self::Bool(cells) => Arc::new(cells.finish()),
            Self::Timestamp(cells) => Arc::new(cells.finish()),
            Self::Date(cells) => Arc::new(cells.finish()),
            Self::Record { fields, children, valid } => {
                let length = valid.len();
                let arrays = children.iter_mut().map(Self::finish).collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, valid.finish(), length)?)
            }
            Self::Repeated { element, elements, ends, length } => {
                let ends: Vec<i32> = std::iter::once(0).chain(ends.drain(..)).collect();
                *length = 0;
                let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(ListArray::try_new(Arc::clone(element), offsets, elements.finish()?, None)?)
            }
        })
    }
}
