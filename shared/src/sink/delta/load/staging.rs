//! Rows on their way into data files: collected by partition, encoded piece by piece, stored when a file is large enough.
//!
//! A file grows in memory, compressed, so that it is written once and many partitions cost no open files. Rows stand in
//! it in the order in which they came and not by the clustering columns: a sort costs about as much as the encoding,
//! and keys that are spread over all files of a run let nobody skip one. A merge sorts them.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use deltalake::kernel::Add;

use super::super::DeltaError;
use super::super::arrow::RowsBuilder;
use super::super::data_file::{Growing, Part};
use super::super::files::{Files, NewFile, STAGING};
use super::super::layout::{Fault, stats_columns};
use super::super::log;
use crate::clock::{Clock, Micros};
use crate::row::Value;
use crate::schema::Plan;

/// A file of this many bytes is stored.
const FILE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes that the growing files of a load take at most, about; past it the largest are stored.
const GROWING_BYTES: usize = 96 * 1024 * 1024;

/// What a load has so far.
pub(super) struct Staging {
    run: String,
    clock: Clock,
    tables: Vec<TableStaging>,
    held: usize,
}

struct TableStaging {
    plan: Arc<Plan>,
    files: Arc<dyn Files>,
    stats_columns: Vec<String>,
    parts: BTreeMap<Part, PartStaging>,
    staged: Vec<Add>,
}

struct PartStaging {
    rows: RowsBuilder,
    file: Option<Growing>,
}

impl Staging {
    pub(super) fn new(run: &str, clock: Clock) -> Self {
        Self { run: run.into(), clock, tables: Vec::new(), held: 0 }
    }

    /// Goes on with the next table, of which `staged` is there already.
    pub(super) fn table(&mut self, plan: &Arc<Plan>, files: Arc<dyn Files>, staged: Vec<Add>) {
        let (plan, stats_columns) = (Arc::clone(plan), stats_columns(plan));
        self.tables.push(TableStaging { plan, files, stats_columns, parts: BTreeMap::new(), staged });
    }

    pub(super) fn add(&mut self, table: usize, values: &[Value<'_>]) {
        let Some(table) = self.tables.get_mut(table) else { return };
        let plan = &table.plan;
        let empty = || PartStaging { rows: RowsBuilder::new(&plan.columns, 0), file: None };
        table.parts.entry(Part::of(plan, values)).or_insert_with(empty).rows.push(values);
        self.held += values.iter().map(size).sum::<usize>();
    }

    /// Bytes of rows that are not encoded yet, about.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Encodes the rows that are held, and stores files that are large enough.
    pub(super) fn encode(&mut self) -> Result<(), DeltaError> {
        self.held = 0;
        let (run, now) = (&self.run, self.clock.now());
        let mut growing = 0;
        for table in &mut self.tables {
            growing += table.encode(run, now).map_err(|fault| table.failed(fault))?;
        }
        while growing > GROWING_BYTES {
            let largest = |table: &&mut TableStaging| table.largest().map_or(0, |(_, size)| size);
            let Some(table) = self.tables.iter_mut().max_by_key(largest) else { break };
            let Some((part, size)) = table.largest() else { break };
            table.store(part, run, now).map_err(|fault| table.failed(fault))?;
            growing -= size;
        }
        Ok(())
    }

    /// Encodes the rest and stores every file.
    pub(super) fn store(&mut self) -> Result<(), DeltaError> {
        self.encode()?;
        let (run, now) = (&self.run, self.clock.now());
        for table in &mut self.tables {
            for part in table.parts.keys().copied().collect::<Vec<_>>() {
                table.store(part, run, now).map_err(|fault| table.failed(fault))?;
            }
            table.parts.clear();
        }
        Ok(())
    }

    /// The stored files of each table, by its full name.
    pub(super) fn staged(&self) -> impl Iterator<Item = (String, &[Add])> {
        self.tables.iter().map(|table| (table.plan.table.full_name(), table.staged.as_slice()))
    }

    /// The stored files of each table, in the order of the run.
    pub(super) fn into_staged(self) -> impl Iterator<Item = Vec<Add>> {
        self.tables.into_iter().map(|table| table.staged)
    }
}

impl TableStaging {
    /// Answers the bytes of its growing files.
    fn encode(&mut self, run: &str, now: Micros) -> Result<usize, Fault> {
        let mut full = Vec::new();
        let mut growing = 0;
        for (part, staging) in &mut self.parts {
            if !staging.rows.is_empty() {
                let batch = staging.rows.finish().map_err(io::Error::other)?;
                let mut file = match staging.file.take() {
                    Some(file) => file,
                    None => Growing::new(*part, batch.schema(), &self.stats_columns).map_err(io::Error::other)?,
                };
                file.write(&batch).map_err(io::Error::other)?;
                staging.file = Some(file);
            }
            match staging.file.as_ref().map_or(0, Growing::size) {
                size if size >= FILE_BYTES => full.push(*part),
                size => growing += size,
            }
        }
        full.into_iter().try_for_each(|part| self.store(part, run, now))?;
        Ok(growing)
    }

    fn largest(&self) -> Option<(Part, usize)> {
        let sizes = self.parts.iter().filter_map(|(part, staging)| Some((*part, staging.file.as_ref()?.size())));
        sizes.max_by_key(|(_, size)| *size)
    }

    /// Stores the file of a partition, if it has one.
    fn store(&mut self, part: Part, run: &str, now: Micros) -> Result<(), Fault> {
        let Some(file) = self.parts.get_mut(&part).and_then(|staging| staging.file.take()) else { return Ok(()) };
        let (file, add) = log::new_file(file.finish().map_err(io::Error::other)?, true, now);
        self.files.store(vec![NewFile { path: staged_path(run, &add.path), bytes: file.bytes }])?;
        self.staged.push(add);
        Ok(())
    }

    fn failed(&self, fault: Fault) -> DeltaError {
        fault.into_delta(&self.plan.table.full_name())
    }
}

/// Bytes of a value in memory, about.
fn size(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) => size_of::<i32>() + text.len(),
        Value::BigNumeric(text) => size_of::<i32>() + text.len(),
        Value::Bytes(bytes) => size_of::<i32>() + bytes.len(),
        Value::Record(values) | Value::Repeated(values) => size_of::<i32>() + values.iter().map(size).sum::<usize>(),
        _ => size_of::<i64>(),
    }
}

/// Where a file of a run waits that is to have the path `path`.
pub(super) fn staged_path(run: &str, path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    format!("{STAGING}/{run}.{name}")
}

/// Where the files of a run wait.
pub(super) fn paths(run: &str, files: &[Add]) -> HashSet<String> {
    files.iter().map(|file| staged_path(run, &file.path)).collect()
}
