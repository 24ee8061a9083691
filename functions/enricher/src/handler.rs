//! From one push to rows and dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use shared::bucket::Location;
use shared::clock::{Clock, Micros};
use shared::dead_letter::{DeadLetter, DeadLetterPublisher, Origin, Reason, reason_of};
use shared::decode::{self, Code, time};
use shared::enrich::address::{anonymise_event, anonymise_lines, anonymise_row};
use shared::enrich::{Tables, Warm};
use shared::event::{BodyType, Member};
use shared::metrics::Metrics;
use shared::publish::{Attributes, Message, PUBLIC, PublishError, Publisher, publish_one};
use shared::push::{Answer, Push, claim_memory, isolated};
use shared::row::{Row, Value};
use shared::schema::{Ingest, Plan, Registry, Schemas};
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
    pub schemas: Arc<Schemas>,
    /// The lookups.
    pub lookups: Arc<Warm>,
    /// The enriched topic.
    pub enriched: Arc<dyn Publisher>,
    /// The dead-letter topic.
    pub dead_letters: Arc<dyn Publisher>,
    /// Where the raw text of large dead letters goes, and where it is remembered when an event without a time was first
    /// seen. Without one every attempt at such an event gets a time of its own.
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
    /// By event type and version of its schema: a message holds rows of one.
    packer: Window<(String, String), Part, Result<(), PublishError>>,
    dead_letters: DeadLetterPublisher,
}

/// Rows of one type from one push: NDJSON without a last line end.
struct Part {
    plan: Arc<Plan>,
    rows: usize,
    data: Vec<u8>,
}

/// What a push comes to, by event type.
type Parts = BTreeMap<String, Vec<Part>>;

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
        let (topic, metrics) = (Arc::clone(&deps.dead_letters), Arc::clone(&deps.metrics));
        let dead_letters = DeadLetterPublisher::spawn(topic, deps.bucket.clone(), config.pack, metrics);
        Self { deps, config, packer, dead_letters }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.deps.metrics
    }

    /// The process is to end: what is held is published at once.
    pub fn hurry(&self) {
        self.packer.hurry();
        self.dead_letters.flush_now();
    }

    /// Handles the body of one push. It answers only after every event in it is on a topic.
    pub async fn push(&self, body: Bytes) -> Answer {
        let now = self.deps.clock.now();
        let push = match Push::parse(&body) {
            Ok(push) => push,
            Err(problem) => {
                let origin = Origin { stage: STAGE, identity: &[&body], failed_at: now, ..Origin::default() };
                let letter = DeadLetter::new(&origin, Reason::from(&problem), &body);
                return self.publish(Parts::new(), vec![letter]).await.into();
            }
        };
        // `push` holds what the body said.
        drop(body);
        let (tables, registry) = (self.deps.lookups.tables().await, self.deps.schemas.current().await);
        self.deps.metrics.received.inc_by(push.lines().count() as u64);
        let work = Enrichment {
            config: &self.config,
            registry: &registry,
            tables: &tables,
            push: &push,
            now,
            remembers: self.deps.bucket.is_some(),
        };
        let Enriched { mut parts, mut letters, undated } = work.run();
        if let Err(reason) = claim_memory(push.data.len() + size(&parts, &letters)) {
            return Answer::TryAgain(reason);
        }
        if let Some(bucket) = self.deps.bucket.as_ref().filter(|_| !undated.is_empty()) {
            match first_seen::times(bucket, &undated).await {
                Ok(times) => work.add_dated(undated.into_iter().zip(times), &mut parts, &mut letters),
                Err(reason) => return Answer::TryAgain(reason),
            }
            if let Err(reason) = claim_memory(push.data.len() + size(&parts, &letters)) {
                return Answer::TryAgain(reason);
            }
        }
        // Rows and dead letters hold all that is needed of it.
        drop(push);
        self.publish(parts, letters).await.into()
    }

    /// Publishes the dead letters first: where their topic takes none, no row is published with each redelivery.
    async fn publish(&self, parts: Parts, letters: Vec<DeadLetter>) -> Result<(), String> {
        self.dead_letters.publish(letters).await?;
        // Of a known length: `join_all` then needs no queue for the few there are.
        let parts: Vec<Part> = parts.into_values().flatten().collect();
        join_all(parts.into_iter().map(|part| self.submit(part))).await.into_iter().collect()
    }

    async fn submit(&self, part: Part) -> Result<(), String> {
        let key = (part.plan.event_type.clone(), part.plan.version.clone());
        let (rows, bytes) = (part.rows, part.data.len() + 1);
        let answer = self.packer.submit(key, rows, bytes, part).await;
        answer.map_err(|closed| closed.to_string())?.map_err(|error| error.to_string())
    }
}

