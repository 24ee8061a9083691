//! Rows on their way into data files: collected by partition, encoded piece by piece, stored when a file is large enough.
//!
//! A file grows in memory, compressed, so that it is written once and many partitions cost no open files. Rows stand in
//! it in the order in which they came and not by the clustering columns: pieces sorted by themselves would let nobody
//! skip anything, as statistics are those of whole files. A merge sorts them.

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

/// What a load keeps in memory; all in bytes, about.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Rows of a partition wait until they are as many: an encoder has a price of its own.
    piece: usize,
    /// A file of so many is stored.
    file: usize,
    /// What all growing files take; past it they are made small, and the largest stored.
    growing: usize,
}

const LIMITS: Limits = Limits { piece: 32 * 1024, file: 32 * 1024 * 1024, growing: 96 * 1024 * 1024 };

/// What a load has so far.
pub(super) struct Staging {
    run: String,
    clock: Clock,
    limits: Limits,
    tables: Vec<TableStaging>,
    /// Bytes of rows added since the last look.
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
    /// Bytes of `rows`, about.
    held: usize,
    file: Option<Growing>,
}

impl Staging {
    pub(super) fn new(run: &str, clock: Clock) -> Self {
        Self { run: run.into(), clock, limits: LIMITS, tables: Vec::new(), held: 0 }
    }

    /// Goes on with the next table, of which `staged` is there already.
    pub(super) fn table(&mut self, plan: &Arc<Plan>, files: Arc<dyn Files>, staged: Vec<Add>) {
        let (plan, stats_columns) = (Arc::clone(plan), stats_columns(plan));
        self.tables.push(TableStaging { plan, files, stats_columns, parts: BTreeMap::new(), staged });
    }

