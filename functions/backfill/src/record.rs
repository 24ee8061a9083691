//! What is known of the runs of a target: one JSON object a run, beside each other.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::bucket::Location;

use crate::Error;
use crate::lines::Position;
use crate::report::Tally;

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its id, which begins with its time, so that ids sort.
    pub run: String,
    /// What was asked for.
    pub arguments: Arguments,
    /// How far it is.
    pub state: State,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// When this was written.
    pub updated_at: String,
    /// The source's files, in the order they are read.
    pub files: Vec<FileRecord>,
    /// Where it goes on from.
    pub checkpoint: Option<Checkpoint>,
}

/// What was asked for. A run goes on only with the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments {
    /// The source as it was given.
    pub source: String,
    /// `dataset.table` of every table.
    pub tables: Vec<String>,
    /// `replace`, `append` or `recreate`.
    pub mode: String,
    /// What the lines are.
    pub form: String,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Rows are staged.
    Loading,
    /// All rows are staged; they are being shown, or are shown already.
    Publishing,
    /// The rows are shown, the dead letters not yet all.
    Shown,
    /// All is done.
    Done,
    /// The tables stayed as they were.
    Failed,
}

/// A file of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its address.
    pub uri: String,
    /// Bytes as it lies there.
    pub size: u64,
    /// What changes with its content.
    pub tag: String,
    /// SHA-256, once it was read.
    pub checksum: Option<String>,
    /// Loaded by an earlier run, and so passed over.
    pub skipped: bool,
}

/// What is durable of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Index of the file that is read next.
    pub file: usize,
    /// The line of it that is read next.
    pub at: Position,
    /// What the loader goes on from.
    pub load: Value,
    /// How many parts of dead letters are written.
    pub letter_parts: u32,
    /// What was counted.
    pub tally: Tally,
}

/// The records of a target.
pub struct Records(Location);

impl Records {
    /// Those that lie at `state`.
    pub fn new(state: &Location) -> Self {
        Self(Location { path: state.path.clone().join("runs"), ..state.clone() })
    }

    /// All, the oldest first.
    pub async fn read(&self) -> Result<Vec<Record>, Error> {
        let place = &self.0;
        let failed = |error: String| Error::Work(format!("{}: failed to read the records of runs: {error}", place.uri));
        let mut paths: Vec<Path> = place
            .store
            .list(Some(&place.path))
            .map_ok(|object| object.location)
            .try_filter(|path| std::future::ready(path.extension() == Some("json")))
            .try_collect()
            .await
            .map_err(|error| failed(error.to_string()))?;
        paths.sort();
        let mut records = Vec::with_capacity(paths.len());
        for path in paths {
            let object = place.store.get(&path).await.map_err(|error| failed(error.to_string()))?;
            let bytes = object.bytes().await.map_err(|error| failed(error.to_string()))?;
            records.push(serde_json::from_slice(&bytes).map_err(|error| failed(format!("{path}: {error}")))?);
        }
        Ok(records)
    }

    /// Writes a record, in place of the one before.
    pub async fn write(&self, record: &Record) -> Result<(), Error> {
        let place = &self.0;
        let failed = |error: String| Error::Work(format!("{}: failed to record the run: {error}", place.uri));
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.to_string()))?;
        let path = place.path.clone().join(format!("{}.json", record.run));
        place.store.put(&path, bytes.into()).await.map_err(|error| failed(error.to_string()))?;
        Ok(())
    }
}

/// Checksums of the files whose rows the tables hold, as far as runs have brought them in the same way: of an object of
/// the archive another run may have loaded other days.
pub fn loaded(records: &[Record], arguments: &Arguments) -> Vec<String> {
    let mut loaded = Vec::new();
    for record in records.iter().filter(|record| record.arguments.tables == arguments.tables) {
        if matches!(record.state, State::Shown | State::Done) {
            if record.arguments.mode != "append" {
                loaded.clear();
            }
            if record.arguments.form == arguments.form {
                loaded.extend(record.files.iter().filter_map(|file| file.checksum.clone()));
            }
        }
    }
    loaded
}
