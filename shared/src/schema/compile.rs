//! From a schema file to a [`Plan`]: every rule that a file must keep is checked here, once.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::keys::{KeyTable, camel_case};
use super::plan::{
    Column, Enrich, Fields, Fill, Granularity, Ingest, Kind, Mode, Partition, Plan, System, Table, Window,
};
use crate::clock::DAY;
use crate::enrich;

/// A schema file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema file {file}: {field}: {reason}")]
pub struct SchemaError {
    /// The file as the caller named it.
    pub file: String,
    /// Where in the file, as a path (`columns.items.quantity`).
    pub field: String,
    /// What is wrong and what is expected.
    pub reason: String,
}

/// The columns that every streaming table has after its own.
const SYSTEM_COLUMNS: [(&str, &str, &str); 5] = [
    ("event_id", "STRING", "Identity of the event, the same on every delivery"),
    ("received_at", "TIMESTAMP", "When the publisher, else Pub/Sub, received the event"),
    ("loaded_at", "TIMESTAMP", "When the batcher handed the row to the warehouse"),
    ("schema_version", "STRING", "Version of the schema that the row was decoded with"),
    ("fingerprint", "INTEGER", "Hash of the content, by which copies and conflicts of one event_id are told apart"),
];
const MAX_DEPTH: usize = 15;
const MAX_CLUSTERING: usize = 4;
/// Elements of an array whose column names no other limit.
const MAX_ELEMENTS: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaFile {
    event_type: String,
    version: String,
    ingest: Ingest,
    description: Option<String>,
    table: TableFile,
    #[serde(default)]
    accepts: AcceptsFile,
    columns: Vec<Json>,
    #[serde(default)]
    enrichments: Vec<EnrichFile>,
    #[serde(default)]
    aliases: BTreeMap<String, Vec<String>>,
    identity: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    dataset: String,
    name: String,
    time_partitioning: Option<PartitionFile>,
    #[serde(default)]
    require_partition_filter: bool,
    #[serde(default)]
    clustering: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionFile {
    field: String,
    #[serde(rename = "type")]
    granularity: Granularity,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct AcceptsFile {
    past_days: Option<u32>,
    future_days: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrichFile {
    enrichment: String,
    from: String,
    into: BTreeMap<String, String>,
}

/// BigQuery's own form of a column, as `bq show --schema` prints it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ColumnFile {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    mode: Mode,
    description: Option<String>,
    max_length: Option<Json>,
    /// Ours, not BigQuery's: the most elements of a REPEATED column.
    max_elements: Option<usize>,
    fields: Option<Vec<Json>>,
}

type Fault = (String, String);

/// Compiles the text of a schema file; `file` is its name for error messages.
pub fn compile(file: &str, text: &str) -> Result<Plan, SchemaError> {
    let refuse = |field: &str, reason: &serde_json::Error| SchemaError {
        file: file.into(),
        field: if field == "." { "the file".into() } else { field.into() },
        reason: reason.to_string(),
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: SchemaFile = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| refuse(&error.path().to_string(), error.inner()))?;
    json.end().map_err(|error| refuse(".", &error))?;
    build(parsed).map_err(|(field, reason)| SchemaError { file: file.into(), field, reason })
}

fn build(file: SchemaFile) -> Result<Plan, Fault> {
    check_name("event_type", &file.event_type, "a-z, 0-9 and _, a letter first, at most 64 characters", |name| {
        name.len() <= 64
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    })?;
    check_name("version", &file.version, "MODEL-REVISION-ADDITION, for example 1-0-0", |version| {
        let parts: Vec<_> = version.split('-').collect();
        parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok())
    })?;
    for (field, name) in [("table.dataset", &file.table.dataset), ("table.name", &file.table.name)] {
        check_name(field, name, "letters, digits and _, at most 1024 characters", |name| {
            !name.is_empty()
                && name.len() <= 1024
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })?;
    }
    if file.columns.is_empty() {
        return Err(("columns".into(), "a table needs at least one column".into()));
    }

    let mut columns = columns(&file.columns, "columns", 1)?;
    let own_columns = columns.len();
    let streaming = matches!(file.ingest, Ingest::Public | Ingest::Stream);
    let system = if streaming { Some(add_system_columns(&mut columns)?) } else { None };
    let enrichments = enrichments(&file.enrichments, &mut columns, own_columns)?;
    let table = table(file.table, &columns[..own_columns])?;
    let identity = identity(file.identity, system, &columns)?;

    let aliases = aliases(file.aliases, &columns[..own_columns])?;
    let event_names = names(&columns, |column| column.fill == Fill::Event || column.name == "event_id");
    let event_keys = KeyTable::build(event_names.into_iter().chain(aliases)).map_err(two_columns)?;
    let row_names = columns.iter().enumerate().map(|(index, column)| (column.name.clone(), index));
    let row_keys = KeyTable::build(row_names.clone()).map_err(two_columns)?;
    let partition = table.partition.map(|partition| partition.column);
    let head = [identity, partition, system.map(|system| system.received_at), system.map(|system| system.fingerprint)];
    let head_keys =
        KeyTable::build(row_names.filter(|(_, index)| head.contains(&Some(*index)))).map_err(two_columns)?;

    let accepts = Window::default();
    let days = |days: Option<u32>, default| days.map_or(default, |days| i64::from(days) * DAY);
    Ok(Plan {
        event_type: file.event_type,
        version: file.version,
        description: file.description,
        ingest: file.ingest,
        table,
        accepts: Window {
            past: days(file.accepts.past_days, accepts.past),
            future: days(file.accepts.future_days, accepts.future),
        },
        content: content(&columns, &enrichments),
        enrichments,
        columns,
        own_columns,
        system,
        identity,
        event_keys,
        row_keys,
        head_keys,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn two_columns(name: String) -> Fault {
    (format!("columns.{name}"), "two columns would answer to this key (snake_case, camelCase or an alias)".into())
}

fn check_name(field: &str, value: &str, expected: &str, ok: impl Fn(&str) -> bool) -> Result<(), Fault> {
    if ok(value) { Ok(()) } else { Err((field.into(), format!("`{value}` is not allowed; expected {expected}"))) }
}

fn columns(files: &[Json], path: &str, depth: usize) -> Result<Vec<Column>, Fault> {
    if depth > MAX_DEPTH {
        return Err((path.into(), format!("records nest at most {MAX_DEPTH} deep")));
    }
    let mut columns: Vec<Column> = Vec::with_capacity(files.len());
    for (index, json) in files.iter().enumerate() {
        let named = json.get("name").and_then(Json::as_str);
        let path = named.map_or_else(|| format!("{path}[{index}]"), |name| format!("{path}.{name}"));
        let file = ColumnFile::deserialize(json).map_err(|error| (path.clone(), error.to_string()))?;
        let column = column(file, &path, depth)?;
        if columns.iter().any(|known| known.name.eq_ignore_ascii_case(&column.name)) {
            return Err((path, "a column of this name stands before (BigQuery ignores case)".into()));
        }
        columns.push(column);
    }
    Ok(columns)
}

fn column(file: ColumnFile, path: &str, depth: usize) -> Result<Column, Fault> {
    check_name(path, &file.name, "a letter or _ first, then letters, digits and _, at most 300 characters", |name| {
        name.len() <= 300
            && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })?;
    let is_record = matches!(file.kind.to_ascii_uppercase().as_str(), "RECORD" | "STRUCT");
    let kind = match (is_record, file.fields) {
        (false, None) => scalar(&file.kind).map_err(|reason| (path.to_string(), reason))?,
        (true, Some(fields)) if !fields.is_empty() => {
            let columns = columns(&fields, path, depth + 1)?;
            let keys = KeyTable::build(names(&columns, |_| true)).map_err(two_columns)?;
            Kind::Record(Fields { columns, keys })
        }
        (true, _) => return Err((path.into(), "a RECORD needs `fields`".into())),
        (false, Some(_)) => return Err((path.into(), "only a RECORD has `fields`".into())),
    };
    let max_length = match file.max_length {
        None => None,
        Some(given) => Some(max_length(&given, &kind).map_err(|reason| (format!("{path}.maxLength"), reason))?),
    };
    let max_elements = match file.max_elements {
        None => MAX_ELEMENTS,
        Some(1..) if file.mode != Mode::Repeated => {
            return Err((format!("{path}.maxElements"), "only a REPEATED column has maxElements".into()));
        }
        Some(0) => return Err((format!("{path}.maxElements"), "`0` is not a whole number over 0".into())),
        Some(given) => given,
    };
    Ok(Column {
        name: file.name,
        kind,
        mode: file.mode,
        max_length,
        max_elements,
        description: file.description,
        fill: Fill::Event,
    })
}

fn scalar(name: &str) -> Result<Kind, String> {
    Ok(match name.to_ascii_uppercase().as_str() {
        "STRING" => Kind::String,
        "BYTES" => Kind::Bytes,
        "INTEGER" | "INT64" => Kind::Integer,
        "FLOAT" | "FLOAT64" => Kind::Float,
        "NUMERIC" | "DECIMAL" => Kind::Numeric,
        "BIGNUMERIC" | "BIGDECIMAL" => Kind::BigNumeric,
        "BOOLEAN" | "BOOL" => Kind::Boolean,
        "TIMESTAMP" => Kind::Timestamp,
        "DATE" => Kind::Date,
        "DATETIME" => Kind::DateTime,
        "TIME" => Kind::Time,
        "JSON" => Kind::Json,
        _ => {
            return Err(format!(
                "type `{name}` is not supported; use STRING, BYTES, INTEGER, FLOAT, NUMERIC, BIGNUMERIC, BOOLEAN, \
                 TIMESTAMP, DATE, DATETIME, TIME, JSON or RECORD"
            ));
        }
    })
}

/// BigQuery prints `maxLength` as text (`"40"`); a number is as good.
fn max_length(given: &Json, kind: &Kind) -> Result<usize, String> {
    if !matches!(kind, Kind::String | Kind::Bytes) {
        return Err("only STRING and BYTES have a maxLength".into());
    }
    let number = given.as_u64().or_else(|| given.as_str().and_then(|text| text.parse().ok()));
    match number.and_then(|number| usize::try_from(number).ok()) {
        Some(number) if number > 0 => Ok(number),
        _ => Err(format!("`{given}` is not a whole number over 0")),
    }
}

/// A key table's names for the columns that `wanted` picks: each by its own name and in camelCase.
fn names(columns: &[Column], wanted: impl Fn(&Column) -> bool) -> Vec<(String, usize)> {
    columns
        .iter()
        .enumerate()
        .filter(|(_, column)| wanted(column))
        .flat_map(|(index, column)| [(column.name.clone(), index), (camel_case(&column.name), index)])
        .collect()
}

fn add_system_columns(columns: &mut Vec<Column>) -> Result<System, Fault> {
    let first = columns.len();
    for (name, kind, description) in SYSTEM_COLUMNS {
        if columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)) {
            return Err((format!("columns.{name}"), "the name belongs to a system column of streaming tables".into()));
        }
        columns.push(Column {
            name: name.into(),
            kind: scalar(kind).map_err(|reason| (name.to_string(), reason))?,
            mode: Mode::Nullable,
            max_length: None,
            max_elements: MAX_ELEMENTS,
            description: Some(description.into()),
            fill: Fill::System,
        });
    }
    Ok(System {
        event_id: first,
        received_at: first + 1,
        loaded_at: first + 2,
        schema_version: first + 3,
        fingerprint: first + 4,
    })
}

fn content(columns: &[Column], enrichments: &[Enrich]) -> Vec<usize> {
    let is_address =
        |index| enrichments.iter().any(|step| step.from == index && enrich::ENRICHMENTS[step.enrichment].reads_address);
    let of_event = columns.iter().enumerate().filter(|(_, column)| column.fill == Fill::Event);
    of_event.map(|(index, _)| index).filter(|index| !is_address(*index)).collect()
}

fn enrichments(files: &[EnrichFile], columns: &mut [Column], own: usize) -> Result<Vec<Enrich>, Fault> {
    let mut steps = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        let path = format!("enrichments[{index}]");
        let Some(enrichment) = enrich::ENRICHMENTS.iter().position(|known| known.name == file.enrichment) else {
            let known: Vec<_> = enrich::ENRICHMENTS.iter().map(|kind| kind.name).collect();
            return Err((path, format!("no enrichment `{}`; known: {}", file.enrichment, known.join(", "))));
        };
        let kind = &enrich::ENRICHMENTS[enrichment];
        let string_column = |name: &str| {
            columns[..own]
                .iter()
                .position(|column| column.name == name && column.kind == Kind::String && column.mode != Mode::Repeated)
                .ok_or_else(|| (path.clone(), format!("`{name}` is not a STRING column of this schema")))
        };
        let from = string_column(&file.from)?;
        let mut into = vec![None; kind.outputs.len()];
        for (output, column) in &file.into {
            let Some(at) = kind.outputs.iter().position(|known| known == output) else {
                let known = kind.outputs.join(", ");
                return Err((path, format!("`{}` has no output `{output}`; known: {known}", kind.name)));
            };
            into[at] = Some(string_column(column)?);
        }
        for column in into.iter().flatten() {
            columns[*column].fill = Fill::Enrichment;
        }
        steps.push(Enrich { enrichment, from, into });
    }
    Ok(steps)
}

fn table(file: TableFile, own: &[Column]) -> Result<Table, Fault> {
    let partition = match file.time_partitioning {
        None => None,
        Some(given) => Some(partition(&given, own)?),
    };
    if file.clustering.len() > MAX_CLUSTERING {
        return Err(("table.clustering".into(), format!("at most {MAX_CLUSTERING} columns")));
    }
    let mut clustering = Vec::with_capacity(file.clustering.len());
    for name in &file.clustering {
        let found = own.iter().position(|column| column.name == *name && can_cluster(column));
        clustering.push(found.ok_or_else(|| {
            let reason = format!("`{name}` is not a column of this schema that a table can be clustered by");
            ("table.clustering".to_string(), reason)
        })?);
    }
    if file.require_partition_filter && partition.is_none() {
        return Err((
            "table.require_partition_filter".into(),
            "a table without partitions has nothing to filter".into(),
        ));
    }
    Ok(Table {
        dataset: file.dataset,
        name: file.name,
        partition,
        require_partition_filter: file.require_partition_filter,
        clustering,
    })
}

fn partition(file: &PartitionFile, own: &[Column]) -> Result<Partition, Fault> {
    let path = "table.time_partitioning.field";
    let Some(column) = own.iter().position(|column| column.name == file.field) else {
        return Err((path.into(), format!("`{}` is not a column of this schema", file.field)));
    };
    let fits = match own[column].kind {
        Kind::Timestamp | Kind::DateTime => true,
        Kind::Date => file.granularity != Granularity::Hour,
        _ => false,
    };
    if !fits || own[column].mode == Mode::Repeated {
        let reason = format!("`{}` must be one TIMESTAMP, DATETIME or (not by hour) DATE", file.field);
        return Err((path.into(), reason));
    }
    Ok(Partition { column, granularity: file.granularity })
}

fn can_cluster(column: &Column) -> bool {
    column.mode != Mode::Repeated
        && !matches!(column.kind, Kind::Record(_) | Kind::Json | Kind::Float | Kind::Bytes | Kind::Time)
}

fn identity(given: Option<String>, system: Option<System>, columns: &[Column]) -> Result<Option<usize>, Fault> {
    let Some(name) = given else {
        return Ok(system.map(|system| system.event_id));
    };
    let found = columns.iter().position(|column| column.name == name && column.kind == Kind::String);
    match (found, system) {
        (Some(column), None) => Ok(Some(column)),
        (_, Some(_)) => Err(("identity".into(), "a streaming table's identity is its event_id".into())),
        (None, None) => Err(("identity".into(), format!("`{name}` is not a STRING column of this schema"))),
    }
}

fn aliases(given: BTreeMap<String, Vec<String>>, own: &[Column]) -> Result<Vec<(String, usize)>, Fault> {
    let mut pairs = Vec::new();
    for (name, others) in given {
        let found = own.iter().position(|column| column.name == name && column.fill == Fill::Event);
        let Some(column) = found else {
            return Err((format!("aliases.{name}"), "not a column that events fill".into()));
        };
        pairs.extend(others.into_iter().map(|other| (other, column)));
    }
    Ok(pairs)
}
