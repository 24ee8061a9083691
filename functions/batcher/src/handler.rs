//! What becomes of a push on each of the three ways in.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use shared::bucket::Location;
use shared::clock::{Clock, Micros};
use shared::dead_letter::{DeadLetter, DeadLetterPublisher, Origin, REPLAY_OF, Reason, reason_of, store_raw};
use shared::decode::{self, Code, Problem, time};
use shared::metrics::Metrics;
use shared::publish::{Attributes, Message, Publisher, publish_one};
use shared::push::{Answer, Push, claim_memory, isolated};
use shared::row::{self, Value};
use shared::schema::{DEAD_LETTER, NotStreamed, Plan, Registry, Schemas, System};
use shared::sink::{Outcome, Sink};
use shared::window::{Limits, Window};
use shared::{encode, event};

use crate::archive::{Archive, Group, Lines};
use crate::table::{Row, Tables};
use crate::{Config, dead_letters};

/// What the batcher works with.
pub struct Deps {
    /// The schemas it knows.
    pub schemas: Arc<Schemas>,
    /// The warehouse.
    pub sink: Arc<dyn Sink>,
    /// The archive; without one `/archive` only acknowledges.
    pub bucket: Option<Location>,
    /// The enriched topic, for what must wait.
    pub enriched: Arc<dyn Publisher>,
    /// The dead-letter topic.
    pub dead_letters: Arc<dyn Publisher>,
    /// Time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

type Objects = Window<Group, Lines, Result<(), String>>;

/// The function, with the windows in which pushes meet.
pub struct Batcher {
    deps: Deps,
    tables: Tables,
    archive: Option<Objects>,
    dead_letter_objects: Option<Objects>,
    dead_letters: DeadLetterPublisher,
}

/// A row of the enriched message, read.
struct Read {
    row: Row,
    event_time: Option<Micros>,
    received_at: Option<Micros>,
}

impl Batcher {
    /// Starts the function; inside a tokio runtime.
    pub fn new(deps: Deps, config: &Config) -> Self {
        let objects = |limits: Limits| {
            let bucket = Archive(deps.bucket.clone()?);
            Some(Window::spawn(limits, move |group: Group, parts: Vec<Lines>| {
                let bucket = bucket.clone();
                async move { vec![bucket.write(&group, &parts).await; parts.len()] }
            }))
        };
        let (topic, metrics) = (Arc::clone(&deps.dead_letters), Arc::clone(&deps.metrics));
        Self {
            dead_letters: DeadLetterPublisher::spawn(
                topic,
                deps.bucket.clone(),
                config.published_dead_letters,
                metrics,
            ),
            archive: objects(config.archive),
            dead_letter_objects: objects(config.dead_letters),
            tables: Tables::new(config, &deps),
            deps,
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.deps.metrics
    }

    /// Whether the warehouse and the archive can be written.
    pub async fn ready(&self) -> Result<(), String> {
        self.deps.sink.ready().await?;
        match &self.deps.bucket {
            Some(bucket) => bucket.ready().await,
            None => Ok(()),
        }
    }

    /// The process is to end: what is held lands at once.
    pub fn hurry(&self) {
        self.tables.hurry();
        self.dead_letters.flush_now();
        for objects in [&self.archive, &self.dead_letter_objects].into_iter().flatten() {
            objects.hurry();
        }
    }

    /// The process ends: the warehouse is free for another.
    pub async fn close(&self) -> Result<(), String> {
        self.deps.sink.close().await
    }

    /// `POST /`: the rows of a pack into their table. What must wait is sent round again alone; what can never land
    /// becomes a dead letter.
    pub async fn rows(&self, body: Bytes) -> Answer {
        let now = self.deps.clock.now();
        let push = match Push::parse(&body) {
            Ok(push) => push,
            Err(problem) => {
                let origin = Origin { stage: "batcher", identity: &[&body], failed_at: now, ..Origin::default() };
                let letter = DeadLetter::new(&origin, Reason::from(&problem), &body);
                return self.dead_letters.publish(vec![letter]).await.into();
            }
        };
        let registry = self.deps.schemas.current().await;
        let plan = match plan_of(&registry, &push) {
            Ok(plan) => plan,
            Err(NotStreamed::Never(reason)) => {
                let origin = origin("batcher", &push, now, None);
                return self.dead_letters.publish(vec![DeadLetter::new(&origin, reason, &push.data)]).await.into();
            }
            Err(NotStreamed::Newer(name)) => return unknown(&name),
        };
        // What it says is in `push`; what follows may wait long.
        drop(body);
        let (read, mut letters) = read_rows(plan, &push, now);
        if let Err(reason) = claim_memory(memory(&push, &read, &letters)) {
            return Answer::TryAgain(reason);
        }
        self.deps.metrics.received.inc_by((read.len() + letters.len()) as u64);
        let (rows, received): (Vec<Row>, Vec<Option<Micros>>) =
            read.into_iter().map(|read| (read.row, read.received_at)).unzip();
        let outcomes = self.tables.append(plan, &rows).await;
        let loaded_at = self.deps.clock.now();

        let mut waiting = Vec::new();
        let mut landed = 0;
        let mut last_reason = String::new();
        let latency = self.deps.metrics.received_to_loaded(loaded_at);
        for ((row, received_at), outcome) in rows.iter().zip(received).zip(outcomes) {
            match outcome {
                Outcome::Done => {
                    landed += 1;
                    if let Some(received_at) = received_at {
                        latency.of(received_at);
                    }
                }
                Outcome::Retry(reason) => {
                    waiting.push(row);
                    last_reason = reason;
                }
                Outcome::Poison(reason) => {
                    // Refused again after a replay, it is another letter: the first one counts as done.
                    let again = push.attributes.get(REPLAY_OF).map(String::as_bytes);
                    // Two rows with one id are two dead letters where their content differs.
                    let content = row.fingerprint.unwrap_or_default().to_be_bytes();
                    let identity = [plan.event_type.as_bytes(), row.id.as_bytes(), &content, again.unwrap_or_default()];
                    let identity = &identity[..3 + usize::from(again.is_some())];
                    let known = origin("warehouse", &push, now, Some(plan));
                    let received_at = received_at.or(known.received_at);
                    let origin = Origin { event_id: Some(&row.id), identity, received_at, ..known };
                    letters.push(DeadLetter::new(&origin, reason, &row.json));
                }
            }
        }
        drop(latency);
        if let Err(reason) = self.dead_letters.publish(letters).await {
            return Answer::TryAgain(reason);
        }
        if waiting.is_empty() {
            return Answer::Settled;
        }
        tracing::warn!(event_type = plan.event_type, landed, waiting = waiting.len(), "rows must wait");
        if waiting.len() == rows.len() {
            return Answer::TryAgain(last_reason);
        }
        let again = publish_one(self.deps.enriched.as_ref(), pack(plan, &waiting, &push.attributes)).await;
        again.map(drop).map_err(|error| error.to_string()).into()
    }

    /// `POST /archive`: the rows of a pack into objects of the bucket.
    pub async fn archive(&self, body: Bytes) -> Answer {
        let Some(objects) = &self.archive else { return Answer::Settled };
        let now = self.deps.clock.now();
        // What is no pack of rows becomes a dead letter on the other subscription of the topic.
        let Ok(push) = Push::parse(&body) else { return Answer::Settled };
        drop(body);
        let registry = self.deps.schemas.current().await;
        let plan = match plan_of(&registry, &push) {
            Ok(plan) => plan,
            Err(NotStreamed::Never(_)) => return Answer::Settled,
            Err(NotStreamed::Newer(name)) => return unknown(&name),
        };
        let mut groups: BTreeMap<Group, Lines> = BTreeMap::new();
        let (read, letters) = read_rows(plan, &push, now);
        if let Err(reason) = claim_memory(memory(&push, &read, &letters)) {
            return Answer::TryAgain(reason);
        }
        for Read { row, event_time, received_at } in read {
            let received_at = received_at.or(push.published_at).unwrap_or(now);
            let (group, time) = Group::of_row(&plan.event_type, event_time, received_at, now);
            let lines = groups.entry(group).or_insert_with(|| Lines { lines: Vec::new(), earliest: time });
            lines.earliest = lines.earliest.min(time);
            lines.lines.push(row.json);
        }
        let rows: usize = groups.values().map(|lines| lines.lines.len()).sum();
        let written = groups.into_iter().map(|(group, lines)| submit(objects, group, lines));
        let written = join_all(written).await.into_iter().collect::<Result<(), String>>();
        if written.is_ok() {
            self.deps.metrics.archived.inc_by(rows as u64);
        }
        written.into()
    }

    /// `POST /dead-letter`: the end of the line. What the table refuses is kept in the bucket alone.
    pub async fn dead_letter(&self, body: Bytes) -> Answer {
        let registry = self.deps.schemas.in_force();
        let Some(plan) = registry.get(DEAD_LETTER) else {
            return Answer::TryAgain("there is no dead_letter schema".into());
        };
        let now = self.deps.clock.now();
        let mut letters = dead_letters::read(plan, &body, now);
        drop(body);
        if let Err(reason) = claim_memory(letters.iter().map(DeadLetter::size).sum()) {
            return Answer::TryAgain(reason);
        }
        for letter in letters.iter_mut().filter(|letter| letter.is_large()) {
            let Some((bucket, raw)) = self.deps.bucket.as_ref().zip(letter.raw_bytes()) else { continue };
            match store_raw(bucket, failed_at(letter, now), raw).await {
                Ok(uri) => letter.move_raw_to(Some(uri)),
                Err(reason) => return Answer::TryAgain(reason),
            }
        }
        let row =
            |letter: &DeadLetter| Row { id: letter.dead_letter_id.clone(), fingerprint: None, json: letter.to_json() };
        let rows: Vec<Row> = letters.iter().map(row).collect();
        let mut groups: BTreeMap<Group, Lines> = BTreeMap::new();
        for (letter, row) in letters.iter().zip(&rows) {
            let failed_at = failed_at(letter, now);
            let lines = groups
                .entry(Group::of_dead_letters(failed_at))
                .or_insert_with(|| Lines { lines: Vec::new(), earliest: failed_at });
            lines.earliest = lines.earliest.min(failed_at);
            lines.lines.push(row.json.clone());
        }
        drop(letters);
        let in_bucket = async {
            let objects = self.dead_letter_objects.as_ref()?;
            let written = groups.into_iter().map(|(group, lines)| submit(objects, group, lines));
            Some(join_all(written).await.into_iter().collect::<Result<(), String>>())
        };
        let (in_bucket, in_table) = futures::future::join(in_bucket, self.tables.append(plan, &rows)).await;
        if let Some(Err(reason)) = in_bucket {
            return Answer::TryAgain(reason);
        }
        for (row, outcome) in rows.iter().zip(in_table) {
            match outcome {
                Outcome::Done => {}
                Outcome::Retry(reason) => return Answer::TryAgain(reason),
                Outcome::Poison(reason) if in_bucket.is_none() => return Answer::TryAgain(reason.detail),
                Outcome::Poison(reason) => {
                    tracing::error!(id = row.id, reason = reason.detail, "dead letter kept in the bucket alone");
                }
            }
        }
        Answer::Settled
    }
}

/// The schema of a pack that can be taken line by line. One of a later version of the schema has to wait until that is
/// known here: a column that is not would be lost.
fn plan_of<'r>(registry: &'r Registry, push: &Push) -> Result<&'r Arc<Plan>, NotStreamed> {
    let never = |problem: &Problem| NotStreamed::Never(Reason::from(problem));
    let Some(name) = push.attributes.get("event_type") else {
        return Err(never(&Problem::new(Code::UnknownType, "a pack of rows needs the attribute event_type")));
    };
    let plan = registry.named(name)?;
    if push.attributes.get("schema_version").is_some_and(|version| plan.is_older_than(version)) {
        return Err(NotStreamed::Newer(name.clone()));
    }
    push.too_long().map_or(Ok(plan), |problem| Err(never(&problem)))
}

