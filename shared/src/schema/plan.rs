//! The compiled form of a schema file.

use serde::{Deserialize, Serialize};

use super::keys::KeyTable;
use crate::clock::{DAY, Micros};
use crate::enrich::ENRICHMENTS;

/// Who may send events of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ingest {
    /// Anyone, through `POST /publish` or Pub/Sub.
    Public,
    /// Backends: through Pub/Sub, and through a publisher that names the type.
    Stream,
    /// Only the backfill job.
    Batch,
    /// Only the pipeline itself.
    Internal,
}

/// A BigQuery column type; a record brings its fields.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// UTF-8 text.
    String,
    /// Bytes, base64 in JSON.
    Bytes,
    /// 64-bit signed integer.
    Integer,
    /// 64-bit floating point, finite.
    Float,
    /// Exact decimal, 29 digits before and 9 after the point.
    Numeric,
    /// Exact decimal, 38 full digits before and 38 after the point.
    BigNumeric,
    /// `true` or `false`.
    Boolean,
    /// A point in time to the microsecond, UTC.
    Timestamp,
    /// A calendar day.
    Date,
    /// A day and time of day without a zone.
    DateTime,
    /// A time of day.
    Time,
    /// Any JSON, kept as its text.
    Json,
    /// A STRUCT.
    Record(Fields),
}

impl Kind {
    /// The name in a schema file and in BigQuery's REST API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::String => "STRING",
            Self::Bytes => "BYTES",
            Self::Integer => "INTEGER",
            Self::Float => "FLOAT",
            Self::Numeric => "NUMERIC",
            Self::BigNumeric => "BIGNUMERIC",
            Self::Boolean => "BOOLEAN",
            Self::Timestamp => "TIMESTAMP",
            Self::Date => "DATE",
            Self::DateTime => "DATETIME",
            Self::Time => "TIME",
            Self::Json => "JSON",
            Self::Record(_) => "RECORD",
        }
    }
}

/// Whether a column may be absent or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// May be absent or `null`.
    #[default]
    Nullable,
    /// Must hold a value.
    Required,
    /// An array; absent is empty, its elements are never `null`.
    Repeated,
}

/// Who fills a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// The event itself.
    Event,
    /// An enrichment; what the event says under this name is dropped.
    Enrichment,
    /// The pipeline (`event_id` alone may come with the event).
    System,
}

/// One column or field.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name in the table.
    pub name: String,
    /// Type.
    pub kind: Kind,
    /// Mode.
    pub mode: Mode,
    /// Longest STRING in characters, longest BYTES in bytes.
    pub max_length: Option<usize>,
    /// Most elements of an array.
    pub max_elements: usize,
    /// Shown in the warehouse's catalogue.
    pub description: Option<String>,
    /// Who fills it.
    pub fill: Fill,
}

/// The fields of a record with the table of their names.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields {
    /// In the order of the schema file.
    pub columns: Vec<Column>,
    pub(crate) keys: KeyTable,
}

/// Width of a time partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Granularity {
    /// One hour.
    Hour,
    /// One day, UTC.
    Day,
    /// One month.
    Month,
    /// One year.
    Year,
}

/// Time partitioning of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Index of the partition column.
    pub column: usize,
    /// Width.
    pub granularity: Granularity,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Dataset.
    pub dataset: String,
    /// Table name.
    pub name: String,
    /// Time partitioning.
    pub partition: Option<Partition>,
    /// Whether a query must name the partitions it reads, so that nobody pays for all of them by mistake.
    pub require_partition_filter: bool,
    /// Indexes of the clustering columns, first the most significant.
    pub clustering: Vec<usize>,
}

impl Table {
    /// `dataset.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.dataset, self.name)
    }
}

/// Times that a partition column may hold, relative to now; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How far back, in microseconds.
    pub past: Micros,
    /// How far ahead, in microseconds.
    pub future: Micros,
}

impl Default for Window {
    fn default() -> Self {
        Self { past: 5 * 366 * DAY, future: DAY }
    }
}

/// One enrichment of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrich {
    /// Index in [`crate::enrich::ENRICHMENTS`].
    pub enrichment: usize,
    /// Index of the column it reads.
    pub from: usize,
    /// For each output of the enrichment, in its own order, the column to fill.
    pub into: Vec<Option<usize>>,
}

/// Indexes of the system columns of a streaming table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    /// `event_id`.
    pub event_id: usize,
    /// `received_at`.
    pub received_at: usize,
    /// `loaded_at`.
    pub loaded_at: usize,
    /// `schema_version`.
    pub schema_version: usize,
    /// `fingerprint`.
    pub fingerprint: usize,
}

/// A schema file, checked and ready to drive the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The name events carry.
    pub event_type: String,
    /// SchemaVer, `MODEL-REVISION-ADDITION`.
    pub version: String,
    /// What the table holds.
    pub description: Option<String>,
    /// Who may send it.
    pub ingest: Ingest,
    /// Where it goes.
    pub table: Table,
    /// Accepted partition times.
    pub accepts: Window,
    /// Enrichments in the order of the file.
    pub enrichments: Vec<Enrich>,
    /// The event's own columns, then the system columns of a streaming table.
    pub columns: Vec<Column>,
    /// How many of `columns` are the schema file's own.
    pub own_columns: usize,
    /// System columns; `None` for `batch` and `internal` tables.
    pub system: Option<System>,
    /// Indexes of the columns that a fingerprint covers: those that the event fills itself. A client's address is not among
    /// them, since the publisher adds it and a retry may come from another one.
    pub content: Vec<usize>,
    /// Index of the column that tells one row from another: `event_id` on streaming tables, else the file's `identity`.
    pub identity: Option<usize>,
    /// Names an event may use (own columns and `event_id`).
    pub(crate) event_keys: KeyTable,
    /// Names a row may use (every column, exactly as it is called).
    pub(crate) row_keys: KeyTable,
    /// Of those, what tells a row from others and when it came to be: identity, fingerprint,
    /// `received_at`, partition column.
    pub(crate) head_keys: KeyTable,
}

impl Plan {
    /// The partition column, if the table has one.
    pub fn partition_column(&self) -> Option<&Column> {
        self.table.partition.and_then(|partition| self.columns.get(partition.column))
    }

    /// Whether `version` (`MODEL-REVISION-ADDITION`) is a later one than this: its rows may have columns that are not known
    /// here.
    pub fn is_older_than(&self, version: &str) -> bool {
        let parts = |version: &str| version.split('-').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
        parts(version).zip(parts(&self.version)).is_some_and(|(version, own)| version > own)
    }

    /// Whether events have a client's address, to which `IP_ANONYMISE` applies, under this key.
    pub fn is_address_key(&self, key: &str) -> bool {
        let addresses = self.enrichments.iter().filter(|step| ENRICHMENTS[step.enrichment].reads_address);
        let named = self.event_keys.find(key.as_bytes(), &mut 0);
        named.is_some_and(|column| addresses.into_iter().any(|step| step.from == column))
    }

    /// The index of the column called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}
