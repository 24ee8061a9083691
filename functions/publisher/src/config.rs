//! What can be set, and what the deployed function works with.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use shared::clock::Clock;
use shared::credentials;
use shared::enrich::address::Anonymise;
use shared::publish::MAX_EVENT_BYTES;
use shared::publish::pubsub::{ATTEMPT, Options, PubSub};
use shared::schema::{Registry, Schemas};
use shared::serve::Failure;
use shared::settings::{SettingError, Settings, fault};

use crate::{Deps, Limits, MAX_BODY, StreamTypes};

/// What a publish may take, in milliseconds. A login may add 6 s to it, and API Gateway gives up on a Lambda after 29 s.
const TIMEOUT: RangeInclusive<u128> = 100..=20_000;
/// What the client may wait for further messages, in milliseconds. It knows no wait of none.
const WAIT: RangeInclusive<u128> = 1..=1_000;

/// Settings of the publisher.
#[derive(Debug, Clone)]
pub struct Config {
    /// `projects/<project>/topics/<topic>` that events go to.
    pub raw_topic: String,
    /// How a client's address is added.
    pub anonymise: Anonymise,
    /// The largest event that can become a row, in bytes.
    pub max_event_bytes: usize,
    /// Whether a request without a body stands for one synthetic event.
    pub synthetic_events: bool,
    /// How messages are sent. The events of one request are sent together without waiting; the wait only serves to join
    /// those of concurrent requests, which a Lambda does not have.
    pub publish: Options,
}

impl Config {
    /// `RAW_TOPIC` (`clickstream-raw-topic`), `IP_ANONYMISE` (`off`), `MAX_EVENT_BYTES` (262144), `SYNTHETIC_EVENTS`
    /// (`off`), `PUBLISH_TIMEOUT_MS` (8000), `PUBLISH_WAIT_MS` (1).
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        Ok(Self {
            raw_topic: settings.topic("RAW_TOPIC", "clickstream-raw-topic")?,
            anonymise: settings.text("IP_ANONYMISE", "off").parse().map_err(|error| fault("IP_ANONYMISE", error))?,
            max_event_bytes: settings.within("MAX_EVENT_BYTES", MAX_EVENT_BYTES, 1..=MAX_BODY)?,
            synthetic_events: settings.flag("SYNTHETIC_EVENTS", false)?,
            publish: Options {
                wait: millis(settings, "PUBLISH_WAIT_MS", Duration::from_millis(1), &WAIT)?,
                attempt: ATTEMPT,
                give_up_after: millis(settings, "PUBLISH_TIMEOUT_MS", Duration::from_secs(8), &TIMEOUT)?,
            },
        })
    }
}

fn millis(
    settings: &Settings,
    name: &str,
    default: Duration,
    range: &RangeInclusive<u128>,
) -> Result<Duration, SettingError> {
    let value = settings.millis(name, default)?;
    let (least, most) = (range.start(), range.end());
    if range.contains(&value.as_millis()) { Ok(value) } else { Err(fault(name, format!("give {least} to {most}"))) }
}

/// The types that `PUBLISH_TYPES` names, with commas between them. Each must be one of the schemas.
fn stream_types(settings: &Settings, registry: &Registry) -> Result<StreamTypes, SettingError> {
    let name = "PUBLISH_TYPES";
    let names = settings.text(name, "");
    let names: BTreeSet<_> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let is_streamed = |event_type: &&str| registry.streaming(event_type).is_some();
    match names.iter().find(|event_type| !is_streamed(event_type)) {
        Some(unknown) => {
            Err(fault(name, format!("`{unknown}` is not an event type of a stream; SCHEMAS_URI adds types")))
        }
        None => Ok(StreamTypes::Only(names.into_iter().map(str::to_string).collect())),
    }
}

