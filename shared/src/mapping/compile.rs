//! From a mapping file to a [`Mapping`]: every name is looked up here, once.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::{Derived, ElementRows, Field, Finding, Form, From, Mapping, Rule, Spot, Target};
use crate::decode::number;
use crate::schema::{Column, Kind, Mode, Plan, Registry};

/// A mapping file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mapping file {file}: {field}: {reason}")]
pub struct MappingError {
    /// The file as the caller named it.
    pub file: String,
    /// Where in the file, as a path (`elements.rows.purchase.columns.amount`).
    pub field: String,
    /// What is wrong and what is expected.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MappingFile {
    source: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// FLOAT becomes NUMERIC with so many decimals.
    numeric_decimals: Option<u32>,
    #[serde(default)]
    derived: BTreeMap<String, DerivedFile>,
    #[serde(default)]
    rows: Vec<TargetFile>,
    elements: Option<ElementsFile>,
    #[serde(default)]
    findings: Vec<FindingFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DerivedFile {
    sha256: Vec<String>,
    separator: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFile {
    table: String,
    columns: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ElementsFile {
    by: String,
    rows: BTreeMap<String, TargetFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FindingFile {
    finding: String,
    table: String,
    column: String,
    rule: RuleFile,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RuleFile {
    Unique,
    NotEmpty,
    FileDay,
    OneOf(Vec<String>),
    AtLeast(i64),
    SumOf(String, String),
}

type Fault = (String, String);

/// Compiles the text of a mapping file against the schemas; `file` is its name for error messages.
pub fn compile(file: &str, text: &str, registry: &Registry) -> Result<Mapping, MappingError> {
    let fault = |(field, reason): Fault| MappingError { file: file.into(), field, reason };
    let whole = |field: String| if field == "." { "the file".into() } else { field };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: MappingFile = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| fault((whole(error.path().to_string()), error.inner().to_string())))?;
    json.end().map_err(|error| fault((whole(".".into()), error.to_string())))?;
    Builder::new(&parsed, registry).and_then(|builder| builder.build(parsed)).map_err(fault)
}

struct Builder<'r> {
    registry: &'r Registry,
    tables: Vec<Arc<Plan>>,
    derived: Vec<String>,
    decimals: Option<u32>,
    /// Index, name and fields of the column whose elements have rows of their own.
    elements: Option<usize>,
}

impl<'r> Builder<'r> {
    fn new(file: &MappingFile, registry: &'r Registry) -> Result<Self, Fault> {
        let source = registry.get(&file.source).ok_or_else(|| no_schema("source", &file.source))?;
        if file.numeric_decimals.is_some_and(|decimals| decimals > number::NUMERIC_SCALE) {
            return Err(("numeric_decimals".into(), "a NUMERIC has at most 9 decimals".into()));
        }
        let elements = match &file.elements {
            None => None,
            Some(given) => {
                let name = given.by.split('.').next().unwrap_or_default();
                let found = source.index_of(name).filter(|index| {
                    let column = &source.columns[*index];
                    column.mode == Mode::Repeated && matches!(column.kind, Kind::Record(_))
                });
                let reason = || format!("`{name}` is no REPEATED RECORD of `{}`", source.event_type);
                Some(found.ok_or_else(|| ("elements.by".to_string(), reason()))?)
            }
        };
        let derived = file.derived.keys().cloned().collect();
        let tables = vec![Arc::clone(source)];
        Ok(Self { registry, tables, derived, decimals: file.numeric_decimals, elements })
    }

    fn build(mut self, file: MappingFile) -> Result<Mapping, Fault> {
        let derived = file.derived.into_iter().map(|(name, given)| self.derived(&name, &given));
        let derived = derived.collect::<Result<Vec<_>, _>>()?;
        let mut rows = Vec::new();
        for (index, target) in file.rows.into_iter().enumerate() {
            rows.push(self.target(&format!("rows[{index}]"), &target, false)?);
        }
        let elements = match file.elements {
            None => None,
            Some(given) => Some(self.element_rows(given)?),
        };
        let findings = file.findings.into_iter().enumerate().map(|(index, given)| self.finding(index, given));
        let findings = findings.collect::<Result<Vec<_>, _>>()?;
        Ok(Mapping { tables: self.tables, apart: self.elements, findings, derived, rows, elements })
    }

    fn source(&self) -> &Plan {
        &self.tables[0]
    }

    fn derived(&self, name: &str, given: &DerivedFile) -> Result<Derived, Fault> {
        let path = format!("derived.{name}");
        if self.source().index_of(name).is_some() {
            return Err((path, "a column of the source has this name".into()));
        }
        let column = |name: &String| {
            let found = self.source().index_of(name).filter(|index| {
                let column = &self.source().columns[*index];
                column.kind == Kind::String && column.mode == Mode::Required
            });
            let reason = || format!("`{name}` is no REQUIRED STRING of `{}`", self.source().event_type);
            found.ok_or_else(|| (format!("{path}.sha256"), reason()))
        };
        let columns = given.sha256.iter().map(column).collect::<Result<_, _>>()?;
        Ok(Derived { columns, separator: given.separator.clone() })
    }

    fn element_rows(&mut self, given: ElementsFile) -> Result<ElementRows, Fault> {
        let (from, column) = self.find(&given.by).map_err(|reason| ("elements.by".to_string(), reason))?;
        let (From::Element(by), Kind::String, Mode::Required) = (from, &column.kind, column.mode) else {
            return Err(("elements.by".into(), format!("`{}` is no REQUIRED STRING of an element", given.by)));
        };
        let mut targets = Vec::new();
        for (name, target) in given.rows {
            let target = self.target(&format!("elements.rows.{name}"), &target, true)?;
            targets.push((name, target));
        }
        Ok(ElementRows { by, by_name: given.by, targets })
    }

    fn target(&mut self, path: &str, given: &TargetFile, of_element: bool) -> Result<Target, Fault> {
        let plan = self.registry.get(&given.table).ok_or_else(|| no_schema(&format!("{path}.table"), &given.table))?;
        if let Some(unknown) = given.columns.keys().find(|name| plan.index_of(name).is_none()) {
            return Err((format!("{path}.columns.{unknown}"), format!("not a column of `{}`", given.table)));
        }
        let field = |column: &Column| {
            let path = format!("{path}.columns.{}", column.name);
            let fault = |reason: String| (path.clone(), reason);
            let from = given.columns.get(&column.name);
            let from = from.ok_or_else(|| fault("missing; say where its value comes from".into()))?;
            let (from, form) = if let Some(index) = self.derived.iter().position(|name| name == from) {
                if column.kind != Kind::String || column.mode == Mode::Repeated {
                    return Err(fault("a derived value is a STRING".into()));
                }
                (From::Derived(index), Form::Same)
            } else {
                let (found, source) = self.find(from).map_err(fault)?;
                if matches!(found, From::Element(_)) && !of_element {
                    return Err(fault(format!("`{from}` is of an element; only `elements.rows` have one")));
                }
                let form = self.form(source, column).map_err(fault)?;
                (found, form)
            };
            Ok(Field { from, form, required: column.mode == Mode::Required, name: column.name.clone() })
        };
        let fields = plan.columns.iter().map(field).collect::<Result<_, _>>()?;
        let table = self.table(plan);
        Ok(Target { table, fields })
    }

    fn table(&mut self, plan: &Arc<Plan>) -> usize {
        let known = self.tables.iter().position(|known| known.event_type == plan.event_type);
        known.unwrap_or_else(|| {
            self.tables.push(Arc::clone(plan));
            self.tables.len() - 1
        })
    }

    /// The column of the source that a path names. Only the elements' array may be passed through.
    fn find(&self, path: &str) -> Result<(From, &Column), String> {
        let none = || format!("`{path}` is no column of `{}`", self.source().event_type);
        let mut names = path.split('.');
        let first = names.next().and_then(|name| self.source().index_of(name)).ok_or_else(none)?;
        let mut column = &self.source().columns[first];
        let mut indexes = Vec::new();
        for name in names {
            let passable = column.mode != Mode::Repeated || (indexes.is_empty() && self.elements == Some(first));
            let Kind::Record(fields) = &column.kind else { return Err(none()) };
            if !passable {
                return Err(format!("`{path}`: `{}` is REPEATED; map it whole", column.name));
            }
            let index = fields.columns.iter().position(|field| field.name == name).ok_or_else(none)?;
            indexes.push(index);
            column = &fields.columns[index];
        }
        if self.elements == Some(first) && !indexes.is_empty() {
            return Ok((From::Element(indexes), column));
        }
        indexes.insert(0, first);
        Ok((From::Line(indexes), column))
    }

    fn form(&self, from: &Column, to: &Column) -> Result<Form, String> {
        match (from.mode == Mode::Repeated, to.mode == Mode::Repeated) {
            (true, true) => Ok(Form::Repeated(Box::new(self.element_form(from, to)?))),
            (false, false) => self.element_form(from, to),
            _ => Err(format!("one of `{}` and `{}` is REPEATED, the other is not", from.name, to.name)),
        }
    }

    fn element_form(&self, from: &Column, to: &Column) -> Result<Form, String> {
        match (&from.kind, &to.kind) {
            (Kind::Record(source), Kind::Record(target)) => {
                let field = |column: &Column| {
                    let index = source.columns.iter().position(|field| field.name == column.name);
                    let index = index.ok_or_else(|| format!("`{}` has no field `{}`", from.name, column.name))?;
                    let source = &source.columns[index];
                    if column.mode == Mode::Required && source.mode != Mode::Required {
                        return Err(format!("`{}` is REQUIRED and may be missing in the source", column.name));
                    }
                    Ok((index, self.form(source, column)?))
                };
                Ok(Form::Record(target.columns.iter().map(field).collect::<Result<_, _>>()?))
            }
            (Kind::Float, Kind::Numeric) => self
                .decimals
                .map(Form::Rounded)
                .ok_or_else(|| format!("`{}` is FLOAT, `{}` NUMERIC: say `numeric_decimals`", from.name, to.name)),
            (Kind::Integer, Kind::Numeric) => Ok(Form::Exact),
            (source, target) if source == target && to.max_length.is_none() => Ok(Form::Same),
            (source, target) => {
                Err(format!("`{}` is {}, `{}` is {}", from.name, source.name(), to.name, target.name()))
            }
        }
    }

    fn finding(&self, index: usize, given: FindingFile) -> Result<Finding, Fault> {
        let path = format!("findings[{index}]");
        let table = self.tables.iter().position(|plan| plan.event_type == given.table);
        let table = table.ok_or_else(|| (format!("{path}.table"), format!("`{}` gets no rows here", given.table)))?;
        let plan = &self.tables[table];
        let spot = |name: &str, fits: fn(&Kind) -> bool, what: &str| {
            spot(plan, name, fits)
                .ok_or_else(|| (format!("{path}.column"), format!("`{name}` is no {what} of `{}`", given.table)))
        };
        let column = given.column.as_str();
        let is_text: fn(&Kind) -> bool = |kind| *kind == Kind::String;
        let is_time: fn(&Kind) -> bool = |kind| matches!(kind, Kind::Timestamp | Kind::DateTime | Kind::Date);
        let is_integer: fn(&Kind) -> bool = |kind| *kind == Kind::Integer;
        let is_numeric: fn(&Kind) -> bool = |kind| *kind == Kind::Numeric;
        let rule = match given.rule {
            RuleFile::Unique => Rule::Unique(spot(column, is_text, "STRING")?),
            RuleFile::NotEmpty => Rule::NotEmpty(spot(column, |_| true, "column")?),
            RuleFile::FileDay => Rule::FileDay(spot(column, is_time, "TIMESTAMP, DATETIME or DATE")?),
            RuleFile::OneOf(texts) => Rule::OneOf(spot(column, is_text, "STRING")?, texts),
            RuleFile::AtLeast(least) => Rule::AtLeast(spot(column, is_integer, "INTEGER")?, least),
            RuleFile::SumOf(price, quantity) => {
                let (total, price) = (spot(column, is_numeric, "NUMERIC")?, spot(&price, is_numeric, "NUMERIC")?);
                Rule::SumOf { total, price, quantity: spot(&quantity, is_integer, "INTEGER")? }
            }
        };
        Ok(Finding { name: given.finding, table, column: given.column, rule })
    }
}

fn no_schema(field: &str, name: &str) -> Fault {
    (field.to_string(), format!("no schema `{name}`"))
}

/// A column by its name, or `column.field` of a REPEATED RECORD.
fn spot(plan: &Plan, name: &str, fits: fn(&Kind) -> bool) -> Option<Spot> {
    let Some((name, field)) = name.split_once('.') else {
        let column = plan.index_of(name)?;
        return fits(&plan.columns[column].kind).then_some(Spot { column, field: None });
    };
    let column = plan.index_of(name)?;
    let Kind::Record(fields) = &plan.columns[column].kind else { return None };
    let field = fields.columns.iter().position(|known| known.name == field)?;
    (plan.columns[column].mode == Mode::Repeated && fits(&fields.columns[field].kind))
        .then_some(Spot { column, field: Some(field) })
}
