//! Schemas looked at again by age, on the request path: nothing here needs a timer, and a new type needs no restart.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;

use super::compile::SchemaError;
use super::registry::Registry;
use crate::bucket::{self, Location};
use crate::clock::{Clock, Micros};
use crate::settings::{SettingError, Settings, fault};

/// How old the last look at the files may be.
pub const MAX_AGE: Duration = Duration::from_mins(1);

/// The schemas in force and where they come from.
pub struct Schemas {
    clock: Clock,
    max_age: Micros,
    source: Option<Location>,
    registry: RwLock<Arc<Registry>>,
    checked: Mutex<Checked>,
}

struct Checked {
    at: Micros,
    /// Names, sizes and tags of the files that were read last.
    version: String,
}

impl Schemas {
    /// Schemas that never change.
    pub fn fixed(registry: impl Into<Arc<Registry>>) -> Self {
        Self {
            clock: Clock::manual(0),
            max_age: Micros::MAX,
            source: None,
            registry: RwLock::new(registry.into()),
            checked: Mutex::new(Checked { at: 0, version: String::new() }),
        }
    }

    /// The built-in schemas and the files at `source`. An error names the file that cannot be used.
    pub async fn load(source: Location, clock: Clock, max_age: Micros) -> Result<Self, SchemaError> {
        let version = version(&source).await?;
        let registry = Registry::with_location(&source).await?;
        Ok(Self {
            checked: Mutex::new(Checked { at: clock.now(), version }),
            ..Self::watch(registry, source, clock, max_age)
        })
    }

    /// Schemas that were read before, and are to be looked at again at `source`.
    pub fn watch(registry: impl Into<Arc<Registry>>, source: Location, clock: Clock, max_age: Micros) -> Self {
        let checked = Mutex::new(Checked { at: clock.now(), version: String::new() });
        Self { clock, max_age, source: Some(source), registry: RwLock::new(registry.into()), checked }
    }

    /// The schemas that `SCHEMAS_URI` names, looked at again every `SCHEMAS_MAX_AGE_MS`; else the built-in ones.
    pub async fn read(settings: &Settings, clock: &Clock) -> Result<Self, SettingError> {
        let name = "SCHEMAS_URI";
        let max_age = settings.millis("SCHEMAS_MAX_AGE_MS", MAX_AGE)?;
        let max_age = Micros::try_from(max_age.as_micros()).unwrap_or(Micros::MAX);
        let schemas = match settings.get(name) {
            Some(uri) => {
                let source = bucket::open_for_requests(uri, settings).map_err(|error| fault(name, error))?;
                Self::load(source, clock.clone(), max_age).await
            }
            None => Registry::built_in().map(Self::fixed),
        };
        schemas.map_err(|error| fault(name, error))
    }

    /// The schemas in force, after a look at their source if the last one is older than the maximum age. One request
    /// looks, the others go on with what there is. Files that cannot be used leave the schemas as they were.
    pub async fn current(&self) -> Arc<Registry> {
        if let Some(source) = &self.source
            && let Ok(mut checked) = self.checked.try_lock()
            && self.clock.now() - checked.at >= self.max_age
        {
            checked.at = self.clock.now();
            self.reload(source, &mut checked).await;
        }
        self.in_force()
    }

    /// The schemas in force, without a look at their source.
    pub fn in_force(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reload(&self, source: &Location, checked: &mut Checked) {
        let version = match version(source).await {
            Ok(version) if version == checked.version => return,
            Ok(version) => version,
            Err(error) => return tracing::error!(%error, "schemas not reloaded, those in force stay"),
        };
        match Registry::with_location(source).await {
            Ok(registry) => {
                checked.version = version;
                tracing::info!(types = registry.plans().count(), "schemas reloaded");
                *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
            }
            Err(error) => tracing::error!(%error, "schemas not reloaded, those in force stay"),
        }
    }
}

/// Names, sizes and tags of the schema files at a place.
async fn version(source: &Location) -> Result<String, SchemaError> {
    let files = Registry::files(source).await?.into_iter().map(|file| {
        let tag = file.version.or(file.e_tag).unwrap_or_default();
        format!("{} {} {tag} {}\n", file.location, file.size, file.last_modified)
    });
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::clock::SECOND;

    fn schema(event_type: &str) -> String {
        format!(
            r#"{{"event_type": "{event_type}", "version": "1-0-0", "ingest": "public",
                "table": {{"dataset": "shop", "name": "{event_type}"}}, "columns": [{{"name": "a", "type": "STRING"}}]}}"#
        )
    }

    #[tokio::test]
    async fn a_new_type_is_known_once_the_schemas_are_old_enough_and_broken_files_change_nothing() {
        let store = Arc::new(InMemory::new());
        let put = async |name: &str, text: String| {
            store.put(&Path::from(format!("schemas/{name}.json")), text.into()).await.unwrap();
        };
        put("search", schema("search")).await;
        let source = Location { store: store.clone(), path: Path::from("schemas"), uri: "memory:///schemas".into() };
        let clock = Clock::manual(0);
        let schemas = Schemas::load(source, clock.clone(), 60 * SECOND).await.unwrap();
        let knows = async |name: &str| schemas.current().await.get(name).is_some();
        assert!(knows("search").await && !knows("wish").await);

        put("wish", schema("wish")).await;
        assert!(!knows("wish").await, "not looked at again before their age");
        clock.set(60 * SECOND);
        assert!(knows("wish").await);

        put("broken", "{".into()).await;
        clock.set(120 * SECOND);
        assert!(knows("wish").await, "those in force stay");
        put("broken", schema("mended")).await;
        clock.set(180 * SECOND);
        assert!(knows("mended").await);
    }
}
