//! What stands before a function: who may push, how many requests and how many bytes are held at once, and whose trace
//! a line of the log belongs to. It is for POST alone; health, readiness and metrics stay open.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tower::ServiceExt;

use super::auth::PushAuth;
use crate::clock::{Clock, Micros, SECOND};
use crate::push::{MAX_BODY, MemoryPermit, with_permit};
use crate::settings::{SettingError, Settings, fault};
use crate::telemetry::{Trace, traced};

/// As many as one instance of Cloud Run is given at most.
const MAX_CONCURRENT_REQUESTS: usize = 1_000;
/// A function holds a body about four times over (as it came, decoded, as rows, as what is sent): within 128 MiB.
const MAX_HELD_BYTES: u32 = 16 << 20;
/// Paths with room of their own: as many as a function has. Others share the last one's.
const MAX_ROOMS: usize = 3;
/// How long a request waits for others to give room before it is given back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two lines of the log about requests that were given back.
const REPORT_EVERY: Micros = 10 * SECOND;

/// The way into a function.
pub struct Guard {
    auth: PushAuth,
    clock: Clock,
    requests: Arc<Semaphore>,
    rooms: Rooms,
    refused: AtomicU64,
    reported_at: AtomicI64,
}

/// The bytes that may be held, of every path its own: what waits long on one takes no room from another.
struct Rooms {
    bytes: u32,
    of_paths: Mutex<Vec<(String, Arc<Semaphore>)>>,
}

impl Rooms {
    fn of(&self, path: &str) -> Arc<Semaphore> {
        let mut rooms = self.of_paths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, room)) = rooms.iter().find(|(known, _)| known == path) {
            return Arc::clone(room);
        }
        if let Some((_, last)) = rooms.last().filter(|_| rooms.len() >= MAX_ROOMS) {
            return Arc::clone(last);
        }
        let room = Arc::new(Semaphore::new(self.bytes as usize));
        rooms.push((path.to_string(), Arc::clone(&room)));
        room
    }

    /// Waits for room for so many bytes, or for all there is.
    async fn take(&self, room: &Arc<Semaphore>, bytes: u64) -> Result<OwnedSemaphorePermit, StatusCode> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        if let Ok(permit) = Arc::clone(room).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        let permit = timeout(PATIENCE, Arc::clone(room).acquire_many_owned(bytes)).await;
        permit.ok().and_then(Result::ok).ok_or(StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// What a request holds of the bytes that may be held.
type Held = Option<OwnedSemaphorePermit>;

/// A request that was let in, with its share of the bytes that its path may hold.
struct Permit {
    _request: OwnedSemaphorePermit,
    room: Arc<Semaphore>,
    /// All bytes that the path may hold.
    total: u32,
    held: Mutex<Held>,
}

impl MemoryPermit for Permit {
    fn grow_to(&self, bytes: usize) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // A request larger than the whole budget runs alone.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total);
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (bytes as usize).saturating_sub(has);
        let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX)) else {
            return false;
        };
        match &mut *held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        true
    }
}

impl Guard {
    /// As the settings ask for: `PUSH_AUTH` with what belongs to it, `MAX_CONCURRENT_REQUESTS`, `MAX_HELD_BYTES`.
    pub fn read(settings: &Settings, clock: Clock) -> Result<Self, SettingError> {
        let at_least_one = |name: &str| fault(name, "give a number from 1 up");
        let requests = settings.parsed("MAX_CONCURRENT_REQUESTS", MAX_CONCURRENT_REQUESTS)?;
        let max_bytes = settings.parsed("MAX_HELD_BYTES", MAX_HELD_BYTES)?;
        if requests == 0 || requests > Semaphore::MAX_PERMITS {
            return Err(at_least_one("MAX_CONCURRENT_REQUESTS"));
        }
        if max_bytes == 0 {
            return Err(at_least_one("MAX_HELD_BYTES"));
        }
        Ok(Self {
            auth: PushAuth::read(settings, clock.clone())?,
            clock,
            requests: Arc::new(Semaphore::new(requests)),
            rooms: Rooms { bytes: max_bytes, of_paths: Mutex::default() },
            refused: AtomicU64::new(0),
            reported_at: AtomicI64::new(Micros::MIN),
        })
    }

    /// Answers for `router`: see [`Guard::answer`].
    pub fn before(self, router: Router) -> Router {
        let guard = Arc::new(self);
        Router::new().fallback(async move |request: Request| guard.answer(&router, request).await)
    }

    /// Lets `router` answer, if the request may come in and there is room for it.
    ///
    /// 401: not the push account; 413: over 16 MiB; 503: too much at once, or no keys to check a token with.
    pub async fn answer(&self, router: &Router, request: Request) -> Response {
        if request.method() == Method::POST {
            return traced(Trace::of(request.headers()), self.push(router, request)).await;
        }
        call(router, request).await
    }

    async fn push(&self, router: &Router, request: Request) -> Response {
        let Ok(one) = Arc::clone(&self.requests).try_acquire_owned() else { return self.refuse() };
        if let Err(denied) = self.auth.check(request.headers()).await {
            return denied.into_response();
        }
        let room = self.rooms.of(request.uri().path());
        match self.hold(request, &room).await {
            Ok((request, held)) => {
                let permit = Permit { _request: one, room, total: self.rooms.bytes, held: Mutex::new(held) };
                with_permit(Arc::new(permit), call(router, request)).await
            }
            Err(StatusCode::SERVICE_UNAVAILABLE) => self.refuse(),
            Err(status) => status.into_response(),
        }
    }

    /// Waits for room for the body. A body without a length is taken in as it comes.
    async fn hold(&self, request: Request, room: &Arc<Semaphore>) -> Result<(Request, Held), StatusCode> {
        if let Some(length) = request.body().size_hint().exact() {
            let held = self.rooms.take(room, length).await?;
            return Ok((request, Some(held)));
        }
        let (parts, body) = request.into_parts();
        let mut chunks = body.into_data_stream();
        let mut whole = Vec::new();
        let mut held: Held = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
            if whole.len() + chunk.len() > MAX_BODY {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            // A body that fills all the room there is goes on: nothing else is held then.
            let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u64;
            let more = (chunk.len() as u64).min(u64::from(self.rooms.bytes) - has);
            let more = self.rooms.take(room, more).await?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            whole.extend_from_slice(&chunk);
        }
        Ok((Request::from_parts(parts, Body::from(whole)), held))
    }

    /// 503, and by age a line that says how often.
    fn refuse(&self) -> Response {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let (now, before) = (self.clock.now(), self.reported_at.load(Ordering::Relaxed));
        let is_due = now.saturating_sub(before) >= REPORT_EVERY;
        if is_due && self.reported_at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let requests = self.refused.swap(0, Ordering::Relaxed);
            tracing::warn!(requests, "too much at once, to be delivered again");
        }
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

async fn call(router: &Router, request: Request) -> Response {
    router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
}
