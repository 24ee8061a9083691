//! From the body of a request to messages on the raw topic, and back to an answer for each event.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use shared::clock::{Clock, Micros};
use shared::decode::json::{Next, Scanner};
use shared::decode::time::timestamp_text;
use shared::decode::{self, Code, Problem, Problems};
use shared::encode::Splice;
use shared::enrich::ENRICHMENTS;
use shared::enrich::address::{Anonymise, anonymise, anonymise_event};
use shared::event::{self, BodyType, Member};
use shared::publish::{Attributes, MAX_BYTES, MAX_EVENTS, Message, PUBLIC, Publisher, publish_all};
use shared::row::{Row, Value};
use shared::schema::{Column, Ingest, Kind, Mode, Plan, Registry, Schemas};

use crate::synthetic;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// How many problems the answer to a request lists in all; of further ones it tells the number.
const MAX_LISTED_PROBLEMS: usize = 200;

/// What the publisher works with.
pub struct Deps {
    /// The schemas it knows.
    pub schemas: Arc<Schemas>,
    /// The raw topic.
    pub topic: Arc<dyn Publisher>,
    /// Time.
    pub clock: Clock,
    /// What becomes of clients' addresses; dropping is left to the enricher, which needs the network for its lookups.
    pub anonymise: Anonymise,
    /// The largest event that can become a row, in bytes; a larger one becomes a dead letter.
    pub max_event_bytes: usize,
    /// Whether a request without a body stands for one synthetic event.
    pub synthetic_events: bool,
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
    /// How many more problems there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_problems: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
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
/// Where the settings allow it, an empty body without a content type stands for one synthetic event.
pub async fn publish(deps: &Deps, media: Media, body: &[u8], client: Option<IpAddr>) -> Result<Receipt, Refusal> {
    publish_within(deps, MAX_EVENTS, media, body, client).await
}

/// The same for a body of at most `max_events` events.
pub async fn publish_within(
    deps: &Deps,
    max_events: usize,
    media: Media,
    body: &[u8],
    client: Option<IpAddr>,
) -> Result<Receipt, Refusal> {
    let received_at = deps.clock.now();
    if body.is_empty() && media == Media::None && deps.synthetic_events {
        let event = synthetic::one(received_at);
        return send(deps, vec![Ok(event.as_str())], client, received_at).await;
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| Refusal::Malformed(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
    let events = split(media, text, max_events)?;
    if events.len() > max_events {
        return Err(Refusal::TooLarge(format!("over {max_events} events; send less at once")));
    }
    send(deps, events, client, received_at).await
}

/// The text of each event, or why a line of NDJSON is none.
type Part<'a> = Result<&'a str, Problem>;

/// The events of a body. Of more than `max` one more is told, and what follows is not looked at.
fn split(media: Media, text: &str, max: usize) -> Result<Vec<Part<'_>>, Refusal> {
    if text.trim_ascii().is_empty() {
        return Err(Refusal::Malformed("the body is empty; send an object, an array or NDJSON".into()));
    }
    let parts = match (media, split_json(text, max)) {
        (Media::Json | Media::Text | Media::None, Ok(parts)) => parts,
        (Media::Json | Media::None, Err(problem)) => {
            return Err(Refusal::Malformed(format!("broken JSON: {}", position(text, &problem))));
        }
        (Media::Lines, _) | (Media::Text, Err(_)) => split_lines(text, max),
    };
    if parts.is_empty() { Err(Refusal::Malformed("the array holds no event".into())) } else { Ok(parts) }
}

fn split_json(text: &str, max: usize) -> Result<Vec<Part<'_>>, (Problem, usize)> {
    let mut scanner = Scanner::new(text);
    let mut read = || {
        let mut parts = Vec::new();
        if scanner.next_kind()? == Next::Array {
            scanner.open()?;
            while scanner.element(parts.is_empty())? {
                parts.push(Ok(scanner.skip()?));
                if parts.len() > max {
                    return Ok(parts);
                }
            }
        } else {
            parts.push(Ok(scanner.skip()?));
        }
        scanner.end()?;
        Ok(parts)
    };
    read().map_err(|error: decode::json::JsonError| (decode::bad_json(error), error.at))
}

fn split_lines(text: &str, max: usize) -> Vec<Part<'_>> {
    let lines = text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty());
    lines
        .take(max + 1)
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
    /// The type of the message it goes into; none where its type is not known here.
    event_type: Option<&'r str>,
    event_id: String,
    problems: Problems,
    line: Vec<u8>,
}

