//! How one line of a nested source becomes rows of several tables.
//!
//! A mapping file (`shared/schemas/mappings/*.json`) names the source's schema, whose table gets the line itself, the
//! tables that get rows of its columns and of its array's elements, and what is worth a finding. [`compile`] checks it
//! against the plans once and turns every name into an index; no source has code of its own.

mod compile;
mod rule;

use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use compile::{MappingError, compile};
pub use rule::{Finding, Rule, Spot};

use crate::decode::{Code, Problem, number};
use crate::event;
use crate::row::{Row, Value};
use crate::schema::{Plan, Registry};

/// The mapping files that are part of the binary: name and text.
const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/mappings.rs"));

/// A mapping file, checked and ready to drive a load.
#[derive(Debug)]
pub struct Mapping {
    /// The tables that get rows. The first is the source's own, which gets the decoded line.
    pub tables: Vec<Arc<Plan>>,
    /// Index of the source's column whose elements are judged each for itself.
    pub apart: Option<usize>,
    /// What is worth a finding.
    pub findings: Vec<Finding>,
    derived: Vec<Derived>,
    rows: Vec<Target>,
    elements: Option<ElementRows>,
}

/// A value made of others: lower-case hex SHA-256 of STRING columns with a text between.
#[derive(Debug)]
struct Derived {
    columns: Vec<usize>,
    separator: String,
}

/// Rows of one table.
#[derive(Debug)]
struct Target {
    table: usize,
    fields: Vec<Field>,
}

/// How a column of a target gets its value.
#[derive(Debug)]
struct Field {
    from: From,
    form: Form,
    required: bool,
    /// For messages.
    name: String,
}

/// Where a value comes from: indexes from a record into its fields.
#[derive(Debug)]
enum From {
    Line(Vec<usize>),
    Element(Vec<usize>),
    Derived(usize),
}

/// What becomes of a value on its way.
#[derive(Debug)]
enum Form {
    Same,
    /// FLOAT to NUMERIC with so many decimals, half away from zero.
    Rounded(u32),
    /// INTEGER to NUMERIC.
    Exact,
    /// For each field of the target's record, the index in the source's and its own form.
    Record(Vec<(usize, Form)>),
    Repeated(Box<Form>),
}

/// Which target an element's row goes to.
#[derive(Debug)]
struct ElementRows {
    by: Vec<usize>,
    by_name: String,
    targets: Vec<(String, Target)>,
}

impl Mapping {
    /// The mapping of the built-in source `name`, compiled against `registry`; `None` where there is none.
    pub fn built_in(name: &str, registry: &Registry) -> Option<Result<Self, MappingError>> {
        let file = format!("{name}.json");
        let (file, text) = BUILT_IN.iter().find(|(known, _)| *known == file)?;
        Some(compile(&format!("mappings/{file}"), text, registry))
    }

    /// One table that gets the lines as they are decoded.
    pub fn of_one(plan: Arc<Plan>) -> Self {
        Self {
            tables: vec![plan],
            apart: None,
            findings: Vec::new(),
            derived: Vec::new(),
            rows: Vec::new(),
            elements: None,
        }
    }

    /// Whether rows of elements go to `tables[table]`.
    pub fn is_of_elements(&self, table: usize) -> bool {
        self.elements.iter().flat_map(|rows| &rows.targets).any(|(_, target)| target.table == table)
    }

    /// The plan that lines are decoded with.
    pub fn source(&self) -> &Arc<Plan> {
        &self.tables[0]
    }

    /// Computes the derived values of a decoded line.
    #[inline]
    pub fn derive(&self, row: &Row<'_>, derived: &mut Vec<String>) {
        derived.resize_with(self.derived.len(), String::new);
        for (rule, text) in self.derived.iter().zip(derived) {
            let mut hasher = Sha256::new();
            for (index, column) in rule.columns.iter().enumerate() {
                if index > 0 {
                    hasher.update(&rule.separator);
                }
                hasher.update(row.text(*column).unwrap_or_default());
            }
            text.clear();
            event::push_hex(&hasher.finalize(), text);
        }
    }