/// Bytes of rows and dead letters.
fn size(parts: &Parts, letters: &[DeadLetter]) -> usize {
    let rows: usize = parts.values().flatten().map(|part| part.data.len()).sum();
    rows + letters.iter().map(DeadLetter::size).sum::<usize>()
}

/// What a push comes to.
#[derive(Default)]
struct Enriched<'e> {
    parts: Parts,
    letters: Vec<DeadLetter>,
    /// Events whose time has to be looked up first.
    undated: Vec<Undated<'e>>,
}

/// The work on one push.
struct Enrichment<'e> {
    config: &'e Config,
    registry: &'e Registry,
    tables: &'e Tables,
    push: &'e Push,
    now: Micros,
    /// Whether there is a memory of when events were first seen.
    remembers: bool,
}

impl<'e> Enrichment<'e> {
    /// Splits a push into rows by type, dead letters, and events whose time has to be looked up.
    fn run(&self) -> Enriched<'e> {
        let mut enriched = Enriched::default();
        if let Some(problem) = self.push.too_long() {
            enriched.letters.push(self.whole(Reason::from(&problem)));
            return enriched;
        }
        let named = self.push.attributes.get("event_type").map(|name| self.registry.get(name).ok_or(name));
        if let Some(Ok(plan)) = named
            && let Err(reason) = self.check_allowed(plan)
        {
            enriched.letters.push(self.whole(reason));
            return enriched;
        }
        let Enriched { parts, letters, undated } = &mut enriched;
        let mut row = Row::default();
        for (index, line) in self.push.lines() {
            let number = index.to_string();
            let identity: [&[u8]; 3] =
                [self.push.subscription.as_bytes(), self.push.message_id.as_bytes(), number.as_bytes()];
            let plan = match named {
                Some(Ok(plan)) => Ok(plan),
                Some(Err(name)) => Err((Some(name.clone()).filter(|name| event::is_event_type(name)), unknown_type())),
                None => self.plan_of(line),
            };
            let plan = plan.and_then(|plan| match self.check_length(line) {
                Ok(()) => Ok(plan),
                Err(reason) => Err((Some(plan.event_type.clone()), reason)),
            });
            let plan = match plan {
                Ok(plan) => plan,
                Err((event_type, reason)) => {
                    let given = given_id(line);
                    letters.push(self.letter(event_type.as_deref(), given.as_deref(), &identity, reason, line));
                    continue;
                }
            };
            let decoded = isolated(|| {
                decode_event(plan, line, self.now, &mut row)?;
                let undated = self.undated(plan, index, line, &row);
                if undated.is_none() {
                    self.complete(plan, &identity, &mut row);
                }
                Ok(undated)
            });
            match decoded.unwrap_or_else(|problem| Err(Reason::from(&problem))) {
                Ok(Some(event)) => undated.push(event),
                Ok(None) => self.append(plan, &row, parts),
                Err(reason) => {
                    let given = plan.system.and_then(|system| row.text(system.event_id));
                    let given = given.filter(|id| event::is_event_id(id)).map(str::to_string);
                    letters.push(self.letter(Some(&plan.event_type), given.as_deref(), &identity, reason, line));
                }
            }
        }
        if parts.is_empty() && letters.is_empty() && undated.is_empty() {
            letters.push(self.whole(Reason { code: Code::BadJson, detail: "the message holds no event".into() }));
        }
        enriched
    }

    /// The event, where its time has to be looked up.
    fn undated(&self, plan: &'e Arc<Plan>, index: usize, line: &'e [u8], row: &Row<'_>) -> Option<Undated<'e>> {
        self.remembers.then(|| Undated::of(plan, index, line, row, self.received_by_publisher())).flatten()
    }

    /// Adds the rows of events whose time is known at last.
    fn add_dated(
        &self,
        events: impl Iterator<Item = (Undated<'e>, Micros)>,
        parts: &mut Parts,
        letters: &mut Vec<DeadLetter>,
    ) {
        let mut row = Row::default();
        for (event, time) in events {
            let Undated { plan, line, .. } = event;
            let number = event.number.to_string();
            let identity = [self.push.subscription.as_bytes(), self.push.message_id.as_bytes(), number.as_bytes()];
            let completed = isolated(|| {
                decode_event(plan, line, self.now, &mut row)?;
                event.set_time(time, &mut row);
                self.complete(plan, &identity, &mut row);
                Ok(())
            });
            match completed.unwrap_or_else(|problem| Err(Reason::from(&problem))) {
                Ok(()) => self.append(plan, &row, parts),
                Err(reason) => {
                    letters.push(self.letter(Some(&plan.event_type), Some(event.id()), &identity, reason, line));
                }
            }
        }
    }

    /// Makes a decoded event the row that it becomes.
    fn complete(&self, plan: &Plan, identity: &[&[u8]], row: &mut Row<'e>) {
        self.tables.enrich(plan, row);
        anonymise_row(self.config.anonymise, plan, row);
        set_system_columns(plan, self.received_at(), identity, row);
    }

    fn append(&self, plan: &Arc<Plan>, row: &Row<'_>, parts: &mut Parts) {
        let of_type = parts.entry(plan.event_type.clone()).or_default();
        append(of_type, plan, row, self.config.pack.rows, self.config.pack.bytes);
    }

    /// The schema of an event whose message names none; the error is the type that it names, and why it can be no row.
    fn plan_of(&self, line: &[u8]) -> Result<&'e Arc<Plan>, (Option<String>, Reason)> {
        match event::type_in_body(self.registry, line) {
            BodyType::Known(plan) => {
                self.check_allowed(plan).map(|()| plan).map_err(|reason| (Some(plan.event_type.clone()), reason))
            }
            BodyType::Unknown(name) => Err((name, unknown_type())),
        }
    }

    /// Whether events of the type may come in by this message.
    fn check_allowed(&self, plan: &Plan) -> Result<(), Reason> {
        match plan.ingest {
            Ingest::Public => Ok(()),
            Ingest::Stream if !self.is_public() => Ok(()),
            Ingest::Stream => {
                let detail = "the type is not taken from a public publisher; publish it to the topic".into();
                Err(Reason { code: Code::TypeNotAllowed, detail })
            }
            Ingest::Batch | Ingest::Internal => {
                Err(Reason { code: Code::TypeNotAllowed, detail: "this type does not come over a stream".into() })
            }
        }
    }

    /// Whether a public publisher passed the message on without knowing its types.
    fn is_public(&self) -> bool {
        let (name, public) = PUBLIC;
        self.push.attributes.get(name).is_some_and(|ingest| ingest == public)
    }

    fn check_length(&self, line: &[u8]) -> Result<(), Reason> {
        let max = self.config.max_event_bytes;
        if line.len() <= max {
            return Ok(());
        }
        Err(Reason { code: Code::TooLarge, detail: format!("{} bytes; an event has {max} at most", line.len()) })
    }

    /// The publisher's clock, else the topic's.
    fn received_at(&self) -> Micros {
        self.received_by_publisher().or(self.push.published_at).unwrap_or(self.now)
    }

    fn received_by_publisher(&self) -> Option<Micros> {
        self.push.attributes.get("received_at").and_then(|text| time::timestamp(text).ok())
    }

    /// The dead letter of a whole message.
    fn whole(&self, reason: Reason) -> DeadLetter {
        let identity: [&[u8]; 2] = [self.push.subscription.as_bytes(), self.push.message_id.as_bytes()];
        let origin = self.origin(self.push.attributes.get("event_type").map(String::as_str), None, &identity);
        let raw = anonymise_lines(self.config.anonymise, |key| self.registry.is_address_key(key), &self.push.data);
        DeadLetter::new(&origin, reason, &raw)
    }

    /// The dead letter of an event: under the id that its row would have had, so that a replay has it too.
    fn letter(
        &self,
        event_type: Option<&str>,
        event_id: Option<&str>,
        identity: &[&[u8]],
        reason: Reason,
        line: &[u8],
    ) -> DeadLetter {
        let event_id = event_id.map_or_else(|| event::derived_id(identity), str::to_string);
        let origin = self.origin(event_type, Some(&event_id), identity);
        let raw = anonymise_event(self.config.anonymise, |key| self.registry.is_address_key(key), line);
        DeadLetter::new(&origin, reason, raw.as_deref().unwrap_or(line))
    }

    fn origin<'o>(
        &self,
        event_type: Option<&'o str>,
        event_id: Option<&'o str>,
        identity: &'o [&'o [u8]],
    ) -> Origin<'o> {
        Origin {
            stage: STAGE,
            event_type,
            event_id,
            identity,
            received_at: Some(self.received_at()),
            failed_at: self.now,
            attempts: self.push.attempt,
            ingest: self.is_public().then_some(PUBLIC.1),
        }
    }
}

fn unknown_type() -> Reason {
    let detail = "no schema has this event_type; the event can be replayed once one has".into();
    Reason { code: Code::UnknownType, detail }
}

/// The id that an event which is not decoded brings along.
fn given_id(line: &[u8]) -> Option<String> {
    match event::member(std::str::from_utf8(line).ok()?, ["event_id", "eventId"]) {
        Ok(Member::Text(id)) if event::is_event_id(&id) => Some(id.into_owned()),
        _ => None,
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
