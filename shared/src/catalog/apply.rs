//! Asking BigQuery what it has, and giving it what it lacks.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::Value as Json;

use super::client::{ApiError, BigQuery};
use super::diff::{Action, Diff};
use super::wanted::Wanted;

/// Requests under way at once.
const IN_FLIGHT: usize = 8;

/// The documents of what BigQuery has, by their paths in the REST API.
#[derive(Debug, Clone, Default)]
pub struct Found(BTreeMap<String, Json>);

impl Found {
    pub(super) fn get(&self, path: &str) -> Option<&Json> {
        self.0.get(path)
    }
}

impl FromIterator<(String, Json)> for Found {
    fn from_iter<I: IntoIterator<Item = (String, Json)>>(documents: I) -> Self {
        Self(documents.into_iter().collect())
    }
}

impl BigQuery {
    /// What there is of that which is wanted.
    pub async fn read(&self, wanted: &Wanted) -> Result<Found, ApiError> {
        let read = |path: String| async move {
            match self.send(Method::GET, &path, &[], None).await {
                Ok(document) => Ok(Some((path, document))),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        };
        let paths: Vec<_> = wanted.objects.iter().map(|object| object.path.clone()).collect();
        let found: Vec<_> = stream::iter(paths).map(read).buffered(IN_FLIGHT).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Takes the steps of a diff one after another and ends at the first that fails, with the object at fault. What was
    /// done stands, and another diff tells the rest.
    pub async fn apply(&self, diff: &Diff) -> Result<(), (String, ApiError)> {
        for step in &diff.steps {
            let done = match &step.action {
                Action::Insert(path, document) => match self.send(Method::POST, path, &[], Some(document)).await {
                    // There by now: made by a request whose answer was lost, or by somebody else.
                    Err(ApiError::Refused { status: 409, .. }) => Ok(()),
                    done => done.map(drop),
                },
                Action::Patch(path, document) => self.send(Method::PATCH, path, &[], Some(document)).await.map(drop),
                Action::Run(sql) => self.query(sql).await.map(drop),
            };
            done.map_err(|error| (step.object.clone(), error))?;
        }
        Ok(())
    }
}
