//! How a plan's rows stand in protocol buffers: one message a table, a nested one a STRUCT, described to BigQuery by a
//! [`DescriptorProto`].
//!
//! The types are those that BigQuery [documents](https://cloud.google.com/bigquery/docs/supported-data-types) and that
//! keep every digit: TIMESTAMP is `int64` (microseconds), DATE `int32` (days), NUMERIC and BIGNUMERIC are decimal text,
//! DATETIME and TIME their literals, JSON its text.

use std::collections::BTreeSet;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::TableFieldSchema;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::table_field_schema::{
    Mode as FieldMode, Type as FieldType,
};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use crate::schema::{Column, Kind, Mode};

/// Name of the message of a row.
const ROW: &str = "Row";

/// Paths of columns (`items.discount`) that a table does not have.
pub(super) type Lacking = BTreeSet<String>;

/// The message of a row or of a record: one field a column, numbered from 1 in the order of the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    pub(super) fields: Vec<Field>,
}

/// A column as a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    name: String,
    /// Where the column stands in the row.
    pub(super) path: String,
    number: i32,
    /// Number and wire type, as they stand before a value.
    pub(super) key: u64,
    kind: Type,
    label: Label,
    /// The table has no such column: a row may not have a value in it.
    pub(super) lacking: bool,
    /// The fields of a STRUCT.
    pub(super) record: Option<Layout>,
}

impl Layout {
    /// The layout of a plan's columns; those that the table lacks are left out of its descriptor.
    pub(super) fn new(columns: &[Column], lacking: &Lacking) -> Self {
        Self::inside("", columns, lacking)
    }

    fn inside(parent: &str, columns: &[Column], lacking: &Lacking) -> Self {
        let field = |(number, column): (i32, &Column)| {
            let path = path(parent, &column.name);
            let (kind, wire_type) = wire(&column.kind);
            Field {
                name: column.name.clone(),
                number,
                key: u64::from(number.unsigned_abs()) << 3 | wire_type,
                kind,
                label: match column.mode {
                    Mode::Nullable => Label::Optional,
                    Mode::Required => Label::Required,
                    Mode::Repeated => Label::Repeated,
                },
                lacking: lacking.contains(&path),
                record: match &column.kind {
                    Kind::Record(fields) => Some(Self::inside(&path, &fields.columns, lacking)),
                    _ => None,
                },
                path,
            }
        };
        Self { fields: (1..).zip(columns).map(field).collect() }
    }

    /// What BigQuery is told of the rows.
    pub fn descriptor(&self) -> DescriptorProto {
        self.message(ROW.into())
    }

    fn message(&self, name: String) -> DescriptorProto {
        let mut message = DescriptorProto { name: Some(name), ..DescriptorProto::default() };
        for field in self.fields.iter().filter(|field| !field.lacking) {
            let type_name = field.record.as_ref().map(|record| {
                let name = self.type_name(field.number);
                message.nested_type.push(record.message(name.clone()));
                name
            });
            message.field.push(FieldDescriptorProto {
                name: Some(field.name.clone()),
                number: Some(field.number),
                label: Some(field.label.into()),
                r#type: Some(field.kind.into()),
                type_name,
                ..FieldDescriptorProto::default()
            });
        }
        message
    }

    /// A name for the message of a record; fields and messages share one space of names.
    fn type_name(&self, number: i32) -> String {
        let mut name = format!("Record{number}");
        while self.fields.iter().any(|field| field.name == name) {
            name.push('_');
        }
        name
    }
}

/// The columns of a plan that are not among the fields of a table.
pub(super) fn lacking(columns: &[Column], table: &[TableFieldSchema]) -> Lacking {
    let mut missing = Lacking::new();
    compare("", columns, table, &mut missing);
    missing
}

