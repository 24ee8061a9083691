//! What a listener grants its clients.

use std::time::Duration;

use crate::settings::{SettingError, Settings, fault};

/// From the first byte of a request, or from the opening of the connection, to the end of its head.
const HEADER: Duration = Duration::from_secs(10);
/// For a body to arrive, and for a response to be taken.
const BODY: Duration = Duration::from_secs(30);
/// Between two requests: longer than the 600 s that Google's front ends keep a connection.
const IDLE: Duration = Duration::from_secs(620);
/// One connection in so many file descriptors.
const DESCRIPTORS_A_CONNECTION: u64 = 4;
/// Where the limit of file descriptors is not known.
const UNKNOWN_DESCRIPTORS: u64 = 1_024;
/// Longer than any process runs; timers reach no further.
pub(super) const FOREVER: Duration = Duration::from_hours(365 * 24);

/// Times and numbers that the connections of one listener are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the head of a request, from its first byte or the opening of the connection.
    pub header: Duration,
    /// For a body to arrive, and for a response to be taken.
    pub body: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Connections open at once.
    pub connections: usize,
}

impl Limits {
    /// As the settings ask for: `HEADER_TIMEOUT_MS`, `BODY_TIMEOUT_MS`, `IDLE_TIMEOUT_MS` and `MAX_CONNECTIONS`, by
    /// default a quarter of the file descriptors that the process may open.
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        let time = |name: &str, default| match settings.millis(name, default)? {
            Duration::ZERO => Err(fault(name, "0: give a number from 1 up")),
            time => Ok(time.min(FOREVER)),
        };
        let connections = usize::try_from(descriptors() / DESCRIPTORS_A_CONNECTION).unwrap_or(usize::MAX);
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        Ok(Self {
            header: time("HEADER_TIMEOUT_MS", HEADER)?,
            body: time("BODY_TIMEOUT_MS", BODY)?,
            idle: time("IDLE_TIMEOUT_MS", IDLE)?,
            connections: settings.within("MAX_CONNECTIONS", connections.clamp(1, most), 1..=most)?,
        })
    }
}

/// Raises the number of file descriptors that the process may open as far as it may, and returns it.
pub fn descriptors() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::debug!(%error, "the limit of open files stays");
        rlimit::Resource::NOFILE.get_soft().unwrap_or(UNKNOWN_DESCRIPTORS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_set_and_nothing_is_without_a_limit() {
        let read = |name: &str, value: &str| Limits::read(&Settings::from_iter([(name, value)]));
        let limits = Limits::read(&Settings::default()).unwrap();
        assert_eq!((limits.header, limits.body, limits.idle), (HEADER, BODY, IDLE));
        assert!((1..=usize::try_from(descriptors()).unwrap()).contains(&limits.connections));
        assert_eq!(read("HEADER_TIMEOUT_MS", "5").unwrap().header, Duration::from_millis(5));
        assert_eq!(read("MAX_CONNECTIONS", "7").unwrap().connections, 7);
        for name in ["HEADER_TIMEOUT_MS", "BODY_TIMEOUT_MS", "IDLE_TIMEOUT_MS", "MAX_CONNECTIONS"] {
            assert!(read(name, "0").unwrap_err().to_string().starts_with(&format!("{name}: 0")), "{name}");
        }
    }
}
