//! From the values of a row to the wire form of its message type (see [`super::descriptor`]).

use prost::encoding::{WireType, encode_key, encode_varint};

use crate::decode::{number, time};
use crate::row::Value;
use crate::schema::{Column, Kind};

/// Appends the message with these values; columns without one are left out.
pub fn row(columns: &[Column], values: &[Value<'_>], out: &mut Vec<u8>) {
    for ((column, value), tag) in columns.iter().zip(values).zip(1..) {
        field(column, value, tag, out);
    }
}

fn field(column: &Column, value: &Value<'_>, tag: u32, out: &mut Vec<u8>) {
    match value {
        Value::Null => {}
        Value::Bool(value) => varint(tag, u64::from(*value), out),
        Value::Int(value) | Value::Timestamp(value) => varint(tag, value.cast_unsigned(), out),
        // A negative int32 is sign-extended to ten bytes.
        Value::Date(days) => varint(tag, i64::from(*days).cast_unsigned(), out),
        Value::Float(value) => {
            encode_key(tag, WireType::SixtyFourBit, out);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Text(text) => bytes(tag, text.as_bytes(), out),
        Value::Bytes(value) => bytes(tag, value, out),
        Value::BigNumeric(text) => bytes(tag, text.as_bytes(), out),
        Value::Numeric(value) => text(tag, out, |out| number::write_numeric(*value, out)),
        Value::DateTime(micros) => text(tag, out, |out| time::write_date_time(*micros, out)),
        Value::Time(micros) => text(tag, out, |out| time::write_time(*micros, out)),
        Value::Record(values) => {
            if let Kind::Record(fields) = &column.kind {
                let mut record = Vec::new();
                row(&fields.columns, values, &mut record);
                bytes(tag, &record, out);
            }
        }
        Value::Repeated(elements) => {
            for element in elements {
                field(column, element, tag, out);
            }
        }
    }
}

fn varint(tag: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(tag, WireType::Varint, out);
    encode_varint(value, out);
}

fn bytes(tag: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Text of under 128 bytes, whose length is one byte.
fn text(tag: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    encode_key(tag, WireType::LengthDelimited, out);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if let (Some(first), Ok(length)) = (out.get_mut(at), u8::try_from(length)) {
        *first = length;
    }
}