fn failed_at(letter: &DeadLetter, now: Micros) -> Micros {
    time::timestamp(&letter.failed_at).unwrap_or(now)
}

/// About how many bytes a push takes while its rows wait: their text, and what is held beside it of each.
fn memory(push: &Push, rows: &[Read], letters: &[DeadLetter]) -> usize {
    /// Id, claim, outcome and places in lists.
    const ROW: usize = 512;
    let rows: usize = rows.iter().map(|read| ROW + read.row.json.len()).sum();
    push.data.len() + rows + letters.iter().map(DeadLetter::size).sum::<usize>()
}

fn unknown(event_type: &str) -> Answer {
    Answer::TryAgain(format!("event type {event_type}, or this version of its schema, is not known here"))
}

async fn submit(objects: &Objects, group: Group, lines: Lines) -> Result<(), String> {
    let (rows, bytes) = (lines.lines.len(), lines.lines.iter().map(Bytes::len).sum());
    objects.submit(group, rows, bytes, lines).await.map_err(|closed| closed.to_string())?
}

fn origin<'a>(stage: &'a str, push: &'a Push, now: Micros, plan: Option<&'a Plan>) -> Origin<'a> {
    let named = push.attributes.get("event_type").map(String::as_str);
    Origin {
        stage,
        event_type: plan.map(|plan| plan.event_type.as_str()).or(named),
        received_at: push.published_at,
        failed_at: now,
        attempts: push.attempt,
        ..Origin::default()
    }
}

