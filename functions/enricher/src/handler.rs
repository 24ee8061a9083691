//! From one push to rows and dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{join_all, try_join};
use shared::bucket::Location;
use shared::clock::{Clock, Micros};
use shared::dead_letter::{DeadLetter, Origin, Reason, bury, reason_of};
use shared::decode::{self, Code, time};
use shared::enrich::address::anonymise_row;
use shared::enrich::{Tables, Warm};
use shared::metrics::Metrics;
use shared::publish::{Attributes, Message, PublishError, Publisher, publish_one};
use shared::push::{Answer, Push};
use shared::row::{Row, Value};
use shared::schema::{NotStreamed, Plan, Registry};
use shared::window::Window;
use shared::{encode, event};
use tokio::time::Instant;

use crate::Config;
use crate::first_seen::{self, Undated};

/// The stage that dead letters name.
const STAGE: &str = "enricher";

/// What the enricher works with.
pub struct Deps {
    /// The schemas it knows.
    pub registry: Arc<Registry>,
    /// The lookups.
    pub lookups: Arc<Warm>,
    /// The enriched topic.
    pub enriched: Arc<dyn Publisher>,
    /// The dead-letter topic.
    pub dead_letters: Arc<dyn Publisher>,
    /// Where it is remembered when an event without a time was first seen; without one every attempt gets its own time.
    pub bucket: Option<Location>,
    /// Time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The function, with the window in which rows of concurrent pushes meet.
pub struct Enricher {
    deps: Deps,
    config: Config,
    packer: Window<String, Part, Result<(), PublishError>>,
}

/// Rows of one type from one push: NDJSON without a last line end.
struct Part {
    plan: Arc<Plan>,
    rows: usize,
    data: Vec<u8>,
}

/// What a push comes to, by event type.
type Parts = BTreeMap<String, Vec<Part>>;

/// Rows, dead letters, and events whose time must be looked up first.
type Enriched<'p> = (Parts, Vec<DeadLetter>, Vec<Undated<'p>>);

impl Enricher {
    /// Starts the function; inside a tokio runtime.
    pub fn new(deps: Deps, config: Config) -> Self {
        let (topic, metrics) = (Arc::clone(&deps.enriched), Arc::clone(&deps.metrics));
        let packer = Window::spawn(config.pack, move |_, parts: Vec<Part>| {
            let (topic, metrics) = (Arc::clone(&topic), Arc::clone(&metrics));
            async move {
                let (count, rows) = (parts.len(), parts.iter().map(|part| part.rows).sum::<usize>());
                let started = Instant::now();
                let answer = publish_one(topic.as_ref(), pack(parts)).await.map(drop);
                metrics.append(rows, started.elapsed());
                if answer.is_ok() {
                    metrics.landed.inc_by(rows as u64);
                }
                vec![answer; count]
            }
        });
        Self { deps, config, packer }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.deps.metrics
    }

    /// The process is to end: what is held is published at once.
    pub fn hurry(&self) {
        self.packer.hurry();
    }

    /// Handles the body of one push. It answers only after every event in it is on a topic.
    pub async fn push(&self, body: &[u8]) -> Answer {
        let now = self.deps.clock.now();
        let push = match Push::parse(body) {
            Ok(push) => push,
            Err(problem) => {
                let origin = Origin { stage: STAGE, identity: &[body], failed_at: now, ..Origin::default() };
                let letter = DeadLetter::new(&origin, Reason::from(&problem), body);
                return self.settle(Parts::new(), vec![letter]).await;
            }
        };
        let tables = self.deps.lookups.tables().await;
        self.deps.metrics.received.inc_by(push.lines().count() as u64);
        let (mut parts, letters, undated) = match self.enrich(&push, &tables, now) {
            Ok(enriched) => enriched,
            Err(try_again) => return Answer::TryAgain(try_again),
        };
        if let Some(bucket) = self.deps.bucket.as_ref().filter(|_| !undated.is_empty()) {
            match first_seen::times(bucket, &undated).await {
                Ok(times) => self.add_dated(&push, &tables, now, undated.into_iter().zip(times), &mut parts),
                Err(try_again) => return Answer::TryAgain(try_again),
            }
        }
        self.settle(parts, letters).await
    }

