//! The schemas at hand: the built-in ones and those loaded beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::compile::{SchemaError, compile};
use super::plan::{Ingest, Plan};
use crate::bucket::Location;
use crate::dead_letter::Reason;
use crate::decode::Code;
use crate::event;
use crate::settings::{SettingError, Settings, fault};

/// The schema files that are part of the binary, every one of `shared/schemas/`: name and text.
const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/schemas.rs"));

/// The event type of an event that names none.
pub const DEFAULT_TYPE: &str = "clickstream";
/// The event type of dead letters.
pub const DEAD_LETTER: &str = "dead_letter";
/// The event type of the rows that tell which dead letters went round again.
pub const DEAD_LETTER_REPLAY: &str = "dead_letter_replay";

/// Plans by event type.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    plans: BTreeMap<String, Arc<Plan>>,
    /// The types that are as they were built in: a file may change each once.
    built_in: BTreeSet<String>,
}

impl Registry {
    /// The built-in schemas.
    pub fn built_in() -> Result<Self, SchemaError> {
        let mut registry = Self::default();
        for (file, text) in BUILT_IN {
            registry.add(file, text)?;
        }
        let changeable = registry.plans().filter(|plan| plan.ingest != Ingest::Internal);
        registry.built_in = changeable.map(|plan| plan.event_type.clone()).collect();
        Ok(registry)
    }

    /// The built-in schemas and every `*.json` of a folder, read in the order of their names.
    pub fn with_folder(folder: &Path) -> Result<Self, SchemaError> {
        let mut registry = Self::built_in()?;
        let unreadable = |path: &Path, error: std::io::Error| unreadable(&path.display().to_string(), &error);
        let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        for path in paths {
            let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
            registry.add(&path.display().to_string(), &text)?;
        }
        Ok(registry)
    }

    /// The built-in schemas and every `*.json` that lies directly at a place, in the order of their names. A place without
    /// any is refused: it is a mistake in its address.
    pub async fn with_location(location: &Location) -> Result<Self, SchemaError> {
        let mut registry = Self::built_in()?;
        for object in Self::files(location).await? {
            let path = object.location;
            let file = format!("{}/{}", location.uri.trim_end_matches('/'), path.filename().unwrap_or_default());
            let object = location.store.get(&path).await.map_err(|error| unreadable(&file, &error))?;
            let bytes = object.bytes().await.map_err(|error| unreadable(&file, &error))?;
            let text = std::str::from_utf8(&bytes).map_err(|error| unreadable(&file, &error))?;
            registry.add(&file, text)?;
        }
        Ok(registry)
    }

    /// The schema files at a place, in the order of their names; there is at least one.
    pub(super) async fn files(location: &Location) -> Result<Vec<ObjectMeta>, SchemaError> {
        let listed = location.store.list_with_delimiter(Some(&location.path)).await;
        let mut files = listed.map_err(|error| unreadable(&location.uri, &error))?.objects;
        files.retain(|object| object.location.extension() == Some("json"));
        files.sort_by(|one, other| one.location.cmp(&other.location));
        if files.is_empty() {
            return Err(unreadable(&location.uri, &"there is no *.json here; give the folder of the schemas"));
        }
        Ok(files)
    }

    /// The built-in schemas and those that `SCHEMAS_URI` names.
    pub async fn read(settings: &Settings) -> Result<Self, SettingError> {
        let name = "SCHEMAS_URI";
        let registry = match settings.get(name) {
            Some(uri) => {
                let location = crate::bucket::open(uri, settings).map_err(|error| fault(name, error))?;
                Self::with_location(&location).await
            }
            None => Self::built_in(),
        };
        registry.map_err(|error| fault(name, error))
    }

