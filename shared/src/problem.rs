//! What can be wrong with an event: stable codes for machines, a sentence for people.

use std::fmt;
use std::ops::Deref;

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
    /// A JSON object without a member.
    EmptyEvent,
    /// Over the largest size of an event, or too many values for it.
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
            Self::EmptyEvent => "empty_event",
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

/// The most faults of one event that are kept; further ones are only counted.
pub const MAX_PROBLEMS: usize = 20;

/// The faults of one event in the order found: the first [`MAX_PROBLEMS`], and a count of the rest.
///
/// Dereferences to the kept faults; [`Problems::is_empty`] and [`Problems::total`] speak of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    kept: Vec<Problem>,
    omitted: usize,
    /// Code of the first fault that was omitted, in case every kept one is withdrawn.
    omitted_code: Option<Code>,
}

impl Problems {
    /// Whether there is no fault at all.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    /// How many faults were found, kept or not.
    pub fn total(&self) -> usize {
        self.kept.len() + self.omitted
    }

    /// How many faults were found and not kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// The stable code that stands for the event: that of its first fault.
    pub fn code(&self) -> Option<Code> {
        self.kept.first().map(|problem| problem.code).or(self.omitted_code.filter(|_| self.omitted > 0))
    }

    /// Adds a fault.
    pub fn push(&mut self, problem: Problem) {
        let code = problem.code;
        self.push_with(code, || problem);
    }

    /// Adds a fault whose text is only made if it is kept.
    pub(crate) fn push_with(&mut self, code: Code, make: impl FnOnce() -> Problem) {
        if self.kept.len() < MAX_PROBLEMS && self.omitted == 0 {
            self.kept.push(make());
        } else {
            self.omitted += 1;
            self.omitted_code.get_or_insert(code);
        }
    }

    /// Adds the faults of another part of the same event.
    pub fn append(&mut self, other: Self) {
        other.kept.into_iter().for_each(|problem| self.push(problem));
        self.omitted += other.omitted;
        self.omitted_code = self.omitted_code.or(other.omitted_code);
    }

    /// Takes back the `count` faults of the column at `path` and inside it: another value has replaced its own. Only the
    /// kept faults from the index `from` on can be among them.
    pub(crate) fn withdraw(&mut self, from: usize, path: &str, count: usize) {
        let is_inside =
            |column: &str| column.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let before = self.kept.len();
        let mut index = 0;
        self.kept.retain(|known| {
            index += 1;
            #[cfg(test)]
            EXAMINED.set(EXAMINED.get() + 1);
            index <= from || !known.column.as_deref().is_some_and(is_inside)
        });
        let withdrawn = before - self.kept.len();
        self.omitted = self.omitted.saturating_sub(count.saturating_sub(withdrawn));
        if self.omitted == 0 {
            self.omitted_code = None;
        }
    }

    /// Takes back the fault of a required column that got its value after all.
    pub fn withdraw_missing(&mut self, column: &str) {
        self.withdraw(0, column, 1);
    }

    /// Removes all faults.
    pub fn clear(&mut self) {
        self.kept.clear();
        (self.omitted, self.omitted_code) = (0, None);
    }

    /// The kept faults; the others are forgotten.
    pub fn into_kept(self) -> Vec<Problem> {
        self.kept
    }
}

impl Deref for Problems {
    type Target = [Problem];

    fn deref(&self) -> &[Problem] {
        &self.kept
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { kept: vec![problem], ..Self::default() }
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

#[cfg(test)]
thread_local! {
    static EXAMINED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many faults this thread has looked at to withdraw some.
#[cfg(test)]
pub(crate) fn examined() -> usize {
    EXAMINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(column: &str) -> Problem {
        Problem::of(column, Code::WrongType, "why")
    }

    #[test]
    fn twenty_faults_are_kept_and_the_rest_counted() {
        let mut problems = Problems::default();
        (0..25).for_each(|number| problems.push(problem(&format!("c{number}"))));
        assert_eq!((problems.len(), problems.omitted(), problems.total()), (20, 5, 25));
        assert_eq!(problems.last().unwrap().column.as_deref(), Some("c19"));
    }

    #[test]
    fn withdrawn_faults_are_counted_no_more() {
        let mut problems = Problems::default();
        problems.push(problem("items"));
        (0..30).for_each(|_| problems.push(problem("items.price")));
        (0..2).for_each(|_| problems.push(problem("itemsize")));
        problems.withdraw(1, "items", 30);
        assert_eq!((problems.len(), problems.omitted()), (1, 2), "the first is of an earlier element");
        problems.withdraw(0, "items", 1);
        assert_eq!((problems.len(), problems.is_empty(), problems.code()), (0, false, Some(Code::WrongType)));
        problems.withdraw(0, "itemsize", 2);
        assert_eq!(problems, Problems::default());
    }
}
