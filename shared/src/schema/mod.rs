//! Schema files and the plans compiled from them.
//!
//! A schema file (`shared/schemas/*.json`) describes one event type: its columns in BigQuery's own JSON form and, around
//! them, the table, the accepted time window and the enrichments. [`compile`] turns it into a [`Plan`] once; decoding,
//! DDL and the warehouse adapters are all driven by that plan.

mod compile;
pub mod ddl;
mod keys;
pub(crate) use keys::KeyTable;
mod plan;
mod registry;
mod reload;

pub use compile::{SchemaError, compile};
pub use keys::camel_case;
pub use plan::{Column, Enrich, Fields, Fill, Granularity, Ingest, Kind, Mode, Partition, Plan, System, Table, Window};
pub use registry::{DEAD_LETTER, DEAD_LETTER_REPLAY, DEFAULT_TYPE, NotStreamed, Registry};
pub use reload::Schemas;
