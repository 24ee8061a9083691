//! From the body of a request to messages on the raw topic, and back to an answer for each event.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use shared::clock::{Clock, Micros};
use shared::decode::json::{Next, Scanner};
use shared::decode::time::timestamp_text;
use shared::decode::{self, Code, Problem};
use shared::encode::Splice;
use shared::enrich::ENRICHMENTS;
use shared::enrich::address::{Anonymise, anonymise};
use shared::event;
use shared::publish::{Attributes, MAX_BYTES, MAX_EVENTS, Message, Publisher, publish_all};
use shared::row::Row;
use shared::schema::{DEFAULT_TYPE, Ingest, Mode, Plan, Registry};

use crate::synthetic;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// How many events of a request may have an id that tells no time, and no time of their own.
const MAX_UNDATED: usize = 10;

/// What the publisher works with.
pub struct Deps {
    /// The schemas it knows.
    pub registry: Arc<Registry>,
    /// The raw topic.
    pub topic: Arc<dyn Publisher>,
    /// Time.
    pub clock: Clock,
    /// How a client's address is added; dropping is left to the enricher, which needs the network for its lookups.
    pub anonymise: Anonymise,
    /// Which types with `ingest: stream` it accepts.
    pub stream_types: StreamTypes,
}

/// Which types with `ingest: stream` a publisher accepts besides those with `ingest: public`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamTypes {
    /// These; none where anyone may publish.
    Only(BTreeSet<String>),
    /// Every one: of a publisher that only its own machine can reach.
    All,
}

impl StreamTypes {
    fn accept(&self, event_type: &str) -> bool {
        match self {
            Self::Only(names) => names.contains(event_type),
            Self::All => true,
        }
    }
}

/// How a body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// No content type: only an empty body has none.
    None,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Lines,
    /// `text/plain`, as `navigator.sendBeacon` sends it: one JSON value, else lines.
    Text,
}

impl Media {
    /// Reads a `Content-Type`.
    pub fn of(content_type: Option<&str>) -> Result<Self, Refusal> {
        let Some(given) = content_type else { return Ok(Self::None) };
        match given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::Lines),
            "text/plain" => Ok(Self::Text),
            _ => Err(Refusal::MediaType(given.chars().take(64).collect())),
        }
    }
}

/// The answer to a request that was read.
#[derive(Debug, Default, Serialize)]
pub struct Receipt {
    /// Events that the raw topic has.
    pub accepted: Vec<Accepted>,
    /// Events that nothing can be done with.
    pub rejected: Vec<Rejected>,
}

/// An event that is kept, whatever its problems.
#[derive(Debug, Serialize)]
pub struct Accepted {
    /// Position in the body.
    pub index: usize,
    /// The client's id, or the one minted for it.
    pub event_id: String,
    /// The message it travels in.
    pub message_id: String,
    /// What breaks its schema (it will be a dead letter) or was filled in.
    pub problems: Vec<Problem>,
}

/// An event that can never be kept.
#[derive(Debug, Serialize)]
pub struct Rejected {
    /// Position in the body.
    pub index: usize,
    /// Stable code.
    pub code: Code,
    /// What is wrong.
    pub message: String,
}

/// An event and the id under which to send it again.
#[derive(Debug, Serialize)]
pub struct Minted {
    /// Position in the body.
    pub index: usize,
    /// Send it again with this id, and it counts once.
    pub event_id: String,
}

/// A request of which nothing is vouched for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The body is not what its content type says.
    #[error("{0}")]
    Malformed(String),
    /// Too many bytes or events.
    #[error("{0}")]
    TooLarge(String),
    /// A content type that is not read.
    #[error("content type `{0}` is not read; send application/json, application/x-ndjson or text/plain")]
    MediaType(String),
    /// The topic did not acknowledge.
    #[error("the topic is not reachable; send the events again with the ids given here")]
    Unreachable {
        /// Every event of the request that can be kept.
        events: Vec<Minted>,
    },
}