/// `MAX_BODY_BYTES` (1 MiB) and `MAX_REQUEST_EVENTS` (500): what a request may hold, where anyone may send one.
pub fn limits(settings: &Settings) -> Result<Limits, SettingError> {
    let Limits { body_bytes, events } = Limits::default();
    Ok(Limits {
        body_bytes: settings.within("MAX_BODY_BYTES", body_bytes, 1..=body_bytes)?,
        events: settings.within("MAX_REQUEST_EVENTS", events, 1..=events)?,
    })
}

/// Opens what the environment names: the topic, and `SCHEMAS_URI`. Done once; every request shares it.
pub async fn deps(settings: &Settings) -> Result<Deps, Failure> {
    let config = Config::read(settings)?;
    let clock = Clock::system();
    let schemas = Schemas::read(settings, &clock).await?;
    let stream_types = stream_types(settings, &schemas.in_force())?;
    let pubsub = PubSub::new(settings, credentials::google(settings)?, config.publish, clock.clone()).await?;
    Ok(Deps {
        schemas: Arc::new(schemas),
        topic: Arc::new(pubsub.topic(&config.raw_topic)),
        clock,
        anonymise: config.anonymise,
        max_event_bytes: config.max_event_bytes,
        synthetic_events: config.synthetic_events,
        stream_types,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let project = [("GOOGLE_CLOUD_PROJECT", "p")];
        let settings = project.iter().chain(variables).copied().collect();
        Config::read(&settings).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_set_is_used() {
        let config = read(&[]).unwrap();
        assert_eq!(config.raw_topic, "projects/p/topics/clickstream-raw-topic");
        assert_eq!(config.publish.give_up_after, Duration::from_secs(8));
        let config = read(&[("RAW_TOPIC", "raw"), ("IP_ANONYMISE", "drop"), ("PUBLISH_TIMEOUT_MS", "500")]).unwrap();
        assert_eq!((config.raw_topic.as_str(), config.anonymise), ("projects/p/topics/raw", Anonymise::Drop));
        assert_eq!(config.publish.give_up_after, Duration::from_millis(500));
    }

    #[test]
    fn types_of_streams_can_be_named() {
        let registry = Registry::built_in().unwrap();
        let read = |value: &str| {
            stream_types(&Settings::from_iter([("PUBLISH_TYPES", value)]), &registry).map_err(|error| error.to_string())
        };
        let only = |names: &[&str]| StreamTypes::Only(names.iter().map(ToString::to_string).collect());
        assert_eq!(read(""), Ok(only(&[])));
        assert_eq!(read(" order, inventory,"), Ok(only(&["inventory", "order"])));
        for unknown in ["ordr", "visit", "dead_letter"] {
            let expected = format!("PUBLISH_TYPES: `{unknown}` is not an event type of a stream");
            assert!(read(&format!("order,{unknown}")).unwrap_err().starts_with(&expected), "{unknown}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let refusal = |name, value| read(&[(name, value)]).unwrap_err();
        assert!(refusal("GOOGLE_CLOUD_PROJECT", "").starts_with("GOOGLE_CLOUD_PROJECT: not set"));
        assert_eq!(refusal("PUBLISH_TIMEOUT_MS", "60000"), "PUBLISH_TIMEOUT_MS: give 100 to 20000");
        assert_eq!(refusal("PUBLISH_WAIT_MS", "0"), "PUBLISH_WAIT_MS: give 1 to 1000");
        assert_eq!(refusal("MAX_EVENT_BYTES", "2000000"), "MAX_EVENT_BYTES: 2000000: give 1 to 1048576");
        assert_eq!(refusal("SYNTHETIC_EVENTS", "yes"), "SYNTHETIC_EVENTS: `yes`: give on or off");
        assert!(refusal("IP_ANONYMISE", "some").starts_with("IP_ANONYMISE: "));
        let error = limits(&Settings::from_iter([("MAX_BODY_BYTES", "2000000")])).unwrap_err();
        assert_eq!(error.to_string(), "MAX_BODY_BYTES: 2000000: give 1 to 1048576");
    }
}