async fn send(deps: &Deps, parts: Vec<Part<'_>>, client: Option<IpAddr>, now: Micros) -> Result<Receipt, Refusal> {
    let registry = deps.schemas.current().await;
    let mut receipt = Receipt::default();
    let mut ready = Vec::with_capacity(parts.len());
    let mut row = Row::default();
    for (index, part) in parts.into_iter().enumerate() {
        match part.and_then(|event| prepare(deps, &registry, index, event, client, now, &mut row)) {
            Ok(event) => ready.push(event),
            Err(problem) => {
                let message = problem.to_string();
                receipt.rejected.push(Rejected { index, code: problem.code, message });
            }
        }
    }
    let (messages, owners) = pack(deps, &ready, now);
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
    let mut listed = 0;
    for (event, owner) in ready.into_iter().zip(owners) {
        let message_id = message_ids.get(owner).cloned().unwrap_or_default();
        let Ready { index, event_id, problems, .. } = event;
        let total = problems.total();
        let mut problems = problems.into_kept();
        problems.truncate(MAX_LISTED_PROBLEMS - listed);
        listed += problems.len();
        let more_problems = total - problems.len();
        receipt.accepted.push(Accepted { index, event_id, message_id, problems, more_problems });
    }
    Ok(receipt)
}

/// Checks one event against its schema and adds what the client left out. The client's own text stays as it is, but for
/// its address.
fn prepare<'r, 'a>(
    deps: &Deps,
    registry: &'r Registry,
    index: usize,
    event: &'a str,
    client: Option<IpAddr>,
    now: Micros,
    row: &mut Row<'a>,
) -> Result<Ready<'r>, Problem> {
    let plan = match event::type_in_body(registry, event.as_bytes()) {
        BodyType::Known(plan) => plan,
        BodyType::Unknown(_) => return undecoded(deps, registry, index, event, None, unknown_type(), now),
    };
    check_type(deps, plan)?;
    if event.len() > deps.max_event_bytes {
        let problem = too_large(deps, event.len());
        return undecoded(deps, registry, index, event, Some(&plan.event_type), problem, now);
    }
    decode::event(plan, event.as_bytes(), now, row)?;
    if plan.system.is_some_and(|system| row.has_fault(system.event_id)) {
        return Err(Problem::of("event_id", Code::BadEventId, event::EVENT_ID_FORM));
    }
    let without_time = missing_time(plan, row);
    let address = missing_address(deps, plan, row, client);
    let mut problems = std::mem::take(&mut row.problems);

    let mut line = splice(deps, registry, event);
    if line.is_empty() {
        return Err(Problem::new(Code::EmptyEvent, "the event has no member: it says nothing"));
    }
    let given = plan.system.and_then(|system| row.text(system.event_id)).map(str::to_string);
    let event_id = given.unwrap_or_else(|| mint_into(&mut line, now));
    if let Some((column, address)) = address {
        line.add(column, &address);
    }
    if let Some(column) = without_time {
        // The time that the id tells, whatever it is: the same when the event is sent again under that id.
        let time = event::minted_at(&event_id).unwrap_or(now);
        line.add(&column.name, &time_text(&column.kind, time));
        problems.withdraw_missing(&column.name);
        problems.push(Problem::of(&column.name, Code::Defaulted, "not given, so the time of receipt was put in"));
        if let Some(problem) = decode::outside_window(plan, &column.name, time, now) {
            problems.push(problem);
        }
    }
    let line = line.finish();
    if line.len() > deps.max_event_bytes {
        problems.push(too_large(deps, line.len()));
    }
    Ok(Ready { index, event_type: Some(&plan.event_type), event_id, problems, line })
}

