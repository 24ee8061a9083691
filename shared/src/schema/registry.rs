//! The schemas at hand: the built-in ones and those loaded beside them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::compile::{SchemaError, compile};
use super::plan::{Ingest, Plan};

/// The schema files that are part of the binary, every one of `shared/schemas/`: name and text.
const BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/schemas.rs"));

/// The event type of an event that names none.
pub const DEFAULT_TYPE: &str = "clickstream";
/// The event type of dead letters.
pub const DEAD_LETTER: &str = "dead_letter";

/// Plans by event type.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    plans: BTreeMap<String, Arc<Plan>>,
}

impl Registry {
    /// The built-in schemas.
    pub fn built_in() -> Result<Self, SchemaError> {
        let mut registry = Self::default();
        for (file, text) in BUILT_IN {
            registry.add(file, text)?;
        }
        Ok(registry)
    }

    /// The built-in schemas and every `*.json` of a folder, read in the order of their names.
    pub fn with_folder(folder: &Path) -> Result<Self, SchemaError> {
        let mut registry = Self::built_in()?;
        let unreadable = |path: &Path, error: std::io::Error| SchemaError {
            file: path.display().to_string(),
            field: "the file".into(),
            reason: error.to_string(),
        };
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

    /// Compiles one schema file and adds it; a type or table that is there already is refused.
    pub fn add(&mut self, file: &str, text: &str) -> Result<Arc<Plan>, SchemaError> {
        let plan = Arc::new(compile(file, text)?);
        let refuse = |field: &str, reason: String| SchemaError { file: file.into(), field: field.into(), reason };
        if self.plans.contains_key(&plan.event_type) {
            return Err(refuse("event_type", format!("`{}` is taken by another schema", plan.event_type)));
        }
        let table = plan.table.full_name();
        if let Some(other) = self.plans.values().find(|known| known.table.full_name() == table) {
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

    /// The plan of a type that may come in over a stream: `public` or `stream`.
    pub fn streaming(&self, event_type: &str) -> Option<&Arc<Plan>> {
        self.get(event_type).filter(|plan| matches!(plan.ingest, Ingest::Public | Ingest::Stream))
    }
}
