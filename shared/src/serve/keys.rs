//! The public keys that push tokens are signed with.
//!
//! They are fetched on the way of a request: when there are none, when they are older than their source lets them be,
//! and when a token names another. One fetch at a time, and a floor between two, so that tokens of nobody make no load.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::header::CACHE_CONTROL;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::clock::{Clock, Micros, SECOND};

/// Least time between two fetches.
const FLOOR: Micros = 5 * SECOND;
/// How long keys are in force at least and at most, whatever their source says.
const AGES: (Micros, Micros) = (5 * 60 * SECOND, 24 * 3_600 * SECOND);
/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keys by their id, kept from one fetch to the next; a fetch that fails leaves them in force.
pub(super) struct Keys {
    url: String,
    client: reqwest::Client,
    clock: Clock,
    held: RwLock<Held>,
    /// When a fetch was tried last.
    fetching: Mutex<Option<Micros>>,
}

#[derive(Clone, Default)]
struct Held {
    by_id: Arc<HashMap<String, DecodingKey>>,
    fresh_until: Micros,
    /// Whether the last fetch succeeded.
    is_current: bool,
}

/// The key of a token cannot be told: its source could not be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unavailable;

impl Keys {
    /// Nothing is fetched yet.
    pub(super) fn new(url: &str, clock: Clock) -> Result<Self, String> {
        // A kept connection may have died while the process was suspended.
        let client = reqwest::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(0);
        let client = client.redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| error.to_string())?;
        Ok(Self { url: url.to_string(), client, clock, held: RwLock::default(), fetching: Mutex::new(None) })
    }

    /// The key of that id; `None`: the source has no such key.
    pub(super) async fn get(&self, id: &str) -> Result<Option<DecodingKey>, Unavailable> {
        let held = self.held();
        match held.by_id.get(id) {
            Some(key) if self.clock.now() < held.fresh_until => return Ok(Some(key.clone())),
            // Old keys go on while another request fetches new ones.
            Some(key) => match self.fetching.try_lock() {
                Ok(mut fetching) => self.refresh(id, &mut fetching).await,
                Err(_) => return Ok(Some(key.clone())),
            },
            None => self.refresh(id, &mut *self.fetching.lock().await).await,
        }
        let held = self.held();
        match held.by_id.get(id) {
            Some(key) => Ok(Some(key.clone())),
            None if held.is_current => Ok(None),
            None => Err(Unavailable),
        }
    }

    /// Fetches, unless another request has done so meanwhile or it was tried a moment ago.
    async fn refresh(&self, id: &str, tried_at: &mut Option<Micros>) {
        let now = self.clock.now();
        let held = self.held();
        let is_done = held.by_id.contains_key(id) && now < held.fresh_until;
        if is_done || tried_at.is_some_and(|at| now - at < FLOOR) {
            return;
        }
        *tried_at = Some(now);
        let new = match self.fetch().await {
            Ok((by_id, age)) => {
                tracing::info!(keys = by_id.len(), "keys of push tokens fetched");
                Held { by_id: Arc::new(by_id), fresh_until: now + age, is_current: true }
            }
            Err(reason) => {
                tracing::error!(reason, kept = held.by_id.len(), "keys of push tokens not fetched");
                Held { is_current: false, ..held }
            }
        };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    async fn fetch(&self) -> Result<(HashMap<String, DecodingKey>, Micros), String> {
        let fault = |reason: &dyn std::fmt::Display| format!("{}: {reason}", self.url);
        let response = self.client.get(&self.url).send().await.map_err(|error| fault(&error))?;
        let response = response.error_for_status().map_err(|error| fault(&error))?;
        let caching = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let age = max_age(caching).clamp(AGES.0, AGES.1);
        let body = response.bytes().await.map_err(|error| fault(&error))?;
        let keys = parse(&body).map_err(|error| fault(&error))?;
        Ok((keys, age))
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The RSA keys of a JSON Web Key Set (RFC 7517).
fn parse(body: &[u8]) -> Result<HashMap<String, DecodingKey>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Key>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Key {
        kid: String,
        kty: String,
        n: String,
        e: String,
    }
    let set: Set = serde_json::from_slice(body).map_err(|error| format!("not a set of keys: {error}"))?;
    let rsa = set.keys.into_iter().filter(|key| key.kty == "RSA" && !key.kid.is_empty());
    let keys: HashMap<_, _> =
        rsa.filter_map(|key| Some((key.kid, DecodingKey::from_rsa_components(&key.n, &key.e).ok()?))).collect();
    if keys.is_empty() { Err("no RSA key in the set".into()) } else { Ok(keys) }
}

/// `max-age` of a `Cache-Control` header; none is 0.
fn max_age(caching: &str) -> Micros {
    let value = caching.split(',').find_map(|part| part.trim().strip_prefix("max-age="));
    value.and_then(|seconds| seconds.parse::<i64>().ok()).unwrap_or(0).saturating_mul(SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_header() {
        assert_eq!(max_age("public, max-age=19801, must-revalidate, no-transform"), 19_801 * SECOND);
        assert_eq!(max_age("max-age=9223372036854775807"), Micros::MAX);
        for none in ["", "no-store", "max-age=", "max-age=soon"] {
            assert_eq!(max_age(none), 0, "{none}");
        }
    }

    #[test]
    fn only_rsa_keys_are_taken() {
        let set = br#"{"keys": [{"kid": "a", "kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}, {"kty": "RSA", "n": "AQ", "e": "AQAB"},
            {"kid": "b", "kty": "RSA", "n": "AQ", "e": "AQAB", "alg": "RS256", "use": "sig"}, {"kid": "c", "kty": "RSA", "n": "!", "e": "AQAB"}]}"#;
        assert_eq!(parse(set).unwrap().keys().collect::<Vec<_>>(), ["b"]);
        for bad in [&b""[..], b"{}", b"[]", br#"{"keys": []}"#, b"<html>"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
