//! Tokens that are renewed by their age when a request asks for one.
//!
//! google-cloud-auth renews from a task that sleeps until a token is about to expire. Between the requests of a function
//! there is no CPU, so that sleep ends late: the first request after a pause would carry a token that has expired.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use google_cloud_auth::credentials::{CacheableResource, CredentialsProvider, EntityTag};
use google_cloud_gax::error::CredentialsError;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};
use tokio::sync::Mutex;

use crate::clock::{Clock, Micros, SECOND};

/// The longest time before its expiry at which a token is renewed; a short-lived one is renewed after nine tenths of its
/// life.
const MAX_SLACK: Micros = 240 * SECOND;
/// How long a renewal that failed is left alone while the token is still good.
const PAUSE: Micros = SECOND;

/// A token and its end.
pub struct Issued {
    /// The headers that carry it.
    pub headers: HeaderMap,
    /// From here on it is refused.
    pub expires_at: Micros,
}

impl Issued {
    /// A bearer token.
    pub fn bearer(token: &str, expires_at: Micros) -> Result<Self, TokenError> {
        let header = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut header = header.map_err(|_| TokenError::lasting("the token issued is no text for a header".into()))?;
        header.set_sensitive(true);
        Ok(Self { headers: HeaderMap::from_iter([(AUTHORIZATION, header)]), expires_at })
    }
}

/// Why there is no token. The reason holds no secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct TokenError {
    /// Another try may succeed.
    pub transient: bool,
    /// What was said, by whom.
    pub reason: String,
}

impl TokenError {
    pub(super) fn lasting(reason: String) -> Self {
        Self { transient: false, reason }
    }
}

/// Where tokens come from.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// Asks for a new token.
    async fn issue(&self) -> Result<Issued, TokenError>;
}

/// The tokens of a source, each used for as long as it is young enough.
pub struct ByAge<S> {
    source: S,
    clock: Clock,
    state: RwLock<State>,
    /// Whoever holds it renews.
    renewal: Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failed: Option<(Micros, TokenError)>,
}

#[derive(Clone)]
struct Held {
    headers: HeaderMap,
    tag: EntityTag,
    renew_at: Micros,
    expires_at: Micros,
}

impl<S: TokenSource> ByAge<S> {
    /// Nothing is asked for until the first request needs it.
    pub fn new(source: S, clock: Clock) -> Self {
        Self { source, clock, state: RwLock::default(), renewal: Mutex::new(()) }
    }

    /// A token that is good now.
    ///
    /// One request renews; the others go on with the token there is, or wait and share the outcome where there is none.
    async fn current(&self) -> Result<Held, TokenError> {
        let asked_at = self.clock.now();
        if let Some(held) = self.held(|held| asked_at < held.renew_at) {
            return Ok(held);
        }
        let (_turn, waited) = match self.renewal.try_lock() {
            Ok(turn) => (turn, false),
            Err(_) => match self.held(|held| asked_at < held.expires_at) {
                Some(held) => return Ok(held),
                None => (self.renewal.lock().await, true),
            },
        };
        if let Some(held) = self.held(|held| self.clock.now() < held.renew_at) {
            return Ok(held);
        }
        if waited && let Some(error) = self.failed_since(asked_at) {
            return Err(error);
        }
        self.renew().await
    }

    async fn renew(&self) -> Result<Held, TokenError> {
        let asked_at = self.clock.now();
        let issued = self.source.issue().await.map(|issued| Held::new(issued, asked_at));
        let now = self.clock.now();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match issued {
            Ok(held) => {
                *state = State { held: Some(held.clone()), failed: None };
                Ok(held)
            }
            Err(error) => {
                tracing::warn!(reason = error.reason, "no new token for Google Cloud");
                state.failed = Some((now, error.clone()));
                let Some(held) = state.held.as_mut().filter(|held| now < held.expires_at) else { return Err(error) };
                held.renew_at = held.expires_at.min(now + PAUSE);
                Ok(held.clone())
            }
        }
    }

    fn held(&self, suits: impl FnOnce(&Held) -> bool) -> Option<Held> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.held.as_ref().filter(|held| suits(held)).cloned()
    }

    fn failed_since(&self, time: Micros) -> Option<TokenError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.failed.as_ref().filter(|(at, _)| *at >= time).map(|(_, error)| error.clone())
    }
}

impl Held {
    fn new(Issued { headers, expires_at }: Issued, asked_at: Micros) -> Self {
        let life = expires_at.saturating_sub(asked_at);
        let renew_at = expires_at - (life / 10).clamp(0, MAX_SLACK);
        Self { headers, tag: EntityTag::new(), renew_at, expires_at }
    }
}

