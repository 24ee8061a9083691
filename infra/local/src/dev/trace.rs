//! The way of one event through the stages: decorators around the ports write down when it passed. Only events that
//! came alone in their message (the page's button) are followed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::clock::{Clock, Micros};
use shared::decode::time::{self, timestamp_text};
use shared::event::{self, Member};
use shared::publish::{Message, PublishError, Publisher};
use shared::push;
use shared::schema;
use shared::sink::{Batch, Outcome, Sink};

use super::latency::Latency;
use super::traffic::Traffic;

/// How many events are remembered.
const REMEMBERED: usize = 1_000;

/// The events followed of late, and how long every event took.
pub struct Traces {
    clock: Clock,
    /// From receipt until a row can be queried, of every row of this process.
    pub received_to_queryable: Latency,
    /// What went over the topics.
    pub traffic: Traffic,
    followed: Mutex<Followed>,
}

#[derive(Default)]
struct Followed {
    traces: HashMap<String, Trace>,
    order: VecDeque<String>,
    in_flight: usize,
}

struct Trace {
    received_at: Micros,
    stages: Vec<(&'static str, Micros)>,
    status: &'static str,
    row: Option<Value>,
}

const IN_FLIGHT: &str = "in_flight";

impl Traces {
    /// Follows nothing yet.
    pub fn new(clock: Clock) -> Self {
        let traffic = Traffic::default();
        Self { clock, received_to_queryable: Latency::new(), traffic, followed: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, message: &Message) {
        if memchr::memchr(b'\n', &message.data).is_some() {
            return;
        }
        let Some(id) = member(&message.data, ["event_id", "eventId"]) else { return };
        let now = self.clock.now();
        let received = message.attributes.get("received_at").and_then(|text| time::timestamp(text).ok());
        let received_at = received.unwrap_or(now);
        let mut state = self.lock();
        if state.traces.contains_key(&id) {
            return;
        }
        let stages = vec![("received", received_at), ("published", now)];
        state.traces.insert(id.clone(), Trace { received_at, stages, status: IN_FLIGHT, row: None });
        state.order.push_back(id);
        state.in_flight += 1;
        if state.order.len() > REMEMBERED
            && let Some(oldest) = state.order.pop_front()
            && let Some(trace) = state.traces.remove(&oldest)
        {
            state.in_flight -= usize::from(trace.status == IN_FLIGHT);
        }
    }

    /// Notes a stage of every followed event among `lines`.
    fn pass<'l>(&self, lines: impl Iterator<Item = &'l [u8]>, stage: &'static str, ends_as: Option<&'static str>) {
        if self.lock().in_flight == 0 {
            return;
        }
        let now = self.clock.now();
        for line in lines {
            let Some(id) = member(line, ["event_id", "event_id"]) else { continue };
            let mut followed = self.lock();
            let Some(trace) = followed.traces.get_mut(&id).filter(|trace| trace.status == IN_FLIGHT) else { continue };
            trace.stages.push((stage, now));
            if let Some(status) = ends_as {
                trace.status = status;
                trace.row = serde_json::from_slice(line).ok();
                followed.in_flight -= 1;
            }
        }
    }

    fn json(&self, id: &str) -> Option<Value> {
        let state = self.lock();
        let trace = state.traces.get(id)?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let millis = |at: Micros| (at - trace.received_at) as f64 / 1_000.0;
        let stages: Vec<_> = trace
            .stages
            .iter()
            .map(|(stage, at)| json!({"stage": stage, "at": timestamp_text(*at), "ms": millis(*at)}))
            .collect();
        Some(json!({"event_id": id, "status": trace.status, "stages": stages, "row": trace.row}))
    }
}

fn member(line: &[u8], names: [&str; 2]) -> Option<String> {
    match event::member(std::str::from_utf8(line).ok()?, names).ok()? {
        Member::Text(text) => Some(text.into_owned()),
        _ => None,
    }
}

/// `GET /api/trace/{event_id}`.
pub fn router(traces: Arc<Traces>) -> Router {
    Router::new().route("/api/trace/{event_id}", get(show)).with_state(traces)
}

async fn show(State(traces): State<Arc<Traces>>, Path(id): Path<String>) -> Response {
    match traces.json(&id) {
        Some(trace) => Json(trace).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({"error": "this event is not followed"}))).into_response(),
    }
}

/// A topic whose messages are noted once they are acknowledged.
pub struct TracedTopic {
    inner: Arc<dyn Publisher>,
    topic: Topic,
    traces: Arc<Traces>,
}

enum Topic {
    Raw,
    Enriched,
    DeadLetter,
}

impl TracedTopic {
    /// Wraps the topic called `name`.
    pub fn new(inner: Arc<dyn Publisher>, name: &str, traces: Arc<Traces>) -> Self {
        let topic = match name {
            super::RAW => Topic::Raw,
            super::ENRICHED => Topic::Enriched,
            _ => Topic::DeadLetter,
        };
        Self { inner, topic, traces }
    }
}

#[async_trait]
impl Publisher for TracedTopic {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let sent = messages.clone();
        let answers = self.inner.publish(messages).await;
        for (message, answer) in sent.iter().zip(&answers) {
            let lines = push::lines(&message.data).map(|(_, line)| line);
            match (&self.topic, answer) {
                (_, Err(_)) => {}
                (Topic::Raw, Ok(_)) => {
                    self.traces.traffic.raw(message, self.traces.clock.now());
                    self.traces.begin(message);
                }
                (Topic::Enriched, Ok(_)) => {
                    self.traces.traffic.enriched(message);
                    self.traces.pass(lines, "enriched", None);
                }
                (Topic::DeadLetter, Ok(_)) => self.traces.pass(lines, "dead_lettered", Some("dead_letter")),
            }
        }
        answers
    }
}

/// A warehouse whose rows are timed once they can be queried.
pub struct TracedSink {
    inner: Arc<dyn Sink>,
    traces: Arc<Traces>,
}

impl TracedSink {
    /// Wraps a warehouse.
    pub fn new(inner: Arc<dyn Sink>, traces: Arc<Traces>) -> Self {
        Self { inner, traces }
    }
}

#[async_trait]
impl Sink for TracedSink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        let outcomes = self.inner.append(batch).await;
        if batch.plan.event_type == schema::DEAD_LETTER {
            return outcomes;
        }
        let now = self.traces.clock.now();
        let landed = || {
            let rows = batch.rows.iter().zip(&outcomes);
            rows.filter(|(_, outcome)| **outcome == Outcome::Done).map(|(row, _): (&Bytes, _)| row.as_ref())
        };
        for row in landed() {
            let received = member(row, ["received_at", "received_at"]).and_then(|text| time::timestamp(&text).ok());
            if let Some(received_at) = received {
                self.traces.received_to_queryable.record(now - received_at);
            }
        }
        self.traces.pass(landed(), "landed", Some("landed"));
        outcomes
    }

    async fn ready(&self) -> Result<(), String> {
        self.inner.ready().await
    }
}
