//! From a [`Row`] to one JSON object: the line of the enriched message, of the archive and of `enrich --to ndjson`.

use crate::decode::json::plain_end;
use crate::decode::{number, time};
use crate::row::Value;
use crate::schema::{Column, Kind};

/// Writes the object of `columns` with their `values`, without a line end. Columns without a value are left out.
///
/// INTEGER, NUMERIC and BIGNUMERIC are JSON numbers with every digit; TIMESTAMP is RFC 3339 in UTC; BYTES is base64.
pub fn object(columns: &[Column], values: &[Value<'_>], out: &mut Vec<u8>) {
    members(columns.iter().zip(values), out);
}

/// Writes the object of these columns, each with its value, as [`object`] does.
pub(crate) fn members<'m>(members: impl Iterator<Item = (&'m Column, &'m Value<'m>)>, out: &mut Vec<u8>) {
    let start = out.len();
    for (column, value) in members {
        if value.is_null() || matches!(value, Value::Repeated(elements) if elements.is_empty()) {
            continue;
        }
        // A name holds nothing that JSON would escape: the schema has checked its alphabet.
        out.extend_from_slice(b",\"");
        out.extend_from_slice(column.name.as_bytes());
        out.extend_from_slice(b"\":");
        write(column, value, out);
    }
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

fn write(column: &Column, value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        Value::Float(number) => out.extend_from_slice(zmij::Buffer::new().format(*number).as_bytes()),
        Value::Text(json) if column.kind == Kind::Json => one_line(json, out),
        Value::Text(text) => string(text, out),
        Value::Bytes(bytes) => quoted(out, |out| out.extend(base64_simd::STANDARD.encode_to_string(bytes).bytes())),
        Value::Numeric(number) => number::write_numeric(*number, out),
        Value::BigNumeric(text) => out.extend_from_slice(text.as_bytes()),
        Value::Timestamp(micros) => quoted(out, |out| time::write_timestamp(*micros, out)),
        Value::Date(days) => quoted(out, |out| time::write_date(*days, out)),
        Value::DateTime(micros) => quoted(out, |out| time::write_date_time(*micros, out)),
        Value::Time(micros) => quoted(out, |out| time::write_time(*micros, out)),
        Value::Record(values) => match &column.kind {
            Kind::Record(fields) => object(&fields.columns, values, out),
            _ => out.extend_from_slice(b"null"),
        },
        Value::Repeated(elements) => {
            out.push(b'[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(column, element, out);
            }
            out.push(b']');
        }
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// JSON text on one line: line ends can stand in it only as white space between tokens.
fn one_line(json: &str, out: &mut Vec<u8>) {
    out.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

/// A JSON string with its quotes.
#[inline]
pub fn string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut from = 0;
    loop {
        let to = plain_end(bytes, from);
        out.extend_from_slice(&bytes[from..to]);
        let Some(&special) = bytes.get(to) else { break };
        escape(special, out);
        from = to + 1;
    }
    out.push(b'"');
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
    }
}

/// An object to whose end members are added; of a key that stands twice the last value counts, so an explicit `null`
/// is overruled.
pub struct Splice {
    line: Vec<u8>,
    is_empty: bool,
}

impl Splice {
    /// `object` is the text of a JSON object. Line ends, which can only be white space, become spaces.
    pub fn new(object: &str) -> Self {
        let mut line: Vec<u8> = object.trim_ascii().bytes().collect();
        for byte in &mut line {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        line.pop();
        let is_empty = line.trim_ascii_end().len() == 1;
        Self { line, is_empty }
    }

    /// Whether the object has no member.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Adds a member of text.
    pub fn add(&mut self, key: &str, value: &str) {
        if !self.is_empty {
            self.line.push(b',');
        }
        self.is_empty = false;
        string(key, &mut self.line);
        self.line.push(b':');
        string(value, &mut self.line);
    }

    /// The object's text.
    pub fn finish(mut self) -> Vec<u8> {
        self.line.push(b'}');
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_string_is_json(text in any::<String>()) {
            let mut out = Vec::new();
            string(&text, &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
