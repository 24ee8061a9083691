//! What can be set.

use std::time::Duration;

use shared::settings::{SettingError, Settings};
use shared::window::Limits;

/// Settings of the batcher.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Rows of one append to a table.
    pub table: Limits,
    /// Rows of one archive object.
    pub archive: Limits,
    /// Dead letters of one object.
    pub dead_letters: Limits,
    /// How long a push is worked on before it is given back.
    pub budget: Duration,
    /// First pause before a row is appended again; it doubles up to [`MAX_PAUSE`].
    pub pause: Duration,
    /// How many ids of appended rows are remembered to drop duplicates.
    pub remembered_ids: usize,
}

/// Longest pause between two appends of a row.
pub const MAX_PAUSE: Duration = Duration::from_secs(5);

impl Default for Config {
    fn default() -> Self {
        let limits =
            |rows, bytes, millis, in_flight| Limits { rows, bytes, wait: Duration::from_millis(millis), in_flight };
        Self {
            table: limits(500, 1 << 20, 250, 4),
            archive: limits(usize::MAX, 8 << 20, 10_000, 4),
            dead_letters: limits(usize::MAX, 8 << 20, 1_000, 4),
            budget: Duration::from_secs(45),
            pause: Duration::from_millis(100),
            remembered_ids: 200_000,
        }
    }
}

impl Config {
    /// The defaults with what the environment sets: `BATCH_ROWS`, `BATCH_BYTES`, `BATCH_WAIT_MS`, `BATCH_IN_FLIGHT`,
    /// `ARCHIVE_BYTES`, `ARCHIVE_WAIT_MS`, `BUDGET_MS`, `REMEMBERED_IDS`.
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        let Self { table, archive, dead_letters, budget, pause, remembered_ids } = Self::default();
        Ok(Self {
            table: Limits {
                rows: settings.parsed("BATCH_ROWS", table.rows)?,
                bytes: settings.parsed("BATCH_BYTES", table.bytes)?,
                wait: settings.millis("BATCH_WAIT_MS", table.wait)?,
                in_flight: settings.parsed("BATCH_IN_FLIGHT", table.in_flight)?,
            },
            archive: Limits {
                bytes: settings.parsed("ARCHIVE_BYTES", archive.bytes)?,
                wait: settings.millis("ARCHIVE_WAIT_MS", archive.wait)?,
                ..archive
            },
            dead_letters,
            budget: settings.millis("BUDGET_MS", budget)?,
            pause,
            remembered_ids: settings.parsed("REMEMBERED_IDS", remembered_ids)?,
        })
    }
}
