//! One table: created on demand, grown by appends, widened when its schema gains columns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use deltalake::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use deltalake::arrow::error::ArrowError;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake::kernel::{Action, Add, MetadataExt as _, Protocol, StructType, new_metadata};
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::arrow::{RowsBuilder, arrow_schema};
use super::data_file::{self, Encoded, PARTITION_DATE, Part};
use super::log::{self, CommitError, State};
use super::{Batch, DeltaError, Options, Outcome};
use crate::clock::{Clock, DAY, Micros, SECOND};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::row::{Row, Value};
use crate::schema::Plan;

/// How often a commit gives way to another engine's before the append is handed back.
const COMMIT_ATTEMPTS: usize = 5;

/// One table of the warehouse and the right to write it.
#[derive(Debug)]
pub(super) struct Table {
    /// `dataset.table`.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) clock: Clock,
    pub(super) options: Options,
    pub(super) slot: Arc<Mutex<Slot>>,
    /// Whether a task looks after the table already.
    pub(super) in_care: AtomicBool,
}

/// What the writer knows of the table; its lock makes appends to one table take turns.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Empty before the first use and after another engine's commit.
    pub(super) state: Option<State>,
    /// The plan that the table is known to hold.
    pub(super) plan: Option<Arc<Plan>>,
}

/// Rows on disk that no version holds yet.
struct Staged {
    outcomes: Vec<Outcome>,
    files: Vec<(Part, Add, u64)>,
}

impl Table {
    pub(super) fn new(root: &Path, plan: &Plan, clock: Clock, options: Options) -> Self {
        Self {
            name: plan.table.full_name(),
            folder: root.join(&plan.table.dataset).join(&plan.table.name),
            clock,
            options,
            slot: Arc::default(),
            in_care: AtomicBool::new(false),
        }
    }

    /// Makes sure that the table exists and has the plan's columns.
    pub(super) async fn ensure(&self, plan: &Arc<Plan>) -> Result<(), DeltaError> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if slot.state.is_none() {
            slot.plan = None;
            slot.state = State::load(&self.folder, self.clock.now()).await.map_err(|error| self.unreadable(error))?;
        }
        if slot.state.is_some() && slot.plan.as_ref().is_some_and(|known| Arc::ptr_eq(known, plan) || known == plan) {
            return Ok(());
        }
        let (table, plan, now) = (self.folder.clone(), Arc::clone(plan), self.clock.now());
        let options = self.options.clone();
        let name = self.name.clone();
        blocking(move || {
            let state = match slot.state.take() {
                None => create(&table, &plan, &options, now),
                Some(state) => widen(&table, &plan, state, now),
            };
            slot.state = Some(state.map_err(|error| error.into_delta(&name))?);
            slot.plan = Some(plan);
            Ok(())
        })
        .await?
    }

    /// Appends the rows of `batch` as one version; nothing of it is visible unless all of it is.
    pub(super) async fn append(&self, batch: &Batch) -> Result<Vec<Outcome>, DeltaError> {
        self.ensure(&batch.plan).await?;
        let (table, rows, now) = (self.folder.clone(), batch.clone(), self.clock.now());
        let Staged { outcomes, files } =
            blocking(move || stage(&table, &rows, now)).await?.map_err(|error| error.into_delta(&self.name))?;
        if files.is_empty() {
            return Ok(outcomes);
        }
        let actions = files.iter().map(|(_, add, _)| Action::Add(add.clone())).collect();
        self.commit("WRITE", actions, move |state, now| {
            for (part, add, rows) in &files {
                state.add(*part, add, *rows, now);
            }
        })
        .await?;
        Ok(outcomes)
    }

    /// Writes `actions` as the next version and lets `apply` take them over into the state.
    ///
    /// Runs to its end even when the caller's future is dropped halfway.
    pub(super) async fn commit(
        &self,
        operation: &'static str,
        actions: Vec<Action>,
        apply: impl Fn(&mut State, Micros) + Clone + Send + 'static,
    ) -> Result<(), DeltaError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let mut slot = self.current().await?;
            let (table, actions, now, apply) = (self.folder.clone(), actions.clone(), self.clock.now(), apply.clone());
            let committed = blocking(move || {
                let Some(state) = slot.state.as_mut() else { return Err(CommitError::Taken) };
                let committed = log::commit(&table, state.version + 1, operation, now, actions);
                match committed {
                    Ok(()) => {
                        state.version += 1;
                        state.since_checkpoint += 1;
                        apply(state, now);
                    }
                    Err(_) => slot.state = None,
                }
                committed
            })
            .await?;
            match committed {
                Ok(()) => return Ok(()),
                Err(CommitError::Taken) => {}
                Err(CommitError::Io(error)) => return Err(self.io("writing the log", error)),
            }
        }
        Err(DeltaError::Contended { table: self.name.clone() })
    }

    /// The state of the newest version, locked; read again where another engine has written.
    async fn current(&self) -> Result<OwnedMutexGuard<Slot>, DeltaError> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if slot.state.is_none() {
            slot.plan = None;
            slot.state = State::load(&self.folder, self.clock.now()).await.map_err(|error| self.unreadable(error))?;
        }
        Ok(slot)
    }

    pub(super) fn io(&self, doing: &'static str, source: std::io::Error) -> DeltaError {
        DeltaError::Io { place: self.name.clone(), doing, source }
    }

    pub(super) fn unreadable(&self, source: deltalake::DeltaTableError) -> DeltaError {
        DeltaError::Table { table: self.name.clone(), source: Box::new(source) }
    }
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DeltaError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| DeltaError::Interrupted(error.to_string()))
}

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