/// Publishes the events of a body and answers only when the topic has acknowledged them.
///
/// An empty body without a content type stands for one synthetic event.
pub async fn publish(deps: &Deps, media: Media, body: &[u8], client: Option<IpAddr>) -> Result<Receipt, Refusal> {
    let received_at = deps.clock.now();
    if body.is_empty() && media == Media::None {
        let event = synthetic::one(received_at);
        return send(deps, vec![Ok(event.as_str())], client, received_at).await;
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| Refusal::Malformed(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let events = split(media, text)?;
    if events.len() > MAX_EVENTS {
        let message = format!("{} events; at most {MAX_EVENTS} fit into one request", events.len());
        return Err(Refusal::TooLarge(message));
    }
    send(deps, events, client, received_at).await
}

/// The text of each event, or why a line of NDJSON is none.
type Part<'a> = Result<&'a str, Problem>;

fn split(media: Media, text: &str) -> Result<Vec<Part<'_>>, Refusal> {
    if text.trim_ascii().is_empty() {
        return Err(Refusal::Malformed("the body is empty; send an object, an array or NDJSON".into()));
    }
    let parts = match (media, split_json(text)) {
        (Media::Json | Media::Text | Media::None, Ok(parts)) => parts,
        (Media::Json | Media::None, Err(problem)) => {
            return Err(Refusal::Malformed(format!("broken JSON: {}", position(text, &problem))));
        }
        (Media::Lines, _) | (Media::Text, Err(_)) => split_lines(text),
    };
    if parts.is_empty() { Err(Refusal::Malformed("the array holds no event".into())) } else { Ok(parts) }
}

fn split_json(text: &str) -> Result<Vec<Part<'_>>, (Problem, usize)> {
    let mut scanner = Scanner::new(text);
    let mut read = || {
        let mut parts = Vec::new();
        if scanner.next_kind()? == Next::Array {
            scanner.open()?;
            while scanner.element(parts.is_empty())? {
                parts.push(Ok(scanner.skip()?));
            }
        } else {
            parts.push(Ok(scanner.skip()?));
        }
        scanner.end()?;
        Ok(parts)
    };
    read().map_err(|error: decode::json::JsonError| (decode::bad_json(error), error.at))
}

fn split_lines(text: &str) -> Vec<Part<'_>> {
    let lines = text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut scanner = Scanner::new(line);
            scanner.skip().and_then(|_| scanner.end()).map(|()| line).map_err(decode::bad_json)
        })
        .collect()
}

/// The fault with its line and column, both from 1, besides the byte.
fn position(text: &str, (problem, at): &(Problem, usize)) -> String {
    let before = text.as_bytes().get(..*at).unwrap_or_default();
    let line = before.split(|&byte| byte == b'\n').count();
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    format!("{} (line {line}, column {column})", problem.message)
}

/// An event that is ready to go.
struct Ready<'r> {
    index: usize,
    plan: &'r Plan,
    event_id: String,
    problems: Vec<Problem>,
    line: Vec<u8>,
    /// Neither the event nor its id tells a time: the enricher has to remember when it was first seen.
    is_undated: bool,
}