    /// Adds the rows of events whose time is known at last.
    fn add_dated<'p>(
        &self,
        push: &Push,
        tables: &Tables,
        now: Micros,
        events: impl Iterator<Item = (Undated<'p>, Micros)>,
        parts: &mut Parts,
    ) {
        let received_at = received_at(push).unwrap_or(now);
        let mut row = Row::default();
        for (Undated { plan, number, line, .. }, time) in events {
            // It was decoded before, so it is good.
            if let (Ok(()), Some(partition)) = (decode_event(plan, line, now, &mut row), plan.table.partition) {
                row.set(partition.column, Value::Timestamp(time));
                let number = number.to_string();
                let identity = [push.subscription.as_bytes(), push.message_id.as_bytes(), number.as_bytes()];
                self.add(tables, plan, received_at, &identity, &mut row, parts);
            }
        }
    }

    /// Adds the row of a decoded event.
    fn add<'t>(
        &self,
        tables: &'t Tables,
        plan: &Arc<Plan>,
        received_at: Micros,
        identity: &[&[u8]],
        row: &mut Row<'t>,
        parts: &mut Parts,
    ) {
        tables.enrich(plan, row);
        anonymise_row(self.config.anonymise, plan, row);
        set_system_columns(plan, received_at, identity, row);
        let of_type = parts.entry(plan.event_type.clone()).or_default();
        append(of_type, plan, row, self.config.pack.rows, self.config.pack.bytes);
    }

    /// Splits a push into rows by type and dead letters; the error is a push that a newer version may understand.
    fn enrich<'p>(&'p self, push: &'p Push, tables: &'p Tables, now: Micros) -> Result<Enriched<'p>, String> {
        let by_publisher = received_by_publisher(push);
        let received_at = received_at(push).unwrap_or(now);
        let remembers = self.deps.bucket.is_some();
        let mut undated = Vec::new();
        let mut letters = Vec::new();
        let mut parts = Parts::new();
        let whole = |reason: Reason| {
            let identity: &[&[u8]] = &[push.subscription.as_bytes(), push.message_id.as_bytes()];
            let event_type = push.attributes.get("event_type").map(String::as_str);
            let received_at = Some(received_at);
            let attempts = push.attempt;
            let origin =
                Origin { stage: STAGE, event_type, event_id: None, identity, received_at, failed_at: now, attempts };
            DeadLetter::new(&origin, reason, &push.data)
        };
        let name = push.attributes.get("event_type");
        let named = match name.map(|name| self.deps.registry.named(name)).transpose() {
            Ok(named) => named,
            Err(NotStreamed::Newer(name)) => return Err(format!("event type {name} is not known to this version")),
            Err(NotStreamed::Never(reason)) => return Ok((parts, vec![whole(reason)], undated)),
        };
        if let Some(problem) = push.too_long() {
            return Ok((parts, vec![whole(Reason::from(&problem))], undated));
        }
        let mut row = Row::default();
        for (index, line) in push.lines() {
            let plan = match named {
                Some(plan) => plan,
                None => match self.deps.registry.streaming(event::type_in_body(&self.deps.registry, line)) {
                    Some(plan) => plan,
                    None => return Err("there is no clickstream schema".into()),
                },
            };
            let number = index.to_string();
            let identity: [&[u8]; 3] = [push.subscription.as_bytes(), push.message_id.as_bytes(), number.as_bytes()];
            match decode_event(plan, line, now, &mut row) {
                Ok(()) => match remembers.then(|| Undated::of(plan, index, line, &row, by_publisher)).flatten() {
                    Some(event) => undated.push(event),
                    None => self.add(tables, plan, received_at, &identity, &mut row, &mut parts),
                },
                Err(reason) => {
                    // The id that the row would have had, so that a replay has it too.
                    let given = plan.system.and_then(|system| row.text(system.event_id));
                    let given = given.filter(|id| event::is_event_id(id));
                    let event_id = given.map_or_else(|| event::derived_id(&identity), str::to_string);
                    let origin = Origin {
                        stage: STAGE,
                        event_type: Some(&plan.event_type),
                        event_id: Some(&event_id),
                        identity: &identity,
                        received_at: Some(received_at),
                        failed_at: now,
                        attempts: push.attempt,
                    };
                    letters.push(DeadLetter::new(&origin, reason, line));
                }
            }
        }
        if parts.is_empty() && letters.is_empty() && undated.is_empty() {
            letters.push(whole(Reason { code: Code::BadJson, detail: "the message holds no event".into() }));
        }
        Ok((parts, letters, undated))
    }

    async fn settle(&self, parts: Parts, letters: Vec<DeadLetter>) -> Answer {
        // Of a known length: `join_all` then needs no queue for the few there are.
        let parts: Vec<Part> = parts.into_values().flatten().collect();
        let rows = join_all(parts.into_iter().map(|part| self.submit(part)));
        let rows = async { rows.await.into_iter().collect::<Result<(), String>>() };
        let letters = bury(&letters, self.deps.dead_letters.as_ref(), &self.deps.metrics);
        try_join(rows, letters).await.map(drop).into()
    }

    async fn submit(&self, part: Part) -> Result<(), String> {
        let (key, rows, bytes) = (part.plan.event_type.clone(), part.rows, part.data.len() + 1);
        let answer = self.packer.submit(key, rows, bytes, part).await;
        answer.map_err(|closed| closed.to_string())?.map_err(|error| error.to_string())
    }
}

