//! From the bytes of one JSON object to a [`Row`], driven by a [`Plan`]; no event type has code of its own.
//!
//! Keys match columns in `snake_case` and `camelCase`; unknown keys are checked, dropped and counted; of a key that
//! comes twice the last value stands, as in JavaScript. Every fault of a column is reported, not only the first.

pub mod json;
pub mod number;
pub mod time;

use std::borrow::Cow;
use std::ops::Range;

pub use json::MAX_DEPTH;
use json::{JsonError, Next, Scanner};

use crate::clock::Micros;
use crate::event;
pub use crate::problem::{Code, MAX_PROBLEMS, Problem, Problems};
use crate::publish::MAX_EVENT_BYTES;
use crate::row::{Row, Value};
use crate::schema::{Column, Fields, Fill, Kind, Mode, Plan};

/// Decodes one event as a client sent it. Enriched columns stay empty, of the system columns only `event_id` is read.
///
/// The partition column must lie inside the plan's window around `now`. What breaks the schema stands in
/// `row.problems`; the error is an input that is no JSON object at all.
pub fn event<'a>(plan: &Plan, line: &'a [u8], now: Micros, row: &mut Row<'a>) -> Result<(), Problem> {
    object(plan, &Form::Event, line, row, None)?;
    if let Some(system) = plan.system {
        check_event_id(system.event_id, row);
    }
    check_window(plan, now, row);
    check_required(&plan.columns, |column| column.fill == Fill::Event, row);
    Ok(())
}

/// Decodes of one row of the enriched message what tells it from others and when it came to be: its identity,
/// `received_at` and the partition column. The rest has to be JSON, no more: whoever writes the row decodes it.
pub fn head<'a>(plan: &Plan, line: &'a [u8], row: &mut Row<'a>) -> Result<(), Problem> {
    object(plan, &Form::Head, line, row, None)?;
    if let Some(system) = plan.system {
        check_event_id(system.event_id, row);
    }
    Ok(())
}

/// Decodes one row of the enriched message: every column by its exact name, no time window.
pub fn row<'a>(plan: &Plan, line: &'a [u8], row: &mut Row<'a>) -> Result<(), Problem> {
    object(plan, &Form::Row, line, row, None)?;
    if let Some(system) = plan.system {
        check_event_id(system.event_id, row);
    }
    check_required(&plan.columns, |_| true, row);
    Ok(())
}

/// The elements of one REPEATED column that are judged each for itself; see [`nested`]. Reuse one for many lines.
#[derive(Debug, Default)]
pub struct Elements {
    /// Where each element that stands in the row begins and ends in the line, in bytes.
    pub spans: Vec<Range<usize>>,
    /// Those that break the schema: where each stands, and what is wrong with it. They are not in the row.
    pub faults: Vec<(Range<usize>, Problems)>,
}

/// Decodes one line of a history: as [`event`], whenever it happened.
///
/// An element of the column `apart` that breaks the schema costs that element: it is told in `elements` and the rest of
/// the line stands in the row.
pub fn nested<'a>(
    plan: &Plan,
    line: &'a [u8],
    apart: Option<usize>,
    row: &mut Row<'a>,
    elements: &mut Elements,
) -> Result<(), Problem> {
    elements.spans.clear();
    elements.faults.clear();
    let column = apart.and_then(|index| plan.columns.get(index));
    object(plan, &Form::Event, line, row, column.map(|column| (column, elements)))?;
    if let Some(system) = plan.system {
        check_event_id(system.event_id, row);
    }
    check_required(&plan.columns, |column| column.fill == Fill::Event, row);
    Ok(())
}

/// Values that a short text may decode to. A longer one may have one more for each of its bytes, so that the memory of a
/// row is at most 32 times its text: an array of empty records decodes to a value for each field of each.
const SPARE_VALUES: usize = 4_096;

enum Form {
    Event,
    Row,
    Head,
}