fn compare(parent: &str, columns: &[Column], table: &[TableFieldSchema], missing: &mut Lacking) {
    for column in columns {
        let path = path(parent, &column.name);
        let known = table.iter().find(|field| field.name.eq_ignore_ascii_case(&column.name));
        match (known, &column.kind) {
            (None, _) => drop(missing.insert(path)),
            (Some(field), Kind::Record(fields)) => compare(&path, &fields.columns, &field.fields, missing),
            (Some(_), _) => {}
        }
    }
}

/// Those columns of a plan that have one of these names.
pub(super) fn named(columns: &[Column], names: &[String]) -> Lacking {
    let mut found = Lacking::new();
    find("", columns, names, &mut found);
    found
}

fn find(parent: &str, columns: &[Column], names: &[String], found: &mut Lacking) {
    for column in columns {
        let path = path(parent, &column.name);
        if let Kind::Record(fields) = &column.kind {
            find(&path, &fields.columns, names, found);
        }
        if names.iter().any(|name| name.eq_ignore_ascii_case(&path)) {
            found.insert(path);
        }
    }
}

/// The first difference between a table and a plan for which BigQuery refuses every row.
pub(super) fn difference(columns: &[Column], table: &[TableFieldSchema]) -> Option<String> {
    differs("", columns, table)
}

fn differs(parent: &str, columns: &[Column], table: &[TableFieldSchema]) -> Option<String> {
    let of = |name: &str| columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
    table.iter().find_map(|field| {
        let path = path(parent, &field.name);
        let (kind, mode) = (field.r#type(), field.mode());
        let Some(column) = of(&field.name) else {
            return (mode == FieldMode::Required)
                .then(|| format!("the table requires a column `{path}` that the schema lacks"));
        };
        let expected = table_type(&column.kind);
        if kind != expected && kind != FieldType::Unspecified {
            let (kind, expected) = (kind.as_str_name(), expected.as_str_name());
            return Some(format!("the column `{path}` is {kind} in the table, {expected} in the schema"));
        }
        if mode != FieldMode::Unspecified && (mode == FieldMode::Repeated) != (column.mode == Mode::Repeated) {
            let mode = mode.as_str_name();
            return Some(format!("the column `{path}` is {mode} in the table, not so in the schema"));
        }
        if mode == FieldMode::Required && column.mode == Mode::Nullable {
            return Some(format!("the column `{path}` is REQUIRED in the table, NULLABLE in the schema"));
        }
        match &column.kind {
            Kind::Record(fields) => differs(&path, &fields.columns, &field.fields),
            _ => None,
        }
    })
}

fn table_type(kind: &Kind) -> FieldType {
    match kind {
        Kind::String => FieldType::String,
        Kind::Bytes => FieldType::Bytes,
        Kind::Integer => FieldType::Int64,
        Kind::Float => FieldType::Double,
        Kind::Numeric => FieldType::Numeric,
        Kind::BigNumeric => FieldType::Bignumeric,
        Kind::Boolean => FieldType::Bool,
        Kind::Timestamp => FieldType::Timestamp,
        Kind::Date => FieldType::Date,
        Kind::Time => FieldType::Time,
        Kind::DateTime => FieldType::Datetime,
        Kind::Json => FieldType::Json,
        Kind::Record(_) => FieldType::Struct,
    }
}

fn path(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") }
}

/// Type of the field and wire type of its values.
fn wire(kind: &Kind) -> (Type, u64) {
    const VARINT: u64 = 0;
    const EIGHT_BYTES: u64 = 1;
    const LENGTH_DELIMITED: u64 = 2;
    match kind {
        Kind::Integer | Kind::Timestamp => (Type::Int64, VARINT),
        Kind::Date => (Type::Int32, VARINT),
        Kind::Boolean => (Type::Bool, VARINT),
        Kind::Float => (Type::Double, EIGHT_BYTES),
        Kind::Bytes => (Type::Bytes, LENGTH_DELIMITED),
        Kind::Record(_) => (Type::Message, LENGTH_DELIMITED),
        Kind::String | Kind::Json | Kind::Numeric | Kind::BigNumeric | Kind::DateTime | Kind::Time => {
            (Type::String, LENGTH_DELIMITED)
        }
    }
}