/// Reads of the rows of a pack who they are; those that do not tell come back as dead letters. Whether a row is good in
/// all its columns is for the warehouse to say, which decodes it.
fn read_rows(plan: &Plan, push: &Push, now: Micros) -> (Vec<Read>, Vec<DeadLetter>) {
    let mut rows = Vec::new();
    let mut letters = Vec::new();
    let mut row = row::Row::default();
    for (number, line) in push.lines() {
        let mut read = isolated(|| decode::head(plan, line, &mut row)).flatten();
        let is_nameless = plan.system.is_some_and(|system| row.text(system.event_id).is_none());
        if read.is_ok() && row.problems.is_empty() && is_nameless {
            // It gets a name, so it is written anew, whole.
            read = isolated(|| decode::row(plan, line, &mut row)).flatten();
        }
        let fault = match read {
            Ok(()) => reason_of(&row.problems),
            Err(problem) => Some(Reason::from(&problem)),
        };
        if let Some(reason) = fault {
            let event_id = plan.system.and_then(|system| row.text(system.event_id)).filter(|id| event::is_event_id(id));
            let known = origin("batcher", push, now, Some(plan));
            let received_at = plan.system.and_then(|system| row.values.get(system.received_at)?.partition_time());
            let received_at = received_at.or(known.received_at);
            let number = number.to_string();
            let identity = identity_of(push, &number);
            let origin = Origin { event_id, identity: &identity, received_at, ..known };
            letters.push(DeadLetter::new(&origin, reason, line));
            continue;
        }
        let Some(system) = plan.system else { continue };
        let event_time = plan.table.partition.and_then(|partition| row.values.get(partition.column)?.partition_time());
        let received_at = row.values.get(system.received_at).and_then(Value::partition_time);
        let given = row.text(system.event_id).map(str::to_string);
        // Of the topic's own id alone: table and archive have it from two subscriptions, and are to call it the same.
        let derived = || event::derived_id(&[push.message_id.as_bytes(), number.to_string().as_bytes()]);
        let id = given.unwrap_or_else(derived);
        let (fingerprint, json) = match row.values.get(system.fingerprint) {
            Some(Value::Int(fingerprint)) if !is_nameless => (*fingerprint, push.data.slice_ref(line)),
            _ => complete(plan, system, &id, line, &mut row)
                .unwrap_or_else(|| (event::fingerprint(line), push.data.slice_ref(line))),
        };
        rows.push(Read { row: Row { id, fingerprint: Some(fingerprint), json }, event_time, received_at });
    }
    (rows, letters)
}

