//! What can be wrong with an event: stable codes for machines, a sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stable code of a fault; in dead letters it is the `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not JSON by RFC 8259.
    BadJson,
    /// Bytes that are not UTF-8.
    BadUtf8,
    /// Nested deeper than [`crate::decode::MAX_DEPTH`].
    TooDeep,
    /// JSON, but not an object.
    NotAnObject,
    /// Over 1 MiB.
    TooLarge,
    /// A push without a usable message.
    BadEnvelope,
    /// `event_id` is not 1-64 characters of `[A-Za-z0-9._:-]`.
    BadEventId,
    /// `event_type` names no schema.
    UnknownType,
    /// The schema does not take events from where this one came.
    TypeNotAllowed,
    /// A value of another type than its column.
    WrongType,
    /// A REQUIRED column without a value.
    MissingRequired,
    /// Filled in by the publisher; no fault.
    Defaulted,
    /// A number or time outside its column's range.
    OutOfRange,
    /// Not a date or time that exists.
    BadTime,
    /// A partition column outside the schema's `accepts` window.
    OutsideWindow,
    /// More decimals than the column holds.
    TooPrecise,
    /// Longer than the column's `maxLength`.
    TooLong,
    /// Text that is no Unicode: half of a surrogate pair.
    BadText,
    /// BYTES that are not base64.
    BadBase64,
    /// The warehouse refused the row for good.
    Refused,
    /// The warehouse's table lacks a column of the row; it can be replayed once the column is there.
    MissingColumn,
    /// Given up after the last delivery attempt.
    Undeliverable,
}

impl Code {
    /// The code in `snake_case`, as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::BadUtf8 => "bad_utf8",
            Self::TooDeep => "too_deep",
            Self::NotAnObject => "not_an_object",
            Self::TooLarge => "too_large",
            Self::BadEnvelope => "bad_envelope",
            Self::BadEventId => "bad_event_id",
            Self::UnknownType => "unknown_type",
            Self::TypeNotAllowed => "type_not_allowed",
            Self::WrongType => "wrong_type",
            Self::MissingRequired => "missing_required",
            Self::Defaulted => "defaulted",
            Self::OutOfRange => "out_of_range",
            Self::BadTime => "bad_time",
            Self::OutsideWindow => "outside_window",
            Self::TooPrecise => "too_precise",
            Self::TooLong => "too_long",
            Self::BadText => "bad_text",
            Self::BadBase64 => "bad_base64",
            Self::Refused => "refused",
            Self::MissingColumn => "missing_column",
            Self::Undeliverable => "undeliverable",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One fault of one event. The message names places and types, never the event's own values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable code.
    pub code: Code,
    /// Path of the column (`items.quantity`), where one is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl Problem {
    /// A fault of the whole event.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, column: None, message: message.into() }
    }

    /// A fault of one column.
    pub fn of(column: &str, code: Code, message: impl Into<String>) -> Self {
        Self { code, column: Some(column.to_string()), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "{column}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}
