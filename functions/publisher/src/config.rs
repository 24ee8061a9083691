//! What can be set, and what the deployed function works with.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shared::clock::Clock;
use shared::credentials;
use shared::enrich::address::Anonymise;
use shared::publish::pubsub::{Options, PubSub};
use shared::schema::Registry;
use shared::serve::Failure;
use shared::settings::{SettingError, Settings, fault};

use crate::{Deps, StreamTypes};

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
    /// How messages are sent. The events of one request are sent together without waiting; the wait only serves to join
    /// those of concurrent requests, which a Lambda does not have.
    pub publish: Options,
}

impl Config {
    /// `RAW_TOPIC` (`clickstream-raw-topic`), `IP_ANONYMISE` (`off`), `PUBLISH_TIMEOUT_MS` (8000), `PUBLISH_WAIT_MS` (1).
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        Ok(Self {
            raw_topic: settings.topic("RAW_TOPIC", "clickstream-raw-topic")?,
            anonymise: settings.text("IP_ANONYMISE", "off").parse().map_err(|error| fault("IP_ANONYMISE", error))?,
            publish: Options {
                wait: millis(settings, "PUBLISH_WAIT_MS", Duration::from_millis(1), &WAIT)?,
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

/// Opens what the environment names: the topic, `SCHEMAS_URI` and `PUBLISH_TYPES`. Done once; every request shares it.
pub async fn deps(settings: &Settings) -> Result<Deps, Failure> {
    let config = Config::read(settings)?;
    let registry = registry(settings)?;
    let stream_types = stream_types(settings, &registry)?;
    let pubsub = PubSub::new(settings, credentials::google(settings)?, config.publish).await?;
    Ok(Deps {
        registry: Arc::new(registry),
        topic: Arc::new(pubsub.topic(&config.raw_topic)),
        clock: Clock::system(),
        anonymise: config.anonymise,
        stream_types,
    })
}

fn registry(settings: &Settings) -> Result<Registry, SettingError> {
    let name = "SCHEMAS_URI";
    let registry = match settings.get(name) {
        Some(uri) if uri.contains("://") => {
            return Err(fault(name, format!("`{uri}`: the publisher reads a folder; pack the schemas beside it")));
        }
        Some(folder) => Registry::with_folder(Path::new(folder)),
        None => Registry::built_in(),
    };
    registry.map_err(|error| fault(name, error))
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
        assert!(refusal("IP_ANONYMISE", "some").starts_with("IP_ANONYMISE: "));
    }
}
