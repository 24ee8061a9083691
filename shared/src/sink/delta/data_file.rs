//! One append as Parquet: rows split by the date of the partition column, sorted by the clustering columns, with the
//! statistics that let a query skip the file.

use std::collections::HashMap;
use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, Date32Array, RecordBatch};
use deltalake::arrow::compute::{self, SortColumn};
use deltalake::arrow::datatypes::{DataType, Date32Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use deltalake::arrow::error::ArrowError;
use deltalake::parquet::arrow::ArrowWriter;
use deltalake::parquet::arrow::arrow_writer::ArrowWriterOptions;
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use serde_json::{Map, Value as Json, json};

use crate::clock::DAY;
use crate::decode::time;
use crate::row::Value;
use crate::schema::{Granularity, Plan};

/// The hidden column that tables are partitioned by: the date of the partition column, null where that is null; of
/// tables with a partition a month or a year the first date of that.
pub(super) const PARTITION_DATE: &str = "_partition_date";
/// How the Hive layout writes a null in a path.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";
/// Longest minimum and maximum of a text in the statistics, in characters, as Spark has it.
const STAT_CHARACTERS: usize = 32;
/// Rows of a piece of a merge.
const MERGE_ROWS: usize = 16 * 1024;

/// Which partition a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The table has no partitions.
    Whole,
    /// Days since 1970-01-01.
    Date(Option<i32>),
}

impl Part {
    /// Of a row of the plan's table.
    pub(super) fn of(plan: &Plan, values: &[Value<'_>]) -> Self {
        let Some(partition) = plan.table.partition else { return Self::Whole };
        let time = values.get(partition.column).and_then(Value::partition_time);
        let date = time.and_then(|time| i32::try_from(time.div_euclid(DAY)).ok());
        Self::Date(date.map(|date| first_date(date, partition.granularity)))
    }

    /// The folder of its files, relative to the table; empty for the table's own.
    pub(super) fn folder(self) -> String {
        match self {
            Self::Whole => String::new(),
            Self::Date(Some(days)) => format!("{PARTITION_DATE}={}", time::date_text(days)),
            Self::Date(None) => format!("{PARTITION_DATE}={NULL_FOLDER}"),
        }
    }

    /// `partitionValues` of the log.
    pub(super) fn values(self) -> HashMap<String, Option<String>> {
        match self {
            Self::Whole => HashMap::new(),
            Self::Date(days) => HashMap::from([(PARTITION_DATE.to_string(), days.map(time::date_text))]),
        }
    }

    /// From `partitionValues`.
    pub(super) fn from_values(values: &HashMap<String, Option<String>>) -> Self {
        match values.get(PARTITION_DATE) {
            None => Self::Whole,
            Some(text) => Self::Date(text.as_deref().and_then(|text| time::date(text).ok())),
        }
    }
}

/// The date that stands for all dates of a partition.
fn first_date(date: i32, granularity: Granularity) -> i32 {
    let (year, month, _) = time::civil_from_days(date);
    match granularity {
        Granularity::Hour | Granularity::Day => date,
        Granularity::Month => time::days_from_civil(year, month, 1),
        Granularity::Year => time::days_from_civil(year, 1, 1),
    }
}

/// A data file that is not on disk yet.
pub(super) struct Encoded {
    pub(super) part: Part,
    pub(super) rows: usize,
    pub(super) bytes: Vec<u8>,
    /// `stats` of the log.
    pub(super) stats: String,
}

/// Splits `batch` into partitions and sorts each by the columns `clustering`; `parts` has one entry a row.
pub(super) fn partitions(
    batch: &RecordBatch,
    parts: &[Part],
    clustering: &[usize],
) -> Result<Vec<(Part, RecordBatch)>, ArrowError> {
    let Some(&first) = parts.first() else { return Ok(Vec::new()) };
    if parts.iter().all(|part| *part == first) {
        return Ok(vec![(first, sorted(batch, None, clustering)?)]);
    }
    let dates: Date32Array = parts.iter().map(|part| if let Part::Date(days) = part { *days } else { None }).collect();
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(dates));
    let with_dates = sorted(batch, columns.last(), clustering)?;
    let mut ordered = parts.to_vec();
    // The order of `sorted`: nulls first, as `None` is less than `Some`.
    ordered.sort_unstable();
    let mut split = Vec::new();
    let mut from = 0;
    for run in ordered.chunk_by(PartialEq::eq) {
        split.push((run[0], with_dates.slice(from, run.len())));
        from += run.len();
    }
    Ok(split)
}