    pub(super) fn add(&mut self, table: usize, values: &[Value<'_>]) {
        let Some(table) = self.tables.get_mut(table) else { return };
        let plan = &table.plan;
        let empty = || PartStaging { rows: RowsBuilder::new(&plan.columns, 0), held: 0, file: None };
        let part = table.parts.entry(Part::of(plan, values)).or_insert_with(empty);
        part.rows.push(values);
        let bytes = values.iter().map(size).sum::<usize>();
        part.held += bytes;
        self.held += bytes;
    }

    /// Bytes of rows that were added since they were encoded last, about.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Encodes the rows that are held, but for small rests, and stores files that are large enough.
    pub(super) fn encode(&mut self) -> Result<(), DeltaError> {
        let Limits { piece, file, growing } = self.limits;
        self.held = 0;
        self.each_table(|table| table.encode(piece))?;
        self.store_files(file)?;
        if self.growing() > growing {
            self.each_table(TableStaging::seal)?;
            let mut bytes = file;
            while self.growing() > growing / 2 {
                bytes /= 2;
                self.store_files(bytes)?;
            }
        }
        Ok(())
    }

    /// Encodes the rest and stores every file.
    pub(super) fn store(&mut self) -> Result<(), DeltaError> {
        self.held = 0;
        self.each_table(|table| table.encode(0))?;
        self.store_files(0)
    }

    /// Stores the files of at least so many bytes.
    fn store_files(&mut self, bytes: usize) -> Result<(), DeltaError> {
        let (run, now) = (self.run.clone(), self.clock.now());
        self.each_table(|table| table.store(bytes, &run, now))
    }

    fn each_table(&mut self, work: impl Fn(&mut TableStaging) -> Result<(), Fault>) -> Result<(), DeltaError> {
        let each =
            |table: &mut TableStaging| work(table).map_err(|fault| fault.into_delta(&table.plan.table.full_name()));
        self.tables.iter_mut().try_for_each(each)
    }

    /// Bytes of files that are not stored yet.
    fn growing(&self) -> usize {
        self.tables
            .iter()
            .flat_map(|table| table.parts.values())
            .filter_map(|part| part.file.as_ref())
            .map(Growing::size)
            .sum()
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
    /// Encodes the rows of partitions that hold at least so many bytes.
    fn encode(&mut self, bytes: usize) -> Result<(), Fault> {
        for (part, staging) in &mut self.parts {
            if staging.rows.is_empty() || staging.held < bytes {
                continue;
            }
            staging.held = 0;
            let batch = staging.rows.finish().map_err(io::Error::other)?;
            let mut file = match staging.file.take() {
                Some(file) => file,
                None => Growing::new(*part, batch.schema(), &self.stats_columns).map_err(io::Error::other)?,
            };
            file.write(&batch).map_err(io::Error::other)?;
            staging.file = Some(file);
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Fault> {
        let mut files = self.parts.values_mut().filter_map(|staging| staging.file.as_mut());
        Ok(files.try_for_each(Growing::seal).map_err(io::Error::other)?)
    }

    /// Stores the files of at least so many bytes. A partition without rows is forgotten.
    fn store(&mut self, bytes: usize, run: &str, now: Micros) -> Result<(), Fault> {
        for staging in self.parts.values_mut() {
            let Some(file) = staging.file.take_if(|file| file.size() >= bytes) else { continue };
            let (file, add) = log::new_file(file.finish().map_err(io::Error::other)?, true, now);
            self.files.store(vec![NewFile { path: staged_path(run, &add.path), bytes: file.bytes }])?;
            self.staged.push(add);
        }
        self.parts.retain(|_, staging| staging.file.is_some() || !staging.rows.is_empty());
        Ok(())
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

#[cfg(test)]
mod tests {
    use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::schema::Registry;
    use crate::sink::delta::files::Place;

    /// Loads rows of 40 months, one after the other or by turns, and answers the rows of each file.
    fn stage(limits: Limits, is_sorted: bool) -> Vec<usize> {
        const ROWS: i64 = 4_000;
        let folder = tempfile::tempdir().unwrap();
        let plan = Arc::clone(Registry::built_in().unwrap().get("pageview_event").unwrap());
        let files = Place::Folder(folder.path().to_path_buf()).table("d", "t", None);
        let mut staging = Staging { limits, ..Staging::new("run", Clock::system()) };
        staging.table(&plan, Arc::clone(&files), Vec::new());
        for row in 0..ROWS {
            let month = if is_sorted { row / (ROWS / 40) } else { row % 40 };
            let key = format!("{row:064}");
            staging.add(0, &[Value::borrowed(&key), Value::Timestamp(month * 31 * crate::clock::DAY)]);
            if staging.held() > 20_000 {
                staging.encode().unwrap();
            }
        }
        staging.store().unwrap();
        let stored = files.staged_files().unwrap();
        let rows = |path: &String| {
            let file = ParquetRecordBatchReaderBuilder::try_new(files.read(path).unwrap()).unwrap();
            usize::try_from(file.metadata().file_metadata().num_rows()).unwrap()
        };
        let counts: Vec<_> = stored.iter().map(rows).collect();
        assert_eq!(counts.iter().sum::<usize>(), usize::try_from(ROWS).unwrap());
        let staged: Vec<_> = staging.into_staged().flatten().collect();
        assert_eq!(paths("run", &staged), stored.into_iter().collect());
        counts
    }

    #[test]
    fn a_partition_is_one_file_as_long_as_memory_allows() {
        for is_sorted in [true, false] {
            assert_eq!(stage(LIMITS, is_sorted), [100; 40]);
            assert_eq!(stage(Limits { piece: 1, ..LIMITS }, is_sorted), [100; 40]);
        }
    }

    #[test]
    fn many_partitions_do_not_take_more_memory_than_is_allowed() {
        let limits = Limits { piece: 1, file: 1 << 20, growing: 1 << 20 };
        for is_sorted in [true, false] {
            let files = stage(limits, is_sorted).len();
            assert!((40..400).contains(&files), "{files} files");
        }
        assert!(stage(Limits { growing: 0, ..limits }, false).len() > 400);
        assert!(stage(Limits { file: 4_000, ..limits }, true).len() > 40);
    }
}