/// Writes a row anew that lacks its id or its fingerprint. `None`: the warehouse will refuse it.
fn complete<'a>(plan: &Plan, system: System, id: &str, line: &'a [u8], row: &mut row::Row<'a>) -> Option<(i64, Bytes)> {
    decode::row(plan, line, row).ok().filter(|()| row.problems.is_empty())?;
    row.set(system.event_id, Value::Text(id.to_string().into()));
    event::set_fingerprint(plan, row);
    let Some(Value::Int(fingerprint)) = row.values.get(system.fingerprint) else { return None };
    let mut json = Vec::new();
    encode::object(&plan.columns, &row.values, &mut json);
    Some((*fingerprint, json.into()))
}

/// What tells a line of a push from every other.
fn identity_of<'a>(push: &'a Push, line_number: &'a str) -> [&'a [u8]; 3] {
    [push.subscription.as_bytes(), push.message_id.as_bytes(), line_number.as_bytes()]
}

/// A message of the enriched topic with those rows of another that must wait.
fn pack(plan: &Plan, rows: &[&Row], of: &Attributes) -> Message {
    let lines: Vec<&[u8]> = rows.iter().map(|row| row.json.as_ref()).collect();
    let mut attributes = Attributes::from([
        ("event_type".to_string(), plan.event_type.clone()),
        ("rows".to_string(), rows.len().to_string()),
        ("schema_version".to_string(), plan.version.clone()),
    ]);
    attributes.extend(of.get(REPLAY_OF).map(|letter| (REPLAY_OF.to_string(), letter.clone())));
    Message { data: lines.join(&b'\n').into(), attributes }
}
