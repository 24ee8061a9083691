//! The writer's schema: a plan as a protobuf message type.
//!
//! Types by <https://cloud.google.com/bigquery/docs/supported-data-types>: TIMESTAMP is microseconds in an `int64`, DATE
//! days in an `int32`; NUMERIC, BIGNUMERIC, DATETIME and TIME are their text, JSON is its text.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use crate::schema::{Column, Kind, Mode};

/// The message type of rows with these columns: field numbers count the columns from 1, a RECORD is a nested type.
pub fn message(name: &str, columns: &[Column]) -> DescriptorProto {
    let mut message = DescriptorProto { name: Some(name.to_string()), ..DescriptorProto::default() };
    for (column, number) in columns.iter().zip(1..) {
        let mut field = FieldDescriptorProto {
            name: Some(column.name.clone()),
            number: Some(number),
            label: Some(if column.mode == Mode::Repeated { Label::Repeated } else { Label::Optional }.into()),
            r#type: Some(kind(&column.kind).into()),
            ..FieldDescriptorProto::default()
        };
        if let Kind::Record(fields) = &column.kind {
            // Beside a field of the same name no type of that name may stand.
            let nested = format!("Record{number}");
            message.nested_type.push(self::message(&nested, &fields.columns));
            field.type_name = Some(nested);
        }
        message.field.push(field);
    }
    message
}

fn kind(kind: &Kind) -> Type {
    match kind {
        Kind::Bytes => Type::Bytes,
        Kind::Integer | Kind::Timestamp => Type::Int64,
        Kind::Float => Type::Double,
        Kind::Boolean => Type::Bool,
        Kind::Date => Type::Int32,
        Kind::Record(_) => Type::Message,
        Kind::String | Kind::Numeric | Kind::BigNumeric | Kind::DateTime | Kind::Time | Kind::Json => Type::String,
    }
}
