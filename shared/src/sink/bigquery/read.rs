//! Rows read back from protocol buffers as a server would: by the descriptor that it was sent. For tests.

use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use crate::decode::{number, time};
use crate::row::Value;
use crate::schema::{Column, Kind, Mode};

/// The values of `columns`, in their order; the error says what is no such row.
pub fn row(descriptor: &DescriptorProto, columns: &[Column], mut wire: &[u8]) -> Result<Vec<Value<'static>>, String> {
    let empty = |column: &Column| match column.mode {
        Mode::Repeated => Value::Repeated(Vec::new()),
        _ => Value::Null,
    };
    let mut values: Vec<_> = columns.iter().map(empty).collect();
    while !wire.is_empty() {
        let (number, wire_type) = decode_key(&mut wire).map_err(|error| error.to_string())?;
        let field = descriptor.field.iter().find(|field| field.number().cast_unsigned() == number);
        let field = field.ok_or_else(|| format!("no field {number}"))?;
        let column = columns.iter().position(|column| column.name == field.name());
        let column = column.ok_or_else(|| format!("no column `{}`", field.name()))?;
        let value = value(descriptor, field, &columns[column].kind, wire_type, &mut wire)?;
        match &mut values[column] {
            Value::Repeated(elements) => elements.push(value),
            slot => *slot = value,
        }
    }
    let missing = columns.iter().zip(&values).find(|(column, value)| column.mode == Mode::Required && value.is_null());
    match missing {
        Some((column, _)) => Err(format!("required column `{}` is missing", column.name)),
        None => Ok(values),
    }
}

fn value(
    descriptor: &DescriptorProto,
    field: &FieldDescriptorProto,
    kind: &Kind,
    wire_type: WireType,
    wire: &mut &[u8],
) -> Result<Value<'static>, String> {
    let wrong = || format!("`{}` is no {}", field.name(), kind.name());
    Ok(match wire_type {
        WireType::Varint => {
            let number = decode_varint(wire).map_err(|error| error.to_string())?.cast_signed();
            match kind {
                Kind::Integer => Value::Int(number),
                Kind::Timestamp => Value::Timestamp(number),
                Kind::Date => Value::Date(i32::try_from(number).map_err(|_| wrong())?),
                Kind::Boolean => Value::Bool(number != 0),
                _ => return Err(wrong()),
            }
        }
        WireType::SixtyFourBit => {
            let (eight, rest) = wire.split_first_chunk::<8>().ok_or_else(wrong)?;
            *wire = rest;
            Value::Float(f64::from_le_bytes(*eight))
        }
        WireType::LengthDelimited => {
            let length = decode_varint(wire).map_err(|error| error.to_string())?;
            let length = usize::try_from(length).map_err(|_| wrong())?;
            let (content, rest) = wire.split_at_checked(length).ok_or_else(wrong)?;
            *wire = rest;
            let text = || std::str::from_utf8(content).map_err(|_| wrong());
            let bad = |_| wrong();
            match kind {
                Kind::Bytes => Value::Bytes(content.to_vec()),
                Kind::String | Kind::Json => Value::Text(text()?.to_string().into()),
                Kind::Numeric => Value::Numeric(number::numeric(text()?).map_err(bad)?),
                Kind::BigNumeric => Value::BigNumeric(number::big_numeric(text()?).map_err(bad)?),
                Kind::DateTime => Value::DateTime(time::date_time(text()?).map_err(bad)?),
                Kind::Time => Value::Time(time::time(text()?).map_err(bad)?),
                Kind::Record(fields) => {
                    let nested = descriptor.nested_type.iter().find(|nested| nested.name() == field.type_name());
                    Value::Record(row(nested.ok_or_else(wrong)?, &fields.columns, content)?)
                }
                _ => return Err(wrong()),
            }
        }
        _ => return Err(wrong()),
    })
}