    /// Compiles one schema file and adds it. A built-in type takes the form that the file gives it; a type of another
    /// file, of the pipeline itself, or a table of another type is refused.
    pub fn add(&mut self, file: &str, text: &str) -> Result<Arc<Plan>, SchemaError> {
        let plan = Arc::new(compile(file, text)?);
        let refuse = |field: &str, reason: String| SchemaError { file: file.into(), field: field.into(), reason };
        if !self.built_in.remove(&plan.event_type) && self.plans.contains_key(&plan.event_type) {
            return Err(refuse("event_type", format!("`{}` is taken by another schema", plan.event_type)));
        }
        let table = plan.table.full_name();
        if let Some(other) =
            self.plans.values().find(|known| known.event_type != plan.event_type && known.table.full_name() == table)
        {
            return Err(refuse("table", format!("`{table}` belongs to `{}`", other.event_type)));
        }
        self.plans.insert(plan.event_type.clone(), Arc::clone(&plan));
        Ok(plan)
    }

    /// The plan of an event type.
    pub fn get(&self, event_type: &str) -> Option<&Arc<Plan>> {
        self.plans.get(event_type)
    }

    /// All plans, by event type.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.plans.values()
    }

    /// Whether events of any type have a client's address under this key.
    pub fn is_address_key(&self, key: &str) -> bool {
        self.plans().any(|plan| plan.is_address_key(key))
    }

    /// The plan of a type that may come in over a stream: `public` or `stream`.
    pub fn streaming(&self, event_type: &str) -> Option<&Arc<Plan>> {
        self.get(event_type).filter(|plan| matches!(plan.ingest, Ingest::Public | Ingest::Stream))
    }

    /// The plan of the type that the attribute `event_type` of a message names.
    pub fn named(&self, event_type: &str) -> Result<&Arc<Plan>, NotStreamed> {
        if let Some(plan) = self.streaming(event_type) {
            return Ok(plan);
        }
        let never = |code, detail: &str| Err(NotStreamed::Never(Reason { code, detail: detail.to_string() }));
        if self.get(event_type).is_some() {
            return never(Code::TypeNotAllowed, "this type does not come over a stream");
        }
        if !event::is_event_type(event_type) {
            return never(Code::UnknownType, "the attribute event_type could name no schema");
        }
        Err(NotStreamed::Newer(event_type.to_string()))
    }
}

fn unreadable(file: &str, reason: &dyn Display) -> SchemaError {
    SchemaError { file: file.into(), field: "the file".into(), reason: reason.to_string() }
}

/// Why a message of a type cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStreamed {
    /// A newer version may know the type.
    Newer(String),
    /// No version takes it from a stream.
    Never(Reason),
}

#[cfg(all(test, feature = "buckets"))]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;

    fn schema(event_type: &str) -> String {
        let file = BUILT_IN
            .iter()
            .find(|(file, _)| file.starts_with("clickstream"))
            .map(|(_, text)| *text)
            .expect("it is built in");
        let mut schema: serde_json::Value = serde_json::from_str(file).expect("it is JSON");
        schema["event_type"] = event_type.into();
        schema["table"]["name"] = event_type.into();
        schema.to_string()
    }

    #[tokio::test]
    async fn schemas_of_a_bucket_come_beside_those_built_in() {
        let store = Arc::new(InMemory::new());
        let location = Location { store: store.clone(), path: Path::from("schemas"), uri: "gs://b/schemas/".into() };
        let error = Registry::with_location(&location).await.unwrap_err().to_string();
        assert!(error.contains("gs://b/schemas/") && error.contains("no *.json"), "{error}");

        for (path, text) in [
            ("schemas/search.json", schema("search")),
            ("schemas/old/b.json", schema("b")),
            ("schemas/a.md", "#".into()),
        ] {
            store.put(&Path::from(path), text.into()).await.unwrap();
        }
        let registry = Registry::with_location(&location).await.unwrap();
        assert_eq!(registry.plans().count(), BUILT_IN.len() + 1);
        assert!(registry.get("search").is_some());

        store.put(&Path::from("schemas/bad.json"), "{".into()).await.unwrap();
        let error = Registry::with_location(&location).await.unwrap_err().to_string();
        assert!(error.contains("gs://b/schemas/bad.json"), "{error}");
    }
}
