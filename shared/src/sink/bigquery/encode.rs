//! A row's values to protocol buffers, straight into a buffer: no message in between, no allocation a value.

use super::descriptor::{Field, Layout};
use crate::decode::{number, time};
use crate::row::Value;

/// Writes the message of one row. The error is the path of a column that has a value here and none in the table.
pub(super) fn row<'l>(layout: &'l Layout, values: &[Value<'_>], out: &mut Vec<u8>) -> Result<(), &'l str> {
    for (field, value) in layout.fields.iter().zip(values) {
        match value {
            Value::Null => {}
            Value::Repeated(elements) => elements.iter().try_for_each(|element| write(field, element, out))?,
            value => write(field, value, out)?,
        }
    }
    Ok(())
}

#[inline]
fn write<'l>(field: &'l Field, value: &Value<'_>, out: &mut Vec<u8>) -> Result<(), &'l str> {
    if field.lacking {
        return Err(&field.path);
    }
    varint(field.key, out);
    match value {
        Value::Null | Value::Repeated(_) => varint(0, out),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Int(number) | Value::Timestamp(number) => varint(number.cast_unsigned(), out),
        // A negative int32 is widened to 64 bits.
        Value::Date(days) => varint(i64::from(*days).cast_unsigned(), out),
        Value::Float(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::Text(text) => bytes(text.as_bytes(), out),
        Value::BigNumeric(text) => bytes(text.as_bytes(), out),
        Value::Bytes(content) => bytes(content, out),
        Value::Numeric(number) => delimited(out, |out| {
            number::write_numeric(*number, out);
            Ok(())
        })?,
        Value::DateTime(micros) => delimited(out, |out| {
            time::write_date_time(*micros, out);
            Ok(())
        })?,
        Value::Time(micros) => delimited(out, |out| {
            time::write_time(*micros, out);
            Ok(())
        })?,
        Value::Record(values) => match &field.record {
            Some(record) => delimited(out, |out| row(record, values, out))?,
            None => varint(0, out),
        },
    }
    Ok(())
}

#[inline]
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[inline]
fn bytes(content: &[u8], out: &mut Vec<u8>) {
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// What `write` writes, with its length before it. Nearly always the length takes one byte; where it takes more, what
/// was written moves up.
fn delimited<'l>(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), &'l str>) -> Result<(), &'l str> {
    let start = out.len();
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out[start] = short,
        _ => {
            let mut prefix = Vec::new();
            varint(length as u64, &mut prefix);
            out.splice(start..=start, prefix);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::descriptor::Lacking;
    use super::super::read;
    use super::*;
    use crate::decode;
    use crate::encode;
    use crate::row::Row;
    use crate::schema::{Column, Kind, Plan, compile};

    const EVERY_TYPE: &str = r#"{
        "event_type": "every_type", "version": "1-0-0", "ingest": "batch",
        "table": {"dataset": "tests", "name": "every_type"},
        "columns": [
            {"name": "text", "type": "STRING"},
            {"name": "bytes", "type": "BYTES"},
            {"name": "integer", "type": "INTEGER", "mode": "REQUIRED"},
            {"name": "float", "type": "FLOAT"},
            {"name": "numeric", "type": "NUMERIC"},
            {"name": "big", "type": "BIGNUMERIC"},
            {"name": "flag", "type": "BOOLEAN"},
            {"name": "time_stamp", "type": "TIMESTAMP"},
            {"name": "day", "type": "DATE"},
            {"name": "day_time", "type": "DATETIME"},
            {"name": "time_of_day", "type": "TIME"},
            {"name": "json", "type": "JSON"},
            {"name": "Record13", "type": "RECORD", "fields": [
                {"name": "texts", "type": "STRING", "mode": "REPEATED"},
                {"name": "deep", "type": "RECORD", "mode": "REPEATED", "fields": [
                    {"name": "numeric", "type": "NUMERIC"},
                    {"name": "days", "type": "DATE", "mode": "REPEATED"}
                ]}
            ]},
            {"name": "integers", "type": "INTEGER", "mode": "REPEATED"}
        ]
    }"#;

    fn plan() -> Plan {
        compile("every_type.json", EVERY_TYPE).unwrap()
    }

    fn value(column: &Column) -> BoxedStrategy<Value<'static>> {
        const DAYS: std::ops::RangeInclusive<i32> = -719_162..=2_932_896;
        const MICROS: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;
        match &column.kind {
            Kind::String => any::<String>().prop_map(|text| Value::Text(text.into())).boxed(),
            Kind::Bytes => any::<Vec<u8>>().prop_map(Value::Bytes).boxed(),
            Kind::Integer => any::<i64>().prop_map(Value::Int).boxed(),
            Kind::Float => any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::Float).boxed(),
            Kind::Numeric => {
                let limit = 10_i128.pow(38) - 1;
                (-limit..=limit).prop_map(Value::Numeric).boxed()
            }
            Kind::BigNumeric => (any::<i128>(), 0_u32..38)
                .prop_map(|(number, scale)| {
                    Value::BigNumeric(number::big_numeric(&format!("{number}e-{scale}")).unwrap_or_default())
                })
                .prop_filter("a number", |value| *value != Value::BigNumeric("".into()))
                .boxed(),
            Kind::Boolean => any::<bool>().prop_map(Value::Bool).boxed(),
            Kind::Timestamp => MICROS.prop_map(Value::Timestamp).boxed(),
            Kind::Date => DAYS.prop_map(Value::Date).boxed(),
            Kind::DateTime => MICROS.prop_map(Value::DateTime).boxed(),
            Kind::Time => (0..crate::clock::DAY).prop_map(Value::Time).boxed(),
            Kind::Json => {
                any::<String>().prop_map(|text| Value::Text(serde_json::to_string(&text).unwrap().into())).boxed()
            }
            Kind::Record(fields) => values(&fields.columns).prop_map(Value::Record).boxed(),
        }
    }

    fn values(columns: &[Column]) -> BoxedStrategy<Vec<Value<'static>>> {
        use crate::schema::Mode;
        let each: Vec<_> = columns
            .iter()
            .map(|column| match column.mode {
                Mode::Required => value(column),
                Mode::Repeated => proptest::collection::vec(value(column), 0..5).prop_map(Value::Repeated).boxed(),
                Mode::Nullable => prop_oneof![1 => Just(Value::Null), 3 => value(column)].boxed(),
            })
            .collect();
        each.boxed()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(values in values(&plan().columns)) {
            let plan = plan();
            let layout = Layout::new(&plan.columns, &Lacking::new());
            let mut wire = Vec::new();
            row(&layout, &values, &mut wire).unwrap();
            prop_assert_eq!(read::row(&layout.descriptor(), &plan.columns, &wire).unwrap(), values);
        }
    }

    #[test]
    fn a_long_record_has_a_long_length() {
        let plan = plan();
        let line = format!(
            r#"{{"integer":1,"Record13":{{"texts":["{}"],"deep":[{{"numeric":"-0.000000001"}},{{}}]}}}}"#,
            "é".repeat(20_000)
        );
        let mut given = Row::default();
        decode::row(&plan, line.as_bytes(), &mut given).unwrap();
        let layout = Layout::new(&plan.columns, &Lacking::new());
        let mut wire = Vec::new();
        row(&layout, &given.values, &mut wire).unwrap();
        let mut json = Vec::new();
        encode::object(&plan.columns, &read::row(&layout.descriptor(), &plan.columns, &wire).unwrap(), &mut json);
        assert_eq!(String::from_utf8(json).unwrap(), line.replace("\"-0.000000001\"", "-0.000000001"));
    }

    #[test]
    fn a_value_in_a_column_that_the_table_lacks_is_named() {
        let plan = plan();
        let layout = Layout::new(&plan.columns, &["Record13.deep.days", "flag"].map(String::from).into());
        let write = |line: &'static str| {
            let mut given = Row::default();
            decode::row(&plan, line.as_bytes(), &mut given).unwrap();
            row(&layout, &given.values, &mut Vec::new()).map_err(str::to_string)
        };
        assert_eq!(write(r#"{"integer":1,"Record13":{"deep":[{"numeric":1}]}}"#), Ok(()));
        assert_eq!(write(r#"{"integer":1,"flag":false}"#), Err("flag".into()));
        let nested = r#"{"integer":1,"Record13":{"deep":[{},{"days":["2026-10-20"]}]}}"#;
        assert_eq!(write(nested), Err("Record13.deep.days".into()));
        let described: Vec<_> = layout.descriptor().field.into_iter().filter_map(|field| field.name).collect();
        assert!(!described.contains(&"flag".to_string()));
    }
}
