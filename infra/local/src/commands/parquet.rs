//! A Parquet file written batch by batch.

use std::fs::File;
use std::path::Path;

use deltalake::parquet::arrow::ArrowWriter;
use deltalake::parquet::basic::Compression;
use deltalake::parquet::file::properties::WriterProperties;
use shared::row::Value;
use shared::schema::Column;
use shared::sink::delta::arrow::RowsBuilder;

use crate::error::Failure;

/// Rows of one batch.
const BATCH: usize = 16 * 1024;
/// Rows of one row group: bounds what is held in memory.
const ROW_GROUP: usize = 128 * 1024;

/// A file under construction.
pub struct ParquetFile {
    writer: ArrowWriter<File>,
    rows: RowsBuilder,
    name: String,
}

impl ParquetFile {
    /// Starts a file with these columns.
    pub fn create(file: File, path: &Path, columns: &[Column]) -> Result<Self, Failure> {
        let mut rows = RowsBuilder::new(columns, BATCH);
        let name = path.display().to_string();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(ROW_GROUP))
            .build();
        let empty = rows.finish().map_err(Failure::work)?;
        let writer = ArrowWriter::try_new(file, empty.schema(), Some(properties)).map_err(Failure::work)?;
        Ok(Self { writer, rows, name })
    }

    /// Adds one row.
    pub fn push(&mut self, values: &[Value<'_>]) -> Result<(), Failure> {
        self.rows.push(values);
        if self.rows.len() == BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let batch = self.rows.finish().map_err(Failure::work)?;
        self.writer.write(&batch).map_err(|error| Failure::work(format!("failed to write to {}: {error}", self.name)))
    }

    /// Writes what is left and the footer.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.flush()?;
        let closed = self.writer.close();
        closed.map(drop).map_err(|error| Failure::work(format!("failed to write to {}: {error}", self.name)))
    }
}