async fn send(deps: &Deps, parts: Vec<Part<'_>>, client: Option<IpAddr>, now: Micros) -> Result<Receipt, Refusal> {
    let mut receipt = Receipt::default();
    let mut ready = Vec::with_capacity(parts.len());
    let mut undated = 0;
    let mut row = Row::default();
    for (index, part) in parts.into_iter().enumerate() {
        let prepared = part.and_then(|event| prepare(deps, index, event, client, now, &mut row));
        match prepared.and_then(|event| check_undated(event, &mut undated)) {
            Ok(event) => ready.push(event),
            Err(problem) => {
                let message = problem.to_string();
                receipt.rejected.push(Rejected { index, code: problem.code, message });
            }
        }
    }
    let (messages, owners) = pack(&ready, now);
    if messages.is_empty() {
        return Ok(receipt);
    }
    let message_ids = match publish_all(deps.topic.as_ref(), messages).await {
        Ok(message_ids) => message_ids,
        Err(error) => {
            tracing::warn!(%error, events = ready.len(), "publish not acknowledged");
            let minted = |event: Ready<'_>| Minted { index: event.index, event_id: event.event_id };
            return Err(Refusal::Unreachable { events: ready.into_iter().map(minted).collect() });
        }
    };
    for (event, owner) in ready.into_iter().zip(owners) {
        let message_id = message_ids.get(owner).cloned().unwrap_or_default();
        let Ready { index, event_id, problems, .. } = event;
        receipt.accepted.push(Accepted { index, event_id, message_id, problems });
    }
    Ok(receipt)
}

/// Bounds the events of a request for which the enricher has to remember when they were first seen: each costs it an object.
fn check_undated<'r>(event: Ready<'r>, undated: &mut usize) -> Result<Ready<'r>, Problem> {
    *undated += usize::from(event.is_undated);
    match event.plan.partition_column() {
        Some(column) if event.is_undated && *undated > MAX_UNDATED => {
            let message = format!(
                "at most {MAX_UNDATED} events of a request may have an event_id that tells no time and no time either: \
                 send the time, or leave the event_id out"
            );
            Err(Problem::of(&column.name, Code::MissingRequired, message))
        }
        _ => Ok(event),
    }
}

/// Checks one event against its schema and adds what the client left out. The client's own text stays as it is.
fn prepare<'d, 'a>(
    deps: &'d Deps,
    index: usize,
    event: &'a str,
    client: Option<IpAddr>,
    now: Micros,
    row: &mut Row<'a>,
) -> Result<Ready<'d>, Problem> {
    let (plan, unknown_type) = plan_of(&deps.registry, event)?;
    check_type(deps, plan)?;
    decode::event(plan, event.as_bytes(), now, row)?;
    if row.problems.iter().any(|problem| problem.column.as_deref() == Some("event_id")) {
        return Err(Problem::of("event_id", Code::BadEventId, event::EVENT_ID_FORM));
    }
    let without_time = missing_time(plan, row);
    let address = missing_address(deps, plan, row, client);
    let mut problems = std::mem::take(&mut row.problems);
    problems.extend(unknown_type);

    let mut line = Splice::new(event);
    let given = plan.system.and_then(|system| row.text(system.event_id)).map(str::to_string);
    let event_id = given.unwrap_or_else(|| {
        let minted = event::mint_event_id(now, &event::random_bytes());
        line.add("event_id", &minted);
        minted
    });
    if let Some((column, address)) = address {
        line.add(column, &address);
    }
    let mut is_undated = false;
    if let Some(column) = without_time {
        // The time that the id tells: the same when the event is sent again under the id that it was given.
        let accepted = now - plan.accepts.past..=now + plan.accepts.future;
        let told = event::minted_at(&event_id).filter(|at| accepted.contains(at));
        is_undated = told.is_none();
        line.add(column, &timestamp_text(told.unwrap_or(now)));
        problems.retain(|problem| problem.column.as_deref() != Some(column));
        problems.push(Problem::of(column, Code::Defaulted, "not given, so the time of receipt was put in"));
    }
    let line = line.finish();
    if line.len() > MAX_BYTES {
        return Err(Problem::new(Code::TooLarge, format!("the event is over {MAX_BYTES} bytes")));
    }
    Ok(Ready { index, plan, event_id, problems, line, is_undated })
}

