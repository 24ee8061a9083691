//! Tables kept warm between requests and looked at again by age, on the request path: nothing here needs a timer.

use std::sync::RwLock;

use object_store::{GetResult, ObjectStoreExt};
use tokio::sync::Mutex;

use super::Tables;
use crate::bucket::Location;
use crate::clock::{Clock, Micros};

/// Where the table of one enrichment lies.
pub struct Source {
    /// Name of the enrichment.
    pub enrichment: &'static str,
    /// The object.
    pub place: Location,
}

/// The tables in force and where they come from.
pub struct Warm {
    clock: Clock,
    max_age: Micros,
    sources: Vec<Source>,
    tables: RwLock<Tables>,
    checked: Mutex<Checked>,
}

struct Checked {
    at: Micros,
    /// What the source called the version in force; `None` before the first load.
    versions: Vec<Option<String>>,
}

impl Warm {
    /// Loads every source; enrichments without one use their built-in table. A source that cannot be read is refused
    /// with its address and the reason.
    pub async fn load(sources: Vec<Source>, clock: Clock, max_age: Micros) -> Result<Self, String> {
        let tables = Tables::built_in()?;
        let versions = vec![None; sources.len()];
        let checked = Mutex::new(Checked { at: clock.now(), versions });
        let warm = Self { clock, max_age, sources, tables: RwLock::new(tables), checked };
        let mut state = warm.checked.lock().await;
        for index in 0..warm.sources.len() {
            warm.refresh(index, &mut state).await?;
        }
        drop(state);
        Ok(warm)
    }

    /// The tables in force, after a look at sources that were last looked at longer than the maximal age ago. One
    /// request looks, the others go on with what there is. A source that cannot be read leaves its table in force.
    pub async fn tables(&self) -> Tables {
        if let Ok(mut state) = self.checked.try_lock()
            && self.clock.now() - state.at >= self.max_age
        {
            state.at = self.clock.now();
            for index in 0..self.sources.len() {
                if let Err(reason) = self.refresh(index, &mut state).await {
                    tracing::error!(reason, "lookup not reloaded, the table in force stays");
                }
            }
        }
        self.tables.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn refresh(&self, index: usize, state: &mut Checked) -> Result<(), String> {
        let Some((source, known)) = self.sources.get(index).zip(state.versions.get_mut(index)) else { return Ok(()) };
        let fault = |reason: String| format!("{} ({}): {reason}", source.place.uri, source.enrichment);
        if known.is_some() {
            let meta = source.place.store.head(&source.place.path).await.map_err(|error| fault(error.to_string()))?;
            if *known == Some(version(&meta)) {
                return Ok(());
            }
        }
        let object: GetResult =
            source.place.store.get(&source.place.path).await.map_err(|error| fault(error.to_string()))?;
        let new = version(&object.meta);
        let bytes = object.bytes().await.map_err(|error| fault(error.to_string()))?;
        // A broken version is not tried again until the source changes once more.
        let is_reload = known.replace(new).is_some();
        let mut tables = self.tables.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        tables.replace(source.enrichment, &bytes).map_err(fault)?;
        *self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner) = tables;
        tracing::info!(enrichment = source.enrichment, bytes = bytes.len(), is_reload, "lookup loaded");
        Ok(())
    }
}

fn version(meta: &object_store::ObjectMeta) -> String {
    let tag = meta.version.as_deref().or(meta.e_tag.as_deref()).unwrap_or_default();
    format!("{tag} {} {}", meta.size, meta.last_modified)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::clock::SECOND;

    const TEN: &str = "first_octet,country,city\n8,US,Monroe\n";

    async fn country(warm: &Warm) -> String {
        let tables = warm.tables().await;
        tables.0[0].find(Some("8.8.8.8")).1[0].to_string()
    }

    #[tokio::test]
    async fn a_changed_source_is_reloaded_by_age_and_a_broken_one_is_not() {
        let store = Arc::new(InMemory::new());
        let path = Path::from("geo.csv");
        let put = |text: &'static str| {
            let (store, path) = (Arc::clone(&store), path.clone());
            async move { store.put(&path, text.into()).await.unwrap() }
        };
        put(TEN).await;
        let clock = Clock::manual(0);
        let place = Location { store: store.clone(), path: path.clone(), uri: "memory:///geo.csv".into() };
        let source = Source { enrichment: "geo", place };
        let warm = Warm::load(vec![source], clock.clone(), 10 * SECOND).await.unwrap();
        assert_eq!(country(&warm).await, "US");

        put("first_octet,country,city\n8,FR,Paris\n").await;
        assert_eq!(country(&warm).await, "US", "not looked at again before its age");
        clock.set(10 * SECOND);
        assert_eq!(country(&warm).await, "FR");

        put("first_octet,country,city\nx,DE,Berlin\n").await;
        clock.set(20 * SECOND);
        assert_eq!(country(&warm).await, "FR", "the old table stays");

        put("first_octet,country,city\n8,DE,Berlin\n").await;
        clock.set(30 * SECOND);
        assert_eq!(country(&warm).await, "DE");
    }

    #[tokio::test]
    async fn a_broken_table_is_refused_at_start() {
        let store = Arc::new(InMemory::new());
        let path = Path::from("geo.csv");
        store.put(&path, "first_octet,country,city\n8,US\n".into()).await.unwrap();
        let source = Source { enrichment: "geo", place: Location { store, path, uri: "memory:///geo.csv".into() } };
        let error = Warm::load(vec![source], Clock::manual(0), SECOND).await.err().unwrap();
        assert!(error.contains("memory:///geo.csv") && error.contains("line 2"), "{error}");
    }
}
