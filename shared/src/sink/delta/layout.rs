//! The table on disk as its plan wants it: created, and widened when the schema gains columns.

use std::sync::Arc;

use deltalake::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use deltalake::arrow::error::ArrowError;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake::kernel::{Action, Metadata, MetadataExt as _, Protocol, StructType, new_metadata};
use serde_json::json;

use super::arrow::arrow_schema;
use super::data_file::PARTITION_DATE;
use super::files::Files;
use super::log::{self, CommitError, State};
use super::{DeltaError, Options};
use crate::clock::{Micros, SECOND};
use crate::schema::Plan;

/// What can go wrong between rows and a version.
#[derive(Debug)]
pub(super) enum Fault {
    Io(std::io::Error),
    Schema(String),
    Taken,
}

impl Fault {
    pub(super) fn into_delta(self, table: &str) -> DeltaError {
        match self {
            Self::Io(source) => DeltaError::Io { place: table.into(), doing: "writing", source },
            Self::Schema(reason) => DeltaError::Schema { table: table.into(), reason },
            Self::Taken => DeltaError::Contended { table: table.into() },
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<CommitError> for Fault {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Taken => Self::Taken,
            CommitError::Io(error) => Self::Io(error),
        }
    }
}

/// The columns that queries skip files by: partition and clustering, and when rows came.
pub(super) fn stats_columns(plan: &Plan) -> Vec<String> {
    let partition = plan.table.partition.map(|partition| partition.column);
    let system = plan.system.map(|system| [system.received_at, system.loaded_at]);
    let mut columns: Vec<usize> = partition.into_iter().collect();
    columns.extend(&plan.table.clustering);
    columns.extend(system.into_iter().flatten());
    columns.dedup();
    columns.iter().filter_map(|&index| Some(plan.columns.get(index)?.name.clone())).collect()
}

/// Writes version 0: columns, partitioning and what other engines must know to keep the table as it is.
pub(super) fn create(table: &dyn Files, plan: &Plan, options: &Options, now: Micros) -> Result<State, Fault> {
    let (protocol, metadata) = definition(plan, options)?;
    table.prepare()?;
    let actions = vec![Action::Protocol(protocol), Action::Metadata(metadata.clone())];
    log::commit(table, 0, "CREATE TABLE", now, actions)?;
    Ok(State::new(metadata, arrow_schema(plan)))
}

/// What makes the table on disk the plan's, whatever it was before; together with the removal of all files.
pub(super) fn remake(plan: &Plan, state: &State, options: &Options) -> Result<Vec<Action>, Fault> {
    let (protocol, metadata) = definition(plan, options)?;
    let mut actions = vec![Action::Metadata(metadata)];
    // Never back to a lower one: former versions need it.
    if has_local_time(arrow_schema(plan).fields()) && !has_local_time(state.schema.fields()) {
        actions.insert(0, Action::Protocol(protocol));
    }
    Ok(actions)
}

fn definition(plan: &Plan, options: &Options) -> Result<(Protocol, Metadata), Fault> {
    if plan.columns.iter().any(|column| column.name.eq_ignore_ascii_case(PARTITION_DATE)) {
        return Err(Fault::Schema(format!("`{PARTITION_DATE}` is the name of a hidden column")));
    }
    let schema = arrow_schema(plan);
    let partitioned = plan.table.partition.is_some();
    let columns = delta_schema(&schema, partitioned).map_err(Fault::Schema)?;
    let seconds = |micros: Micros| format!("interval {} seconds", micros / SECOND);
    let settings = [
        ("delta.dataSkippingStatsColumns", stats_columns(plan).join(",")),
        ("delta.deletedFileRetentionDuration", seconds(options.file_retention)),
        ("delta.logRetentionDuration", seconds(options.log_retention)),
    ];
    let metadata = new_metadata(&columns, partitioned.then_some(PARTITION_DATE), settings)
        .and_then(|metadata| metadata.with_name(plan.table.name.clone()))
        .and_then(|metadata| metadata.with_description(plan.description.clone().unwrap_or_default()))
        .map_err(|error| Fault::Schema(error.to_string()))?;
    Ok((protocol(&schema)?, metadata))
}

/// Adds the plan's new columns to the table, if there are any.
pub(super) fn widen(table: &dyn Files, plan: &Plan, mut state: State, now: Micros) -> Result<State, Fault> {
    let partitioned = state.metadata.partition_columns() == [PARTITION_DATE.to_string()];
    if partitioned != plan.table.partition.is_some() || state.metadata.partition_columns().len() > 1 {
        let reason = "the table on disk is partitioned in another way; move its folder away or name another table";
        return Err(Fault::Schema(reason.into()));
    }
    let wanted = arrow_schema(plan);
    let fields = merge_fields(state.schema.fields(), wanted.fields(), "").map_err(Fault::Schema)?;
    if same_shape(&fields, state.schema.fields()) {
        return Ok(state);
    }
    let schema = Arc::new(Schema::new(fields));
    let columns = delta_schema(&schema, partitioned).map_err(Fault::Schema)?;
    let skip_by = stats_columns(plan).join(",");
    let metadata = (state.metadata.clone().with_schema(&columns))
        .and_then(|metadata| metadata.add_config_key("delta.dataSkippingStatsColumns".into(), skip_by))
        .map_err(|error| Fault::Schema(error.to_string()))?;
    let mut actions = vec![Action::Metadata(metadata.clone())];
    if has_local_time(schema.fields()) && !has_local_time(state.schema.fields()) {
        actions.insert(0, Action::Protocol(protocol(&schema)?));
    }
    log::commit(table, state.version + 1, "ADD COLUMNS", now, actions)?;
    state.version += 1;
    state.metadata = metadata;
    state.schema = schema;
    Ok(state)
}

fn delta_schema(schema: &SchemaRef, partitioned: bool) -> Result<StructType, String> {
    let mut fields: Vec<FieldRef> = schema.fields().iter().cloned().collect();
    if partitioned {
        fields.push(Arc::new(Field::new(PARTITION_DATE, DataType::Date32, true)));
    }
    (&Schema::new(fields)).try_into_kernel().map_err(|error: ArrowError| error.to_string())
}

/// Version 1/2, which every engine knows; a time without a zone needs the feature of that name.
fn protocol(schema: &SchemaRef) -> Result<Protocol, Fault> {
    let local_time = json!({"minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["timestampNtz"], "writerFeatures": ["timestampNtz"]});
    let plain = json!({"minReaderVersion": 1, "minWriterVersion": 2});
    let protocol = if has_local_time(schema.fields()) { local_time } else { plain };
    serde_json::from_value(protocol).map_err(|error| Fault::Schema(error.to_string()))
}

fn has_local_time(fields: &Fields) -> bool {
    fn within(data_type: &DataType) -> bool {
        match data_type {
            DataType::Timestamp(_, None) => true,
            DataType::Struct(fields) => has_local_time(fields),
            DataType::List(element) => within(element.data_type()),
            _ => false,
        }
    }
    fields.iter().any(|field| within(field.data_type()))
}

/// The fields on disk with those wanted beside them. What only one of them has may be null from now on.
fn merge_fields(on_disk: &Fields, wanted: &Fields, path: &str) -> Result<Fields, String> {
    let mut merged: Vec<FieldRef> = Vec::with_capacity(wanted.len());
    for old in on_disk {
        let path = format!("{path}{}", old.name());
        match wanted.iter().find(|new| new.name() == old.name()) {
            None => merged.push(Arc::new(old.as_ref().clone().with_nullable(true))),
            Some(new) => {
                let data_type = merge_types(old.data_type(), new.data_type(), &path)?;
                let nullable = old.is_nullable() || new.is_nullable();
                merged.push(Arc::new(new.as_ref().clone().with_data_type(data_type).with_nullable(nullable)));
            }
        }
    }
    for new in wanted {
        if !on_disk.iter().any(|old| old.name() == new.name()) {
            merged.push(Arc::new(new.as_ref().clone().with_nullable(true)));
        }
    }
    Ok(merged.into())
}

fn merge_types(old: &DataType, new: &DataType, path: &str) -> Result<DataType, String> {
    match (old, new) {
        (DataType::Struct(old), DataType::Struct(new)) => {
            Ok(DataType::Struct(merge_fields(old, new, &format!("{path}."))?))
        }
        (DataType::List(old), DataType::List(new)) => {
            let element = merge_types(old.data_type(), new.data_type(), path)?;
            Ok(DataType::List(Arc::new(new.as_ref().clone().with_data_type(element))))
        }
        (old, new) if old == new => Ok(new.clone()),
        (old, new) => Err(format!(
            "column {path} is {old} on disk and {new} in the schema; move the table's folder away or name another table"
        )),
    }
}

/// Whether two sets of fields differ in no name, type or nullability; descriptions do not count.
fn same_shape(a: &Fields, b: &Fields) -> bool {
    fn same_type(a: &DataType, b: &DataType) -> bool {
        match (a, b) {
            (DataType::Struct(a), DataType::Struct(b)) => same_shape(a, b),
            (DataType::List(a), DataType::List(b)) => same_type(a.data_type(), b.data_type()),
            (a, b) => a == b,
        }
    }
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.name() == b.name() && a.is_nullable() == b.is_nullable() && same_type(a.data_type(), b.data_type())
        })
}