/// The schema of an event, and a note where the event names one that is not known.
fn plan_of<'r>(registry: &'r Registry, event: &str) -> Result<(&'r Plan, Option<Problem>), Problem> {
    let named = event::member(event, ["event_type", "eventType"]).map_err(decode::bad_json)?;
    let default = || {
        registry
            .streaming(DEFAULT_TYPE)
            .ok_or_else(|| Problem::new(Code::UnknownType, "there is no clickstream schema"))
    };
    let Some(name) = named else { return Ok((default()?, None)) };
    match registry.get(&name) {
        Some(plan) => Ok((plan, None)),
        None => {
            let message = format!("names no schema, so the event is taken as {DEFAULT_TYPE}");
            Ok((default()?, Some(Problem::of("event_type", Code::UnknownType, message))))
        }
    }
}

/// Whether this publisher accepts events of the type.
fn check_type(deps: &Deps, plan: &Plan) -> Result<(), Problem> {
    let name = &plan.event_type;
    let message = match plan.ingest {
        Ingest::Public => return Ok(()),
        Ingest::Stream if deps.stream_types.accept(name) => return Ok(()),
        Ingest::Stream => format!(
            "events of type `{name}` are not accepted here; send them to the raw topic, or to a publisher whose \
             PUBLISH_TYPES names the type"
        ),
        Ingest::Batch | Ingest::Internal => format!("events of type `{name}` are not taken from outside"),
    };
    Err(Problem::of("event_type", Code::TypeNotAllowed, message))
}

/// The address column, where the client left it empty, with the address it came from.
fn missing_address<'p>(
    deps: &Deps,
    plan: &'p Plan,
    row: &Row<'_>,
    client: Option<IpAddr>,
) -> Option<(&'p str, String)> {
    let step = plan.enrichments.iter().find(|step| ENRICHMENTS[step.enrichment].reads_address)?;
    let column = &plan.columns[step.from];
    let is_at_fault = || row.problems.iter().any(|problem| problem.column.as_deref() == Some(&column.name));
    if row.text(step.from).is_some() || is_at_fault() {
        return None;
    }
    let policy = if deps.anonymise == Anonymise::Off { Anonymise::Off } else { Anonymise::Truncate };
    Some((&column.name, anonymise(policy, &client?.to_string())?))
}

/// The partition column, where it must hold a time and the event gives none.
fn missing_time<'p>(plan: &'p Plan, row: &Row<'_>) -> Option<&'p str> {
    let column = plan.partition_column().filter(|column| column.mode == Mode::Required)?;
    let is_missing =
        |problem: &&Problem| problem.code == Code::MissingRequired && problem.column.as_deref() == Some(&column.name);
    row.problems.iter().find(is_missing).map(|_| column.name.as_str())
}

/// Packs events into messages, each of one type and within the limits; tells for each event which message has it.
fn pack(ready: &[Ready<'_>], now: Micros) -> (Vec<Message>, Vec<usize>) {
    struct Pack<'e> {
        event_type: &'e str,
        events: usize,
        data: Vec<u8>,
    }
    let mut packs: Vec<Pack<'_>> = Vec::new();
    let mut owners = Vec::with_capacity(ready.len());
    for event in ready {
        let fits = |pack: &Pack<'_>| {
            pack.event_type == event.plan.event_type
                && pack.events < MAX_EVENTS
                && pack.data.len() + 1 + event.line.len() <= MAX_BYTES
        };
        let at = packs.iter().rposition(fits).unwrap_or_else(|| {
            packs.push(Pack { event_type: &event.plan.event_type, events: 0, data: Vec::new() });
            packs.len() - 1
        });
        let pack = &mut packs[at];
        if pack.events > 0 {
            pack.data.push(b'\n');
        }
        pack.data.extend_from_slice(&event.line);
        pack.events += 1;
        owners.push(at);
    }
    let received_at = timestamp_text(now);
    let message = |pack: Pack<'_>| Message {
        data: pack.data.into(),
        attributes: Attributes::from([
            ("event_type".to_string(), pack.event_type.to_string()),
            ("received_at".to_string(), received_at.clone()),
            ("source".to_string(), "publisher".to_string()),
        ]),
    };
    (packs.into_iter().map(message).collect(), owners)
}
