//! One append as Parquet: rows split by the date of the partition column, sorted by the clustering columns, with the
//! statistics that let a query skip the file.

use std::collections::HashMap;
use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, Date32Array, RecordBatch};
use deltalake::arrow::compute::{self, SortColumn};
use deltalake::arrow::datatypes::{DataType, Date32Type, Int64Type, TimestampMicrosecondType};
use deltalake::arrow::error::ArrowError;
use deltalake::parquet::arrow::ArrowWriter;
use deltalake::parquet::arrow::arrow_writer::ArrowWriterOptions;
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde_json::{Map, Value as Json};

use crate::decode::time;

/// The hidden column that tables are partitioned by: the date of the partition column, null where that is null.
pub(super) const PARTITION_DATE: &str = "_partition_date";
/// How the Hive layout writes a null in a path.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";
/// Longest minimum and maximum of a text in the statistics, in characters, as Spark has it.
const STAT_CHARACTERS: usize = 32;

/// Which partition a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The table has no partitions.
    Whole,
    /// Days since 1970-01-01.
    Date(Option<i32>),
}

impl Part {
    /// The folder of its files, relative to the table; empty for the table's own.
    pub(super) fn folder(self) -> String {
        match self {
            Self::Whole => String::new(),
            Self::Date(Some(days)) => format!("{PARTITION_DATE}={}", date_text(days)),
            Self::Date(None) => format!("{PARTITION_DATE}={NULL_FOLDER}"),
        }
    }

    /// `partitionValues` of the log.
    pub(super) fn values(self) -> HashMap<String, Option<String>> {
        match self {
            Self::Whole => HashMap::new(),
            Self::Date(days) => HashMap::from([(PARTITION_DATE.to_string(), days.map(date_text))]),
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

fn date_text(days: i32) -> String {
    let mut text = Vec::with_capacity(10);
    time::write_date(days, &mut text);
    String::from_utf8_lossy(&text).into_owned()
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
pub(super) fn sorted(
    batch: &RecordBatch,
    first: Option<&ArrayRef>,
    clustering: &[usize],
) -> Result<RecordBatch, ArrowError> {
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
    // The table's schema stands in its log, no need to repeat Arrow's in every file.
    let options = ArrowWriterOptions::new().with_properties(properties()).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), batch.schema(), options)?;
    writer.write(batch)?;
    Ok(Encoded { part, rows: batch.num_rows(), bytes: writer.into_inner()?, stats: stats(batch, stats_columns) })
}

/// How tables are written.
pub(super) fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_created_by("contextflow".into())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .build()
}

/// `stats` of the log: how many rows, and of each column named the smallest and largest value and the nulls.
fn stats(batch: &RecordBatch, columns: &[String]) -> String {
    let (mut least, mut most, mut nulls) = (Map::new(), Map::new(), Map::new());
    for name in columns {
        let Some(values) = batch.column_by_name(name) else { continue };
        nulls.insert(name.clone(), values.null_count().into());
        if let Some((min, max)) = range(values) {
            least.insert(name.clone(), min);
            most.insert(name.clone(), max);
        }
    }
    serde_json::json!({"numRecords": batch.num_rows(), "minValues": least, "maxValues": most, "nullCount": nulls})
        .to_string()
}

/// The smallest and largest value in the log's form; `None` where there is none or the type has no such statistic.
fn range(values: &ArrayRef) -> Option<(Json, Json)> {
    match values.data_type() {
        DataType::Utf8 => {
            let texts = values.as_string::<i32>();
            let (min, max) = (compute::min_string(texts)?, compute::max_string(texts)?);
            Some((min.chars().take(STAT_CHARACTERS).collect::<String>().into(), upper_bound(max)?.into()))
        }
        DataType::Int64 => {
            let numbers = values.as_primitive::<Int64Type>();
            Some((compute::min(numbers)?.into(), compute::max(numbers)?.into()))
        }
        DataType::Date32 => {
            let days = values.as_primitive::<Date32Type>();
            Some((date_text(compute::min(days)?).into(), date_text(compute::max(days)?).into()))
        }
        DataType::Timestamp(_, zone) => {
            let micros = values.as_primitive::<TimestampMicrosecondType>();
            let text = |micros| {
                let mut text = Vec::with_capacity(27);
                let write = if zone.is_some() { time::write_timestamp } else { time::write_date_time };
                write(micros, &mut text);
                Json::from(String::from_utf8_lossy(&text))
            };
            Some((text(compute::min(micros)?), text(compute::max(micros)?)))
        }
        _ => None,
    }
}

/// A text that is not less than `max` and not much longer than [`STAT_CHARACTERS`].
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