/// An event that is not decoded here: it is kept whole and becomes a dead letter, unless the enricher can use it.
fn undecoded<'r>(
    deps: &Deps,
    registry: &Registry,
    index: usize,
    event: &str,
    event_type: Option<&'r str>,
    problem: Problem,
    now: Micros,
) -> Result<Ready<'r>, Problem> {
    let given = match event::member(event, ["event_id", "eventId"]).map_err(decode::bad_json)? {
        Member::Absent => None,
        Member::Text(id) if event::is_event_id(&id) => Some(id.into_owned()),
        _ => return Err(Problem::of("event_id", Code::BadEventId, event::EVENT_ID_FORM)),
    };
    let mut line = splice(deps, registry, event);
    let event_id = given.unwrap_or_else(|| mint_into(&mut line, now));
    Ok(Ready { index, event_type, event_id, problems: problem.into(), line: line.finish() })
}

/// The text of an event to which members are added, without a full address where addresses are anonymised. The enricher
/// needs the network for its lookups, so that is kept in any case.
fn splice(deps: &Deps, registry: &Registry, event: &str) -> Splice {
    let policy = published_addresses(deps.anonymise);
    match anonymise_event(policy, |key| registry.is_address_key(key), event.as_bytes()) {
        Some(changed) => Splice::new(&String::from_utf8_lossy(&changed)),
        None => Splice::new(event),
    }
}

fn mint_into(line: &mut Splice, now: Micros) -> String {
    let minted = event::mint_event_id(now, &event::random_bytes());
    line.add("event_id", &minted);
    minted
}

/// How addresses leave the publisher.
fn published_addresses(policy: Anonymise) -> Anonymise {
    if policy == Anonymise::Off { Anonymise::Off } else { Anonymise::Truncate }
}

fn too_large(deps: &Deps, bytes: usize) -> Problem {
    let message = format!("{bytes} bytes; an event has {} at most", deps.max_event_bytes);
    Problem::new(Code::TooLarge, message)
}

fn unknown_type() -> Problem {
    let message = "names no schema that is known here; unless the enricher knows it, the event becomes a dead letter, \
                   which can be replayed once there is a schema";
    Problem::of("event_type", Code::UnknownType, message)
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
    if row.text(step.from).is_some() || row.has_fault(step.from) {
        return None;
    }
    Some((&column.name, anonymise(published_addresses(deps.anonymise), &client?.to_string())?))
}

/// A time as a partition column of that type takes it.
fn time_text(kind: &Kind, time: Micros) -> String {
    let text = timestamp_text(time);
    match kind {
        Kind::Date => text[..10].to_string(),
        Kind::DateTime => text.trim_end_matches('Z').to_string(),
        _ => text,
    }
}

/// The partition column, where it must hold a time and the event gives none.
fn missing_time<'p>(plan: &'p Plan, row: &Row<'_>) -> Option<&'p Column> {
    let index = plan.table.partition?.column;
    let column = plan.columns.get(index).filter(|column| column.mode == Mode::Required)?;
    let is_missing = row.values.get(index).is_some_and(Value::is_null) && !row.has_fault(index);
    is_missing.then_some(column)
}

/// Packs events into messages of one type, within the limits unless one event alone is larger. Returns each event's message.
fn pack(deps: &Deps, ready: &[Ready<'_>], now: Micros) -> (Vec<Message>, Vec<usize>) {
    struct Pack<'e> {
        event_type: Option<&'e str>,
        events: usize,
        data: Vec<u8>,
    }
    let mut packs: Vec<Pack<'_>> = Vec::new();
    let mut owners = Vec::with_capacity(ready.len());
    for event in ready {
        let fits = |pack: &Pack<'_>| {
            pack.event_type == event.event_type
                && pack.events < MAX_EVENTS
                && pack.data.len() + 1 + event.line.len() <= MAX_BYTES
        };
        let at = packs.iter().rposition(fits).unwrap_or_else(|| {
            packs.push(Pack { event_type: event.event_type, events: 0, data: Vec::new() });
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
    let message = |pack: Pack<'_>| {
        // Of a type that is not known here it was not checked who may send it.
        let unchecked = (deps.stream_types != StreamTypes::All).then_some(PUBLIC);
        let about_type = pack.event_type.map(|event_type| ("event_type", event_type)).or(unchecked);
        let attributes = [("received_at", received_at.as_str()), ("source", "publisher")].into_iter().chain(about_type);
        let attributes = attributes.map(|(name, value)| (name.to_string(), value.to_string()));
        Message { data: pack.data.into(), attributes: attributes.collect::<Attributes>() }
    };
    (packs.into_iter().map(message).collect(), owners)
}
