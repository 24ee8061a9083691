//! What can be set.

use std::time::Duration;

use shared::publish::{MAX_BYTES, MAX_EVENTS};
use shared::settings::{SettingError, Settings};
use shared::window::{Limits, MAX_IN_FLIGHT};

/// Settings of the batcher.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Rows of one append to a table.
    pub table: Limits,
    /// Rows of one archive object.
    pub archive: Limits,
    /// Dead letters of one object.
    pub dead_letters: Limits,
    /// Dead letters of one message to their topic.
    pub published_dead_letters: Limits,
    /// How long a push is worked on before it is given back.
    pub budget: Duration,
    /// First pause before a row is appended again; it doubles up to [`MAX_PAUSE`].
    pub pause: Duration,
    /// How many ids of appended rows are remembered to drop duplicates.
    pub remembered_ids: usize,
}

/// Pub/Sub delivers a push again that is not answered within its deadline of 60 s.
const MAX_BUDGET_MILLIS: usize = 55_000;

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
            published_dead_letters: limits(MAX_EVENTS, MAX_BYTES, 20, 16),
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
        let Self { table, archive, dead_letters, published_dead_letters, budget, pause, remembered_ids } =
            Self::default();
        let budget_millis = usize::try_from(budget.as_millis()).unwrap_or(MAX_BUDGET_MILLIS);
        let budget_millis = settings.within("BUDGET_MS", budget_millis, 0..=MAX_BUDGET_MILLIS)?;
        Ok(Self {
            table: Limits {
                rows: settings.parsed("BATCH_ROWS", table.rows)?,
                bytes: settings.parsed("BATCH_BYTES", table.bytes)?,
                wait: settings.millis("BATCH_WAIT_MS", table.wait)?,
                in_flight: settings.within("BATCH_IN_FLIGHT", table.in_flight, 1..=MAX_IN_FLIGHT)?,
            },
            archive: Limits {
                bytes: settings.parsed("ARCHIVE_BYTES", archive.bytes)?,
                wait: settings.millis("ARCHIVE_WAIT_MS", archive.wait)?,
                ..archive
            },
            dead_letters,
            published_dead_letters,
            budget: Duration::from_millis(budget_millis as u64),
            pause,
            remembered_ids: settings.parsed("REMEMBERED_IDS", remembered_ids)?,
        })
    }
}

/// What the deployed function works with.
#[cfg(feature = "cloud")]
pub mod cloud {
    use std::sync::Arc;
    use std::time::Duration;

    use shared::clock::Clock;
    use shared::metrics::Metrics;
    use shared::publish::pubsub::{Options, PubSub};
    use shared::schema::Schemas;
    use shared::serve::Failure;
    use shared::settings::{Settings, fault};
    use shared::sink::Sink;
    use shared::sink::bigquery::BigQuerySink;
    use shared::{bucket, credentials, durable};

    use crate::Deps;

    /// Few messages go out, and what must wait has waited before.
    const PUBLISH: Options = Options { wait: Duration::from_millis(1), give_up_after: Duration::from_secs(40) };

    /// Opens what the environment names: `WAREHOUSE`, `ARCHIVE_URI`, `SCHEMAS_URI` with
    /// `SCHEMAS_MAX_AGE_MS`, `ENRICHED_TOPIC` and `DEAD_LETTER_TOPIC`.
    pub async fn deps(settings: &Settings) -> Result<Deps, Failure> {
        let clock = Clock::system();
        let enriched = settings.topic("ENRICHED_TOPIC", "clickstream-enriched-topic")?;
        let dead_letters = settings.topic("DEAD_LETTER_TOPIC", "clickstream-dead-letter-topic")?;
        let archive = settings.get("ARCHIVE_URI").map(|uri| bucket::open(uri, settings)).transpose();
        let archive = archive.map_err(|error| fault("ARCHIVE_URI", error))?;
        if let Some(folder) = settings.get("ARCHIVE_URI").and_then(bucket::local) {
            std::path::absolute(folder)
                .and_then(|folder| durable::create_folder(&folder))
                .map_err(|error| fault("ARCHIVE_URI", error))?;
        }
        if archive.is_none() {
            tracing::warn!("ARCHIVE_URI is not set: nothing is archived");
        }
        let pubsub = PubSub::new(settings, credentials::google(settings)?, PUBLISH).await?;
        Ok(Deps {
            schemas: Arc::new(Schemas::read(settings, &clock).await?),
            sink: warehouse(settings, &clock).await?,
            bucket: archive,
            enriched: Arc::new(pubsub.topic(&enriched)),
            dead_letters: Arc::new(pubsub.topic(&dead_letters)),
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock,
        })
    }

    async fn warehouse(settings: &Settings, clock: &Clock) -> Result<Arc<dyn Sink>, Failure> {
        match settings.text("WAREHOUSE", "bigquery") {
            "bigquery" => Ok(Arc::new(BigQuerySink::new(settings, clock.clone())?)),
            "delta" => delta(settings, clock).await,
            other => Err(fault("WAREHOUSE", format!("`{other}` is none; give bigquery or delta")).into()),
        }
    }

    #[cfg(feature = "delta")]
    async fn delta(settings: &Settings, clock: &Clock) -> Result<Arc<dyn Sink>, Failure> {
        let what = "the folder of the tables: a path, gs://bucket/prefix or s3://bucket/prefix";
        let uri = settings.required("DELTA_URI", what)?;
        let sink = shared::sink::delta::DeltaSink::open_uri(uri, settings, clock.clone()).await;
        Ok(Arc::new(sink.map_err(|error| fault("DELTA_URI", error))?))
    }

    #[cfg(not(feature = "delta"))]
    #[expect(clippy::unused_async, reason = "the same call with and without the feature")]
    async fn delta(_: &Settings, _: &Clock) -> Result<Arc<dyn Sink>, Failure> {
        let reason = "this batcher was built without Delta Lake; build it with `--features delta`";
        Err(fault("WAREHOUSE", reason).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_used_and_what_cannot_be_used_is_named() {
        let read = |name: &str, value: &str| Config::read(&Settings::from_iter([(name, value)]));
        assert_eq!(read("BATCH_WAIT_MS", "5").unwrap().table.wait, Duration::from_millis(5));
        assert_eq!(read("ARCHIVE_BYTES", "9").unwrap().archive.bytes, 9);
        assert!(read("BATCH_ROWS", "many").unwrap_err().to_string().starts_with("BATCH_ROWS: `many`"));
        for (name, value, reason) in [
            ("BATCH_IN_FLIGHT", "0", "BATCH_IN_FLIGHT: 0: give 1 to 1000"),
            ("BUDGET_MS", "600000", "BUDGET_MS: 600000: give 0 to 55000"),
        ] {
            assert_eq!(read(name, value).unwrap_err().to_string(), reason);
        }
    }
}
