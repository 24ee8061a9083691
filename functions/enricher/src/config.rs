//! What can be set.

use std::time::Duration;

use shared::enrich::address::Anonymise;
use shared::publish::{MAX_BYTES, MAX_EVENTS};
use shared::window::Limits;

/// Settings of the enricher.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How rows of concurrent pushes are packed into messages. The wait is part of every event's latency.
    pub pack: Limits,
    /// What becomes of client addresses.
    pub anonymise: Anonymise,
}

impl Default for Config {
    fn default() -> Self {
        let wait = Duration::from_millis(20);
        Self { pack: Limits { rows: MAX_EVENTS, bytes: MAX_BYTES, wait, in_flight: 16 }, anonymise: Anonymise::Off }
    }
}