impl<S: TokenSource> CredentialsProvider for ByAge<S> {
    async fn headers(&self, extensions: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let held = self.current().await.map_err(|error| CredentialsError::from_source(error.transient, error))?;
        if extensions.get::<EntityTag>() == Some(&held.tag) {
            return Ok(CacheableResource::NotModified);
        }
        Ok(CacheableResource::New { entity_tag: held.tag, data: held.headers })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

impl<S> fmt::Debug for ByAge<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByAge")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Issues `token-1`, `token-2`, …, each once it is let through.
    struct Script {
        clock: Clock,
        life: Micros,
        issued: AtomicI64,
        is_down: AtomicBool,
        gate: Semaphore,
    }

    #[async_trait]
    impl TokenSource for Arc<Script> {
        async fn issue(&self) -> Result<Issued, TokenError> {
            let number = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
            self.gate.acquire().await.unwrap().forget();
            if self.is_down.load(Ordering::SeqCst) {
                return Err(TokenError { transient: true, reason: "down".into() });
            }
            Issued::bearer(&format!("token-{number}"), self.clock.now() + self.life)
        }
    }

    struct Fixture {
        script: Arc<Script>,
        tokens: Arc<ByAge<Arc<Script>>>,
    }

    impl Fixture {
        fn start(life: Micros, let_through: usize) -> Self {
            let clock = Clock::manual(0);
            let script = Arc::new(Script {
                clock: clock.clone(),
                life,
                issued: AtomicI64::new(0),
                is_down: AtomicBool::new(false),
                gate: Semaphore::new(let_through),
            });
            Self { tokens: Arc::new(ByAge::new(Arc::clone(&script), clock)), script }
        }

        async fn at(&self, now: Micros) -> Result<String, String> {
            self.script.clock.set(now);
            bearer(&self.tokens).await
        }

        fn asked(&self) -> i64 {
            self.script.issued.load(Ordering::SeqCst)
        }
    }

    async fn bearer(tokens: &ByAge<Arc<Script>>) -> Result<String, String> {
        let CacheableResource::New { data, .. } =
            tokens.headers(Extensions::new()).await.map_err(|error| error.to_string())?
        else {
            return Err("not modified".into());
        };
        Ok(data[AUTHORIZATION].to_str().unwrap().to_string())
    }

    async fn until_asked(fixture: &Fixture, times: i64) {
        while fixture.asked() < times {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_token_is_renewed_a_tenth_of_its_life_before_its_end_but_never_sooner_than_four_minutes() {
        for (life, renewed_at) in [(5 * SECOND, 4_500_000), (3600 * SECOND, 3360 * SECOND)] {
            let fixture = Fixture::start(life, 2);
            assert_eq!(fixture.at(0).await.unwrap(), "Bearer token-1");
            assert_eq!(fixture.at(renewed_at - 1).await.unwrap(), "Bearer token-1");
            assert_eq!(fixture.at(renewed_at).await.unwrap(), "Bearer token-2");
        }
    }

    #[tokio::test]
    async fn a_token_that_expired_while_nothing_ran_is_not_used() {
        let fixture = Fixture::start(5 * SECOND, 2);
        assert_eq!(fixture.at(0).await.unwrap(), "Bearer token-1");
        assert_eq!(fixture.at(3600 * SECOND).await.unwrap(), "Bearer token-2");
    }

    #[tokio::test]
    async fn one_request_renews_while_the_others_use_the_token_that_is_still_good() {
        let fixture = Fixture::start(5 * SECOND, 1);
        fixture.at(0).await.unwrap();
        fixture.script.clock.set(4_600_000);
        let tokens = Arc::clone(&fixture.tokens);
        let renewing = tokio::spawn(async move { bearer(&tokens).await });
        until_asked(&fixture, 2).await;
        for answer in join_all((0..20).map(|_| bearer(&fixture.tokens))).await {
            assert_eq!(answer.unwrap(), "Bearer token-1");
        }
        fixture.script.gate.add_permits(1);
        assert_eq!(renewing.await.unwrap().unwrap(), "Bearer token-2");
        assert_eq!(fixture.asked(), 2);
    }

    #[tokio::test]
    async fn requests_without_a_token_wait_for_one_exchange_and_share_its_outcome() {
        for is_down in [false, true] {
            let fixture = Fixture::start(5 * SECOND, 0);
            fixture.script.is_down.store(is_down, Ordering::SeqCst);
            let waiting: Vec<_> = (0..20)
                .map(|_| {
                    let tokens = Arc::clone(&fixture.tokens);
                    tokio::spawn(async move { bearer(&tokens).await.is_ok() })
                })
                .collect();
            until_asked(&fixture, 1).await;
            fixture.script.gate.add_permits(20);
            for answer in join_all(waiting).await {
                assert_eq!(answer.unwrap(), !is_down);
            }
            assert_eq!(fixture.asked(), 1);
        }
    }

    #[tokio::test]
    async fn a_renewal_that_fails_leaves_the_token_that_is_still_good() {
        let fixture = Fixture::start(100 * SECOND, 9);
        fixture.at(0).await.unwrap();
        fixture.script.is_down.store(true, Ordering::SeqCst);
        assert_eq!(fixture.at(95 * SECOND).await.unwrap(), "Bearer token-1");
        assert_eq!(fixture.at(95 * SECOND + 1).await.unwrap(), "Bearer token-1");
        assert_eq!(fixture.asked(), 2, "the next try waits for its time");
        assert_eq!(fixture.at(99 * SECOND).await.unwrap(), "Bearer token-1");
        assert!(fixture.at(100 * SECOND).await.is_err());
        fixture.script.is_down.store(false, Ordering::SeqCst);
        assert_eq!(fixture.at(101 * SECOND).await.unwrap(), "Bearer token-5");
    }

    #[tokio::test]
    async fn a_client_that_has_the_token_already_is_told_so_and_nothing_prints_it() {
        let fixture = Fixture::start(5 * SECOND, 1);
        let headers = fixture.tokens.headers(Extensions::new()).await.unwrap();
        assert!(!format!("{headers:?} {:?}", fixture.tokens).contains("token-1"));
        let CacheableResource::New { entity_tag, .. } = headers else { panic!("the first time it is new") };
        let mut extensions = Extensions::new();
        extensions.insert(entity_tag);
        assert_eq!(fixture.tokens.headers(extensions).await.unwrap(), CacheableResource::NotModified);
    }
}
