//! What can be set.

use std::time::Duration;

use shared::enrich::address::Anonymise;
use shared::publish::{MAX_BYTES, MAX_EVENT_BYTES, MAX_EVENTS};
use shared::settings::{SettingError, Settings, fault};
use shared::window::{Limits, MAX_IN_FLIGHT};

/// Settings of the enricher.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How rows of concurrent pushes are packed into messages. The wait is part of every event's latency.
    pub pack: Limits,
    /// What becomes of client addresses.
    pub anonymise: Anonymise,
    /// The largest event that can become a row, in bytes.
    pub max_event_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        let wait = Duration::from_millis(20);
        let pack = Limits { rows: MAX_EVENTS, bytes: MAX_BYTES, wait, in_flight: 16 };
        Self { pack, anonymise: Anonymise::Off, max_event_bytes: MAX_EVENT_BYTES }
    }
}

impl Config {
    /// The defaults with what the environment sets: `PACK_ROWS`, `PACK_BYTES`, `PACK_WAIT_MS`, `PACK_IN_FLIGHT`,
    /// `IP_ANONYMISE`, `MAX_EVENT_BYTES`.
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        let Self { pack, .. } = Self::default();
        Ok(Self {
            pack: Limits {
                rows: settings.within("PACK_ROWS", MAX_EVENTS, 1..=MAX_EVENTS)?,
                bytes: settings.within("PACK_BYTES", MAX_BYTES, 1..=MAX_BYTES)?,
                wait: settings.millis("PACK_WAIT_MS", pack.wait)?,
                in_flight: settings.within("PACK_IN_FLIGHT", pack.in_flight, 1..=MAX_IN_FLIGHT)?,
            },
            anonymise: settings.text("IP_ANONYMISE", "off").parse().map_err(|error| fault("IP_ANONYMISE", error))?,
            max_event_bytes: settings.within("MAX_EVENT_BYTES", MAX_EVENT_BYTES, 1..=MAX_BYTES)?,
        })
    }
}

/// What the deployed function works with.
#[cfg(feature = "cloud")]
pub mod cloud {
    use std::sync::Arc;
    use std::time::Duration;

    use shared::bucket::{self, Location};
    use shared::clock::{Clock, Micros};
    use shared::credentials;
    use shared::enrich::geo::GEO;
    use shared::enrich::{Source, Warm};
    use shared::metrics::Metrics;
    use shared::publish::pubsub::{ATTEMPT, Options, PubSub};
    use shared::schema::Schemas;
    use shared::serve::Failure;
    use shared::settings::{SettingError, Settings, fault};

    use crate::Deps;

    /// Rows are packed before they come to the client, so that it waits for no more; a push is worked on for 45 s.
    const PUBLISH: Options =
        Options { wait: Duration::from_millis(1), attempt: ATTEMPT, give_up_after: Duration::from_secs(40) };
    /// How old a look at the lookups' sources may be.
    const LOOKUP_MAX_AGE: Duration = Duration::from_mins(1);

    /// Opens what the environment names: `ENRICHED_TOPIC`, `DEAD_LETTER_TOPIC`, `ARCHIVE_URI`, `SCHEMAS_URI` with
    /// `SCHEMAS_MAX_AGE_MS`, and `GEO_URI` with `LOOKUP_MAX_AGE_MS`. The lookups are loaded when it returns.
    pub async fn deps(settings: &Settings) -> Result<Deps, Failure> {
        let clock = Clock::system();
        let enriched = settings.topic("ENRICHED_TOPIC", "clickstream-enriched-topic")?;
        let dead_letters = settings.topic("DEAD_LETTER_TOPIC", "clickstream-dead-letter-topic")?;
        let lookups = lookups(settings, &clock).await?;
        let pubsub = PubSub::new(settings, credentials::google(settings)?, PUBLISH, clock.clone()).await?;
        Ok(Deps {
            schemas: Arc::new(Schemas::read(settings, &clock).await?),
            lookups: Arc::new(lookups),
            enriched: Arc::new(pubsub.topic(&enriched)),
            dead_letters: Arc::new(pubsub.topic(&dead_letters)),
            bucket: bucket(settings)?,
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock,
        })
    }

    fn bucket(settings: &Settings) -> Result<Option<Location>, SettingError> {
        let name = "ARCHIVE_URI";
        let open = |uri| bucket::open_for_requests(uri, settings).map_err(|error| fault(name, error));
        settings.get(name).map(open).transpose()
    }

    async fn lookups(settings: &Settings, clock: &Clock) -> Result<Warm, Failure> {
        let name = "GEO_URI";
        let max_age = settings.millis("LOOKUP_MAX_AGE_MS", LOOKUP_MAX_AGE)?;
        let max_age = Micros::try_from(max_age.as_micros()).unwrap_or(Micros::MAX);
        let mut sources = Vec::new();
        if let Some(uri) = settings.get(name) {
            let place = bucket::open(uri, settings).map_err(|error| fault(name, error))?;
            sources.push(Source { enrichment: GEO.name, place });
        }
        Ok(Warm::load(sources, clock.clone(), max_age).await.map_err(|error| fault(name, error))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Config, String> {
        Config::read(&Settings::from_iter([(name, value)])).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_set_is_used() {
        assert_eq!(read("PACK_WAIT_MS", "5").unwrap().pack.wait, Duration::from_millis(5));
        assert_eq!(read("PACK_ROWS", "1").unwrap().pack.rows, 1);
        assert_eq!(read("IP_ANONYMISE", "drop").unwrap().anonymise, Anonymise::Drop);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(read("PACK_ROWS", "501").unwrap_err(), "PACK_ROWS: 501: give 1 to 500");
        assert_eq!(read("PACK_BYTES", "0").unwrap_err(), "PACK_BYTES: 0: give 1 to 1048576");
        assert_eq!(read("PACK_IN_FLIGHT", "0").unwrap_err(), "PACK_IN_FLIGHT: 0: give 1 to 1000");
        assert!(read("PACK_WAIT_MS", "soon").unwrap_err().starts_with("PACK_WAIT_MS: `soon`"));
        assert!(read("IP_ANONYMISE", "some").unwrap_err().starts_with("IP_ANONYMISE: "));
    }
}