    /// Makes the rows of the other tables from a decoded line and its derived values, and hands each to `emit` with the
    /// index of its table. An element without a row is named in `refused`, with the reason.
    ///
    /// `values` is room for a row; it is emptied.
    #[inline]
    pub fn rows<'r>(
        &self,
        row: &'r Row<'_>,
        derived: &'r [String],
        values: &mut Vec<Value<'r>>,
        refused: &mut Vec<(usize, Problem)>,
        mut emit: impl FnMut(usize, &[Value<'r>]),
    ) -> Result<(), Problem> {
        let line = &row.values;
        for target in &self.rows {
            target.fill(line, &Value::Null, derived, values)?;
            emit(target.table, values);
        }
        let (Some(rows), Some(column)) = (&self.elements, self.apart) else { return Ok(()) };
        let Some(Value::Repeated(elements)) = line.get(column) else { return Ok(()) };
        for (index, element) in elements.iter().enumerate() {
            match rows.target(element).and_then(|target| {
                target.fill(line, element, derived, values)?;
                Ok(target.table)
            }) {
                Ok(table) => emit(table, values),
                Err(problem) => refused.push((index, problem)),
            }
        }
        Ok(())
    }
}

impl ElementRows {
    #[inline]
    fn target(&self, element: &Value<'_>) -> Result<&Target, Problem> {
        let kind = follow(element, &self.by).and_then(Value::as_text).unwrap_or_default();
        self.targets.iter().find(|(name, _)| name == kind).map(|(_, target)| target).ok_or_else(|| {
            let known: Vec<_> = self.targets.iter().map(|(name, _)| name.as_str()).collect();
            Problem::of(&self.by_name, Code::UnknownType, format!("none of {}", known.join(", ")))
        })
    }
}

impl Target {
    #[inline]
    fn fill<'r>(
        &self,
        line: &'r [Value<'_>],
        element: &'r Value<'_>,
        derived: &'r [String],
        values: &mut Vec<Value<'r>>,
    ) -> Result<(), Problem> {
        values.clear();
        for field in &self.fields {
            let from = match &field.from {
                From::Line(path) => path.split_first().and_then(|(first, rest)| follow(line.get(*first)?, rest)),
                From::Element(path) => follow(element, path),
                From::Derived(index) => {
                    values.push(derived.get(*index).map_or(Value::Null, |text| Value::borrowed(text)));
                    continue;
                }
            };
            let fault = |(code, message): (Code, &str)| Problem::of(&field.name, code, message);
            let value = from.map_or(Ok(Value::Null), |value| field.form.apply(value)).map_err(fault)?;
            if field.required && value.is_null() {
                return Err(fault((Code::MissingRequired, "a value is required")));
            }
            values.push(value);
        }
        Ok(())
    }
}

/// The field of a record that a path leads to.
#[inline]
fn follow<'v, 'a>(mut value: &'v Value<'a>, path: &[usize]) -> Option<&'v Value<'a>> {
    for index in path {
        let Value::Record(fields) = value else { return None };
        value = fields.get(*index)?;
    }
    Some(value)
}

impl Form {
    #[inline]
    fn apply<'r>(&self, value: &'r Value<'_>) -> Result<Value<'r>, (Code, &'static str)> {
        Ok(match (self, value) {
            (Self::Same, Value::Text(text)) => Value::borrowed(text),
            (Self::Rounded(decimals), Value::Float(number)) => number::rounded(*number, *decimals)
                .map(Value::Numeric)
                .ok_or((Code::OutOfRange, "a NUMERIC has at most 29 digits before the point"))?,
            (Self::Exact, Value::Int(number)) => Value::Numeric(i128::from(*number) * number::UNIT),
            (Self::Record(fields), Value::Record(values)) => {
                let field =
                    |(index, form): &(usize, Self)| values.get(*index).map_or(Ok(Value::Null), |v| form.apply(v));
                Value::Record(fields.iter().map(field).collect::<Result<_, _>>()?)
            }
            (Self::Repeated(form), Value::Repeated(elements)) => {
                Value::Repeated(elements.iter().map(|element| form.apply(element)).collect::<Result<_, _>>()?)
            }
            (_, other) => other.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