fn object<'a>(
    plan: &Plan,
    form: &Form,
    line: &'a [u8],
    row: &mut Row<'a>,
    apart: Option<(&Column, &mut Elements)>,
) -> Result<(), Problem> {
    row.reset(plan.columns.len());
    let text = std::str::from_utf8(line)
        .map_err(|error| Problem::new(Code::BadUtf8, format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    let keys = match form {
        Form::Event => &plan.event_keys,
        Form::Row => &plan.row_keys,
        Form::Head => &plan.head_keys,
    };
    let mut scanner = Scanner::new(text);
    let kind = scanner.next_kind().map_err(bad_json)?;
    if kind != Next::Object {
        scanner.skip().and_then(|_| scanner.end()).map_err(bad_json)?;
        return Err(Problem::new(Code::NotAnObject, format!("expected a JSON object, found {}", kind.name())));
    }
    let values_left = match form {
        Form::Event => text.len(),
        // A row is shorter than its event, which was not too large.
        Form::Row | Form::Head => text.len().max(MAX_EVENT_BYTES),
    };
    let values_left = Some(SPARE_VALUES + values_left);
    let mut members =
        Members { scanner: &mut scanner, unknown_keys: 0, problems: &mut row.problems, values_left, apart };
    row.faults_by_column = members.read(&plan.columns, keys, &Path::ROOT, &mut row.values).map_err(bad_json)?;
    row.unknown_keys = members.unknown_keys;
    if members.values_left.is_none() {
        let message = "the event has too many values for its size: records with few of their fields, or empty ones";
        row.problems.push(Problem::new(Code::TooLarge, message));
    }
    scanner.end().map_err(bad_json)
}

/// The fault of a text that is not JSON.
pub fn bad_json(error: JsonError) -> Problem {
    let code = if error.what == JsonError::TOO_DEEP { Code::TooDeep } else { Code::BadJson };
    Problem::new(code, format!("{} at byte {}", error.what, error.at))
}

/// Where in the record a column stands; text only when a fault is reported.
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    name: &'p str,
}

impl Path<'_> {
    const ROOT: Path<'static> = Path { parent: None, name: "" };

    fn text(&self) -> String {
        match self.parent {
            Some(parent) if !parent.name.is_empty() => format!("{}.{}", parent.text(), self.name),
            _ => self.name.to_string(),
        }
    }
}

struct Members<'s, 'a> {
    scanner: &'s mut Scanner<'a>,
    unknown_keys: u32,
    problems: &'s mut Problems,
    /// How many more values the text may decode to, see [`SPARE_VALUES`]; `None` once it had too many.
    values_left: Option<usize>,
    /// The column whose elements are judged each for itself.
    apart: Option<(&'s Column, &'s mut Elements)>,
}