/// Decodes one event; the error is why it can never be a row.
fn decode_event<'a>(plan: &Plan, line: &'a [u8], now: Micros, row: &mut Row<'a>) -> Result<(), Reason> {
    decode::event(plan, line, now, row).map_err(|problem| Reason::from(&problem))?;
    reason_of(&row.problems).map_or(Ok(()), Err)
}

fn set_system_columns(plan: &Plan, received_at: Micros, identity: &[&[u8]], row: &mut Row<'_>) {
    let Some(system) = plan.system else { return };
    if row.text(system.event_id).is_none() {
        row.set(system.event_id, Value::Text(event::derived_id(identity).into()));
    }
    row.set(system.received_at, Value::Timestamp(received_at));
    row.set(system.schema_version, Value::Text(plan.version.clone().into()));
    event::set_fingerprint(plan, row);
}

/// The publisher's clock, else the topic's.
fn received_at(push: &Push) -> Option<Micros> {
    received_by_publisher(push).or(push.published_at)
}

fn received_by_publisher(push: &Push) -> Option<Micros> {
    push.attributes.get("received_at").and_then(|text| time::timestamp(text).ok())
}

/// Adds a row to the last part of its type, or to a new one where that is full.
fn append(parts: &mut Vec<Part>, plan: &Arc<Plan>, row: &Row<'_>, max_rows: usize, max_bytes: usize) {
    let is_full = |part: &Part| part.rows >= max_rows || part.data.len() >= max_bytes;
    if parts.last().is_none_or(is_full) {
        parts.push(Part { plan: Arc::clone(plan), rows: 0, data: Vec::new() });
    }
    let Some(part) = parts.last_mut() else { return };
    let before = part.data.len();
    if part.rows > 0 {
        part.data.push(b'\n');
    }
    encode::object(&plan.columns, &row.values, &mut part.data);
    if part.rows > 0 && part.data.len() > max_bytes {
        let line = part.data.split_off(before + 1);
        part.data.truncate(before);
        parts.push(Part { plan: Arc::clone(plan), rows: 1, data: line });
    } else {
        part.rows += 1;
    }
}

/// One message of the enriched topic from the parts of a window.
fn pack(parts: Vec<Part>) -> Message {
    let rows: usize = parts.iter().map(|part| part.rows).sum();
    let mut attributes = Attributes::from([("rows".to_string(), rows.to_string())]);
    if let Some(part) = parts.first() {
        attributes.insert("event_type".into(), part.plan.event_type.clone());
        attributes.insert("schema_version".into(), part.plan.version.clone());
    }
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.data.len() + 1).sum());
    for part in parts {
        if !data.is_empty() {
            data.push(b'\n');
        }
        data.extend_from_slice(&part.data);
    }
    Message { data: Bytes::from(data), attributes }
}
