//! What readers follow while a load is shown: one file that names a version of each table.

use std::io;

use deltalake::kernel::{Action, Add};
use serde::{Deserialize, Serialize};

use super::super::files::Files;

/// Below the root of the warehouse.
const POINTER_FILE: &str = ".published.json";

/// The last load that was shown, or is being shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct Pointer {
    pub(in super::super) run: String,
    /// The tables of a load whose switch has begun; none when it is complete.
    pub(in super::super) tables: Vec<Change>,
}

/// What a load does to a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct Change {
    pub(in super::super) dataset: String,
    pub(in super::super) name: String,
    /// What readers keep to until every table has its new version.
    pub(in super::super) version: u64,
    /// Whether the files take the place of all others.
    pub(in super::super) replaces: bool,
    /// First and last day (since 1970-01-01) of the only ones whose files they take the place of.
    #[serde(default)]
    pub(in super::super) days: Option<(i32, i32)>,
    /// Protocol and metadata of a table that is made anew.
    pub(in super::super) definition: Vec<Action>,
    /// Under the paths that they are to have.
    pub(in super::super) files: Vec<Add>,
}

impl Pointer {
    /// That of a warehouse which was never loaded is empty.
    pub(in super::super) fn read(root: &dyn Files) -> io::Result<Self> {
        match root.read(POINTER_FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{POINTER_FILE}: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, root: &dyn Files) -> io::Result<()> {
        root.replace(POINTER_FILE, serde_json::to_vec(self)?.into())
    }

    /// Whether some of its tables may have their new version and others not.
    pub(in super::super) fn is_switching(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The version that readers of a table keep to; `None`: the newest.
    pub(in super::super) fn version_of(&self, dataset: &str, name: &str) -> Option<u64> {
        let change = self.tables.iter().find(|change| change.dataset == dataset && change.name == name)?;
        Some(change.version)
    }
}