/// Why a value did not become one of its column.
type Fault = (Code, Cow<'static, str>);

impl<'a> Members<'_, 'a> {
    /// Reads the members of an object into `values`. Returns how many faults the value of each column has; nothing where
    /// none has any.
    ///
    /// Of a key that comes again the value before is replaced, and so are its faults: they are counted by column, so that
    /// a key costs no more than a look at the few faults that are kept.
    #[inline]
    fn read(
        &mut self,
        columns: &[Column],
        keys: &crate::schema::KeyTable,
        path: &Path<'_>,
        values: &mut [Value<'a>],
    ) -> Result<Vec<u32>, JsonError> {
        self.scanner.open()?;
        let first_kept = self.problems.len();
        let mut faults_by_column = Vec::new();
        let mut first = true;
        let mut expected = 0;
        while let Some(key) = self.scanner.key(first)? {
            first = false;
            let found = key.text().and_then(|key| keys.find(key.as_bytes(), &mut expected));
            let Some((index, column, value)) =
                found.and_then(|index| Some((index, columns.get(index)?, values.get_mut(index)?)))
            else {
                self.unknown_keys += 1;
                self.scanner.skip()?;
                continue;
            };
            let path = Path { parent: Some(path), name: &column.name };
            if let Some(faults) = faults_by_column.get_mut(index).filter(|faults| **faults > 0) {
                self.problems.withdraw(first_kept, &path.text(), std::mem::take(faults) as usize);
            }
            let faults_before = self.problems.total();
            *value =
                if column.mode == Mode::Repeated { self.array(column, &path)? } else { self.value(column, &path)? };
            let faults = self.problems.total() - faults_before;
            if faults > 0 {
                faults_by_column.resize(columns.len(), 0);
                faults_by_column[index] = u32::try_from(faults).unwrap_or(u32::MAX);
            }
        }
        Ok(faults_by_column)
    }

    fn array(&mut self, column: &Column, path: &Path<'_>) -> Result<Value<'a>, JsonError> {
        let is_apart = self.begin_apart(column);
        match self.scanner.next_kind()? {
            Next::Array => {}
            Next::Null => {
                self.scanner.null()?;
                return Ok(Value::Repeated(Vec::new()));
            }
            other => {
                self.scanner.skip()?;
                self.report(path, (Code::WrongType, format!("expected an array, found {}", other.name()).into()));
                return Ok(Value::Null);
            }
        }
        self.scanner.open()?;
        let mut elements = Vec::new();
        let mut count = 0;
        while self.scanner.element(count == 0)? {
            count += 1;
            if count > column.max_elements || !self.take_values(1) {
                self.scanner.skip()?;
                continue;
            }
            let element = if is_apart { self.element_apart(column, path)? } else { Some(self.element(column, path)?) };
            elements.extend(element);
        }
        if count > column.max_elements {
            let message = format!("{count} elements, at most {} fit", column.max_elements);
            self.report(path, (Code::TooLong, message.into()));
        }
        Ok(Value::Repeated(elements))
    }

    fn element(&mut self, column: &Column, path: &Path<'_>) -> Result<Value<'a>, JsonError> {
        let faults_before = self.problems.total();
        let element = self.value(column, path)?;
        if element.is_null() && self.problems.total() == faults_before {
            self.report(path, (Code::WrongType, "an element of an array may not be null".into()));
        }
        Ok(element)
    }

    /// Whether the elements of this column are judged each for itself. What stood in it before counts no more.
    fn begin_apart(&mut self, column: &Column) -> bool {
        match &mut self.apart {
            Some((apart, elements)) if std::ptr::eq(*apart, column) => {
                elements.spans.clear();
                elements.faults.clear();
                true
            }
            _ => false,
        }
    }

    /// Reads an element that is judged for itself: its faults are told apart from those of the row. `None` where it has any.
    fn element_apart(&mut self, column: &Column, path: &Path<'_>) -> Result<Option<Value<'a>>, JsonError> {
        let of_row = std::mem::take(self.problems);
        let start = self.scanner.at();
        let element = self.element(column, path);
        let of_element = std::mem::replace(self.problems, of_row);
        let (element, span) = (element?, start..self.scanner.at());
        let Some((_, elements)) = &mut self.apart else { return Ok(Some(element)) };
        if of_element.is_empty() {
            elements.spans.push(span);
            return Ok(Some(element));
        }
        elements.faults.push((span, of_element));
        Ok(None)
    }

    /// Counts values that are about to be decoded. `false` where they are too many for the size of the text; its rest is
    /// only skipped, and [`object`] reports the fault of the whole event.
    fn take_values(&mut self, count: usize) -> bool {
        self.values_left = self.values_left.and_then(|left| left.checked_sub(count));
        self.values_left.is_some()
    }

    /// One value; a fault is reported and leaves `Null`.
    #[inline]
    fn value(&mut self, column: &Column, path: &Path<'_>) -> Result<Value<'a>, JsonError> {
        let next = self.scanner.next_kind()?;
        let read = match (&column.kind, next) {
            (_, Next::Null) => {
                self.scanner.null()?;
                return Ok(Value::Null);
            }
            (Kind::Json, _) => Ok(Value::borrowed(self.scanner.skip()?)),
            (Kind::Record(fields), Next::Object) => return self.record(fields, path),
            (Kind::Boolean, Next::Bool) => Ok(Value::Bool(self.scanner.boolean()?)),
            (_, Next::String) => match self.scanner.string()?.text() {
                Some(text) => from_text(column, text),
                None => Err((Code::BadText, "half of a surrogate pair is no text".into())),
            },
            (_, Next::Number) => from_number(column, self.scanner.number()?),
            _ => {
                self.scanner.skip()?;
                Err(wrong_type(column, next.name()))
            }
        };
        Ok(read.unwrap_or_else(|fault| {
            self.report(path, fault);
            Value::Null
        }))
    }

    fn record(&mut self, fields: &Fields, path: &Path<'_>) -> Result<Value<'a>, JsonError> {
        if !self.take_values(fields.columns.len()) {
            self.scanner.skip()?;
            return Ok(Value::Record(Vec::new()));
        }
        let mut values = vec![Value::Null; fields.columns.len()];
        let faults_by_field = self.read(&fields.columns, &fields.keys, path, &mut values)?;
        for (index, (column, value)) in fields.columns.iter().zip(&mut values).enumerate() {
            match (column.mode, &value) {
                (Mode::Repeated, Value::Null) => *value = Value::Repeated(Vec::new()),
                // A field that is at fault for its value is not missing as well.
                (Mode::Required, Value::Null) if faults_by_field.get(index).is_none_or(|&faults| faults == 0) => {
                    let path = Path { parent: Some(path), name: &column.name };
                    self.report(&path, missing());
                }
                _ => {}
            }
        }
        Ok(Value::Record(values))
    }

    #[cold]
    fn report(&mut self, path: &Path<'_>, (code, message): Fault) {
        self.problems.push_with(code, || Problem { code, column: Some(path.text()), message: message.into_owned() });
    }
}

fn missing() -> Fault {
    (Code::MissingRequired, "a value is required".into())
}

#[cold]
fn wrong_type(column: &Column, found: &str) -> Fault {
    (Code::WrongType, format!("expected {}, found {found}", column.kind.name()).into())
}

#[inline]
fn from_text<'a>(column: &Column, text: Cow<'a, str>) -> Result<Value<'a>, Fault> {
    let constant = |(code, message): (Code, &'static str)| (code, Cow::Borrowed(message));
    match column.kind {
        Kind::String => {
            check_length(column, || text.chars().count(), text.len())?;
            Ok(Value::Text(text))
        }
        Kind::Timestamp => time::timestamp(&text).map(Value::Timestamp).map_err(constant),
        Kind::Date => time::date(&text).map(Value::Date).map_err(constant),
        Kind::DateTime => time::date_time(&text).map(Value::DateTime).map_err(constant),
        Kind::Time => time::time(&text).map(Value::Time).map_err(constant),
        // As BigQuery writes them where a JSON number could lose digits.
        Kind::Integer => number::integer(&text).map(Value::Int).map_err(constant),
        Kind::Numeric => number::numeric(&text).map(Value::Numeric).map_err(constant),
        Kind::BigNumeric => number::big_numeric(&text).map(Value::BigNumeric).map_err(constant),
        Kind::Bytes => {
            let bytes = base64_simd::STANDARD
                .decode_to_vec(text.as_bytes())
                .map_err(|_| (Code::BadBase64, "expected base64 with padding (RFC 4648)".into()))?;
            check_length(column, || bytes.len(), bytes.len())?;
            Ok(Value::Bytes(bytes))
        }
        _ => Err(wrong_type(column, "a string")),
    }
}

fn from_number<'a>(column: &Column, number: &str) -> Result<Value<'a>, Fault> {
    let constant = |(code, message): (Code, &'static str)| (code, Cow::Borrowed(message));
    match column.kind {
        Kind::Integer => number::integer(number).map(Value::Int).map_err(constant),
        Kind::Numeric => number::numeric(number).map(Value::Numeric).map_err(constant),
        Kind::BigNumeric => number::big_numeric(number).map(Value::BigNumeric).map_err(constant),
        Kind::Timestamp => time::epoch(number).map(Value::Timestamp).map_err(constant),
        Kind::Float => match number.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Value::Float(value)),
            _ => Err((Code::OutOfRange, "a FLOAT is at most about 1.8e308".into())),
        },
        _ => Err(wrong_type(column, "a number")),
    }
}

/// `at_most` is a cheap upper bound of `length`.
#[inline]
fn check_length(column: &Column, length: impl Fn() -> usize, at_most: usize) -> Result<(), Fault> {
    match column.max_length {
        Some(max) if at_most > max && length() > max => {
            Err((Code::TooLong, format!("{} long, at most {max} fit", length()).into()))
        }
        _ => Ok(()),
    }
}

#[inline]
fn check_event_id(column: usize, row: &mut Row<'_>) {
    if let Some(Value::Text(id)) = row.values.get(column)
        && !event::is_event_id(id)
    {
        row.set(column, Value::Null);
        row.problems.push(Problem::of("event_id", Code::BadEventId, event::EVENT_ID_FORM));
        row.faults_by_column.resize(row.values.len(), 0);
        row.faults_by_column[column] += 1;
    }
}

fn check_window(plan: &Plan, now: Micros, row: &mut Row<'_>) {
    let Some(partition) = plan.table.partition else { return };
    let Some(time) = row.values.get(partition.column).and_then(Value::partition_time) else { return };
    if let Some(problem) = outside_window(plan, &plan.columns[partition.column].name, time, now) {
        row.problems.push(problem);
    }
}

/// The fault of a partition time that the schema does not accept now.
pub fn outside_window(plan: &Plan, column: &str, time: Micros, now: Micros) -> Option<Problem> {
    let accepted = now - plan.accepts.past..=now + plan.accepts.future;
    let (past, future) = (plan.accepts.past / crate::clock::DAY, plan.accepts.future / crate::clock::DAY);
    let message = || format!("outside the accepted window, {past} days back to {future} days ahead");
    (!accepted.contains(&time)).then(|| Problem::of(column, Code::OutsideWindow, message()))
}

#[inline]
fn check_required(columns: &[Column], applies: impl Fn(&Column) -> bool, row: &mut Row<'_>) {
    for (index, (column, value)) in columns.iter().zip(&mut row.values).enumerate() {
        if column.mode == Mode::Nullable || !value.is_null() || !applies(column) {
            continue;
        }
        if column.mode == Mode::Repeated {
            *value = Value::Repeated(Vec::new());
        } else if row.faults_by_column.get(index).is_none_or(|&faults| faults == 0) {
            let (code, message) = missing();
            row.problems.push(Problem::of(&column.name, code, message));
        }
    }
}

#[cfg(test)]
mod tests;
