//! One decoded row: a value a column, in the order of the plan.

use std::borrow::Cow;

use crate::clock::Micros;
use crate::problem::Problems;

/// A value of one column. Text borrows from the input line wherever the line holds it unescaped.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value<'a> {
    /// Absent or JSON `null`.
    #[default]
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// INTEGER.
    Int(i64),
    /// FLOAT, always finite.
    Float(f64),
    /// STRING, and JSON as its verbatim text.
    Text(Cow<'a, str>),
    /// BYTES, decoded from base64.
    Bytes(Vec<u8>),
    /// NUMERIC: the value times 10^9.
    Numeric(i128),
    /// BIGNUMERIC: canonical decimal text (no exponent, no superfluous zeros).
    BigNumeric(Box<str>),
    /// TIMESTAMP: microseconds since the epoch, UTC.
    Timestamp(Micros),
    /// DATE: days since 1970-01-01.
    Date(i32),
    /// DATETIME: microseconds since 1970-01-01T00:00:00 on a clock without a zone.
    DateTime(Micros),
    /// TIME: microseconds since midnight.
    Time(Micros),
    /// RECORD: a value a field.
    Record(Vec<Value<'a>>),
    /// A column of mode REPEATED.
    Repeated(Vec<Value<'a>>),
}

impl<'a> Value<'a> {
    /// The text of a STRING or JSON value.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A STRING that borrows.
    pub fn borrowed(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// `true` for `Null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Microseconds since the epoch of a TIMESTAMP, DATETIME or DATE (midnight): the types a table is partitioned by.
    pub fn partition_time(&self) -> Option<Micros> {
        match self {
            Self::Timestamp(micros) | Self::DateTime(micros) => Some(*micros),
            Self::Date(days) => Some(i64::from(*days) * crate::clock::DAY),
            _ => None,
        }
    }
}

/// A row under construction; reuse one for many lines of the same plan.
#[derive(Debug, Default, Clone)]
pub struct Row<'a> {
    /// A value a column of the plan, system columns included.
    pub values: Vec<Value<'a>>,
    /// How many keys of the input named no column.
    pub unknown_keys: u32,
    /// What breaks the schema, in the order found; empty in a good row.
    pub problems: Problems,
    /// Faults of the value of each column; empty where no column has any.
    pub(crate) faults_by_column: Vec<u32>,
}

impl<'a> Row<'a> {
    /// Empties the row and makes room for `columns` values.
    #[inline]
    pub fn reset(&mut self, columns: usize) {
        if self.values.len() == columns {
            // In place: cheaper than to drop and clone each value, once an event.
            self.values.iter_mut().for_each(|value| *value = Value::Null);
        } else {
            self.values = std::iter::repeat_with(|| Value::Null).take(columns).collect();
        }
        self.unknown_keys = 0;
        self.problems.clear();
        self.faults_by_column.clear();
    }

    /// Whether the value that the input gave column `index` is at fault. A value that is only missing is not.
    pub fn has_fault(&self, index: usize) -> bool {
        self.faults_by_column.get(index).is_some_and(|&faults| faults > 0)
    }

    /// The text of column `index`, if it holds any.
    pub fn text(&self, index: usize) -> Option<&str> {
        self.values.get(index).and_then(Value::as_text)
    }

    /// Puts `value` into column `index`; an index outside the plan is ignored.
    pub fn set(&mut self, index: usize, value: Value<'a>) {
        if let Some(slot) = self.values.get_mut(index) {
            *slot = value;
        }
    }
}