/// `batch` in the order of `first`, then of the columns `clustering`.
fn sorted(batch: &RecordBatch, first: Option<&ArrayRef>, clustering: &[usize]) -> Result<RecordBatch, ArrowError> {
    let by = first.into_iter().chain(clustering.iter().map(|&index| batch.column(index)));
    let by: Vec<_> = by.map(|values| SortColumn { values: Arc::clone(values), options: None }).collect();
    if by.is_empty() || batch.num_rows() < 2 {
        return Ok(batch.clone());
    }
    let order = compute::lexsort_to_indices(&by, None)?;
    compute::take_record_batch(batch, &order)
}

/// The Parquet form of one partition's rows with statistics of the columns named in `stats_columns`.
pub(super) fn encode(part: Part, batch: &RecordBatch, stats_columns: &[String]) -> Result<Encoded, ParquetError> {
    let mut file = Growing::new(part, batch.schema(), stats_columns)?;
    file.write(batch)?;
    file.finish()
}

/// A data file under construction, in memory.
pub(super) struct Growing {
    part: Part,
    writer: ArrowWriter<Vec<u8>>,
    stats: Stats,
}

impl Growing {
    /// An empty file of rows of `schema`, with statistics of the columns named in `stats_columns`.
    pub(super) fn new(part: Part, schema: SchemaRef, stats_columns: &[String]) -> Result<Self, ParquetError> {
        // The table's schema stands in its log, no need to repeat Arrow's in every file.
        let options =
            ArrowWriterOptions::new().with_properties(properties(stats_columns)).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options)?;
        Ok(Self { part, writer, stats: Stats::new(stats_columns) })
    }

    /// Adds rows in the order in which they are.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.stats.take(batch);
        self.writer.write(batch)
    }

    /// Ends a row group: what is left in memory is as small as on disk.
    pub(super) fn seal(&mut self) -> Result<(), ParquetError> {
        self.writer.flush()
    }

    /// Bytes it takes in memory, about.
    pub(super) fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.memory_size()
    }

    pub(super) fn finish(self) -> Result<Encoded, ParquetError> {
        let rows = self.stats.rows;
        Ok(Encoded { part: self.part, rows, bytes: self.writer.into_inner()?, stats: self.stats.into_json() })
    }
}

/// The rows of sorted files of one partition as one, sorted by the columns `clustering`.
pub(super) fn merge(
    part: Part,
    batches: &[RecordBatch],
    clustering: &[usize],
    stats_columns: &[String],
) -> Result<Encoded, ParquetError> {
    let mut places = Vec::new();
    for (number, batch) in batches.iter().enumerate() {
        places.extend((0..batch.num_rows()).map(|row| (number, row)));
    }
    let keys = |&column: &usize| {
        let parts: Vec<_> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        Ok(SortColumn { values: compute::concat(&parts)?, options: None })
    };
    let keys = clustering.iter().map(keys).collect::<Result<Vec<_>, ArrowError>>()?;
    if !keys.is_empty() {
        let order = compute::lexsort_to_indices(&keys, None)?;
        places = order.values().iter().map(|&index| places[index as usize]).collect();
    }
    let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
    let mut file = Growing::new(part, schema, stats_columns)?;
    let batches: Vec<_> = batches.iter().collect();
    // In pieces, so that the whole is not held twice.
    for piece in places.chunks(MERGE_ROWS) {
        file.write(&compute::interleave_record_batch(&batches, piece)?)?;
    }
    file.finish()
}

/// How tables are written, with statistics of the columns named in `stats_columns`: those of all would cost more than
/// the compression.
fn properties(stats_columns: &[String]) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_created_by("contextflow".into())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None);
    let with_column = |properties: WriterPropertiesBuilder, column: &String| {
        properties.set_column_statistics_enabled(column.as_str().into(), EnabledStatistics::Chunk)
    };
    stats_columns.iter().fold(properties, with_column).build()
}

