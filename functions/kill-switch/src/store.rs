//! Where the state lies, and how it is changed by one of several at a time.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use serde::Deserialize;
use shared::bucket::Location;

use crate::state::{State, VERSION};

/// The object's name.
const FILE: &str = "state.json";
/// How often a change is tried when others change the state at the same time.
const ATTEMPTS: usize = 20;
/// The longest pause between two of them.
const PAUSE_MILLIS: u64 = 200;

/// Why the state cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bucket.
    #[error("{0}: {1}")]
    Store(String, object_store::Error),
    /// The object holds something else.
    #[error("{0} is not the state of a kill-switch: {1}; it is left as it is: move it away to begin anew")]
    Unreadable(String, serde_json::Error),
    /// The object is of a newer form.
    #[error("{0} was written by a newer kill-switch (version {1}, this one knows {VERSION}); deploy that one")]
    Newer(String, u32),
    /// Others change it all the time.
    #[error("{0} changes all the time")]
    Contended(String),
}

/// The state's object.
#[derive(Clone)]
pub struct Store {
    bucket: Arc<dyn ObjectStore>,
    path: Path,
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Store {
    /// The state in a bucket, below the prefix that `location` names. The bucket must replace objects on condition: a
    /// folder does not.
    pub fn new(location: &Location) -> Self {
        let name = format!("{}/{FILE}", location.uri.trim_end_matches('/'));
        Self { bucket: Arc::clone(&location.store), path: location.path.clone().join(FILE), name }
    }

    /// The object's address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state; that of a switch that has heard nothing yet where there is none.
    pub async fn read(&self) -> Result<State, StateError> {
        self.get().await.map(|(state, _)| state)
    }

    /// Changes the state by `change`, which may be called more than once. What `change` answered comes back after the
    /// state stands as it left it.
    pub async fn update<T>(&self, mut change: impl FnMut(&mut State) -> T) -> Result<T, StateError> {
        for _ in 0..ATTEMPTS {
            let (before, version) = self.get().await?;
            let mut state = before.clone();
            let answer = change(&mut state);
            if state == before {
                return Ok(answer);
            }
            let bytes =
                serde_json::to_vec_pretty(&state).map_err(|error| StateError::Unreadable(self.name.clone(), error))?;
            let mode = version.map_or(PutMode::Create, PutMode::Update);
            match self.bucket.put_opts(&self.path, bytes.into(), mode.into()).await {
                Ok(_) => return Ok(answer),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
                Err(error) => return Err(StateError::Store(self.name.clone(), error)),
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=PAUSE_MILLIS))).await;
        }
        Err(StateError::Contended(self.name.clone()))
    }

    async fn get(&self) -> Result<(State, Option<UpdateVersion>), StateError> {
        let fault = |error| StateError::Store(self.name.clone(), error);
        let found = match self.bucket.get(&self.path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok((State::default(), None)),
            found => found.map_err(fault)?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(fault)?;
        let unreadable = |error| StateError::Unreadable(self.name.clone(), error);
        let Version { version: form } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if form > VERSION {
            return Err(StateError::Newer(self.name.clone(), form));
        }
        Ok((serde_json::from_slice(&bytes).map_err(unreadable)?, Some(version)))
    }
}