/// Decodes, sorts, encodes and stores the rows of `batch`.
fn stage(table: &Path, batch: &Batch, now: Micros) -> Result<Staged, Fault> {
    let (outcomes, encoded) = encode(batch).map_err(|error| Fault::Io(std::io::Error::other(error)))?;
    let mut files = Vec::with_capacity(encoded.len());
    for data in &encoded {
        files.push((data.part, log::store(table, data, true, now)?, data.rows as u64));
    }
    Ok(Staged { outcomes, files })
}

fn encode(batch: &Batch) -> Result<(Vec<Outcome>, Vec<Encoded>), deltalake::parquet::errors::ParquetError> {
    let plan = &batch.plan;
    let mut outcomes = Vec::with_capacity(batch.rows.len());
    let mut parts = Vec::with_capacity(batch.rows.len());
    let mut builder = RowsBuilder::new(&plan.columns, batch.rows.len());
    let mut row = Row::default();
    for line in &batch.rows {
        if let Some(reason) = fault_of(plan, line, &mut row) {
            outcomes.push(Outcome::Poison(reason));
            continue;
        }
        if let Some(system) = plan.system {
            row.set(system.loaded_at, Value::Timestamp(batch.loaded_at));
        }
        parts.push(part_of(plan, &row));
        builder.push(&row.values);
        outcomes.push(Outcome::Done);
    }
    let columns = stats_columns(plan);
    let encoded = data_file::partitions(&builder.finish()?, &parts, &plan.table.clustering)?
        .iter()
        .map(|(part, rows)| data_file::encode(*part, rows, &columns))
        .collect::<Result<_, _>>()?;
    Ok((outcomes, encoded))
}

fn fault_of<'a>(plan: &Plan, line: &'a [u8], row: &mut Row<'a>) -> Option<Reason> {
    match decode::row(plan, line, row) {
        Ok(()) => reason_of(&row.problems),
        Err(problem) => Some(Reason::from(&problem)),
    }
}

fn part_of(plan: &Plan, row: &Row<'_>) -> Part {
    let Some(partition) = plan.table.partition else { return Part::Whole };
    let time = row.values.get(partition.column).and_then(Value::partition_time);
    Part::Date(time.and_then(|time| i32::try_from(time.div_euclid(DAY)).ok()))
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
fn create(table: &Path, plan: &Plan, options: &Options, now: Micros) -> Result<State, Fault> {
    if plan.columns.iter().any(|column| column.name.eq_ignore_ascii_case(PARTITION_DATE)) {
        return Err(Fault::Schema(format!("`{PARTITION_DATE}` is the name of a hidden column")));
    }
    log::create_folder(&log::log_folder(table))?;
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
    let actions = vec![Action::Protocol(protocol(&schema)?), Action::Metadata(metadata.clone())];
    log::commit(table, 0, "CREATE TABLE", now, actions)?;
    Ok(State::new(metadata, schema))
}

/// Adds the plan's new columns to the table, if there are any.
fn widen(table: &Path, plan: &Plan, mut state: State, now: Micros) -> Result<State, Fault> {
    let partitioned = state.metadata.partition_columns() == &[PARTITION_DATE.to_string()];
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