/// `stats` of the log: how many rows, and of some columns the smallest and largest value and the nulls.
struct Stats {
    rows: usize,
    columns: Vec<(String, Column)>,
}

#[derive(Default)]
struct Column {
    nulls: usize,
    least: Option<Bound>,
    most: Option<Bound>,
}

/// A value in its own order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    Text(String),
    Number(i64),
    Date(i32),
    Timestamp(i64),
    DateTime(i64),
}

impl Stats {
    fn new(columns: &[String]) -> Self {
        Self { rows: 0, columns: columns.iter().map(|name| (name.clone(), Column::default())).collect() }
    }

    fn take(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows();
        for (name, column) in &mut self.columns {
            let Some(values) = batch.column_by_name(name) else { continue };
            column.nulls += values.null_count();
            let Some((least, most)) = range(values) else { continue };
            column.least = [column.least.take(), Some(least)].into_iter().flatten().min();
            column.most = [column.most.take(), Some(most)].into_iter().flatten().max();
        }
    }

    fn into_json(self) -> String {
        let (mut least, mut most, mut nulls) = (Map::new(), Map::new(), Map::new());
        for (name, column) in self.columns {
            if let Some(bound) = column.least {
                least.insert(name.clone(), bound.into_json(false));
            }
            if let Some(bound) = column.most {
                most.insert(name.clone(), bound.into_json(true));
            }
            nulls.insert(name, column.nulls.into());
        }
        json!({"numRecords": self.rows, "minValues": least, "maxValues": most, "nullCount": nulls}).to_string()
    }
}
/// The smallest and largest value; `None` where there is none or the type has no such statistic.
fn range(values: &ArrayRef) -> Option<(Bound, Bound)> {
    fn both<T>(least: Option<T>, most: Option<T>, bound: impl Fn(T) -> Bound) -> Option<(Bound, Bound)> {
        Some((bound(least?), bound(most?)))
    }
    match values.data_type() {
        DataType::Utf8 => {
            let values = values.as_string::<i32>();
            let text = |text: &str| Bound::Text(text.to_string());
            both(compute::min_string(values), compute::max_string(values), text)
        }
        DataType::Int64 => {
            let values = values.as_primitive::<Int64Type>();
            both(compute::min(values), compute::max(values), Bound::Number)
        }
        DataType::Date32 => {
            let values = values.as_primitive::<Date32Type>();
            both(compute::min(values), compute::max(values), Bound::Date)
        }
        DataType::Timestamp(_, zone) => {
            let values = values.as_primitive::<TimestampMicrosecondType>();
            let bound = if zone.is_some() { Bound::Timestamp } else { Bound::DateTime };
            both(compute::min(values), compute::max(values), bound)
        }
        _ => None,
    }
}

impl Bound {
    /// The log's form; long texts are cut to one that is not greater, or not less when it is the `most`.
    fn into_json(self, most: bool) -> Json {
        let mut time = Vec::with_capacity(27);
        match self {
            Self::Text(text) if most => return upper_bound(&text).into(),
            Self::Text(text) => return text.chars().take(STAT_CHARACTERS).collect::<String>().into(),
            Self::Number(number) => return number.into(),
            Self::Date(days) => time::write_date(days, &mut time),
            Self::Timestamp(micros) => time::write_timestamp(micros, &mut time),
            Self::DateTime(micros) => time::write_date_time(micros, &mut time),
        }
        String::from_utf8_lossy(&time).into()
    }
}

/// A text that is not less than `max` and not much longer than [`STAT_CHARACTERS`]; `None` where there is none.
fn upper_bound(max: &str) -> Option<String> {
    let mut characters = max.chars();
    let mut bound: String = characters.by_ref().take(STAT_CHARACTERS).collect();
    match characters.next() {
        None => Some(bound),
        Some(char::MAX) => None,
        Some(_) => {
            bound.push(char::MAX);
            Some(bound)
        }
    }
}
