//! The end of the line: what comes here is stored, whatever its form, and never published again.

use shared::clock::Micros;
use shared::dead_letter::{DeadLetter, Origin, Reason};
use shared::decode::{self, Code, time};
use shared::push::Push;
use shared::row::Row;
use shared::schema::{DEAD_LETTER, Plan};

/// Reads dead letters of the pipeline, one a line, or wraps anything else: Pub/Sub's own forwarded copies, foreign
/// messages, bodies that are no push.
pub fn read(plan: &Plan, body: &[u8], now: Micros) -> Vec<DeadLetter> {
    let unknown = Origin { stage: "pubsub", failed_at: now, attempts: 1, ..Origin::default() };
    let Ok(push) = Push::parse(body) else {
        let reason = Reason { code: Code::BadEnvelope, detail: "not a Pub/Sub push".into() };
        return vec![DeadLetter::new(&Origin { identity: &[body], ..unknown }, reason, body)];
    };
    if push.attributes.get("event_type").is_some_and(|kind| kind == DEAD_LETTER) {
        let letter = |(number, line): (usize, &[u8])| {
            ours(plan, line).unwrap_or_else(|| foreign(&unknown, &push, &[number.to_string().as_bytes()], line))
        };
        let letters: Vec<_> = push.lines().map(letter).collect();
        if !letters.is_empty() {
            return letters;
        }
    }
    vec![foreign(&unknown, &push, &[], &push.data)]
}

/// The dead letter of what has another form; `line` tells it from others of its message.
fn foreign(unknown: &Origin<'_>, push: &Push, line: &[&[u8]], raw: &[u8]) -> DeadLetter {
    let attribute = |name: &str| push.attributes.get(name).map(String::as_str);
    let attempts = attribute("CloudPubSubDeadLetterSourceDeliveryCount").and_then(|count| count.parse().ok());
    let detail = match attribute("CloudPubSubDeadLetterSourceSubscription") {
        Some(subscription) => format!("given up by subscription {subscription}"),
        None => "a message of foreign form on the dead-letter topic".into(),
    };
    let message: [&[u8]; 2] = [push.subscription.as_bytes(), push.message_id.as_bytes()];
    let origin = Origin {
        event_type: attribute("event_type"),
        identity: &[&message, line].concat(),
        received_at: attribute("received_at").and_then(|text| time::timestamp(text).ok()).or(push.published_at),
        attempts: attempts.unwrap_or(push.attempt),
        ..*unknown
    };
    DeadLetter::new(&origin, Reason { code: Code::Undeliverable, detail }, raw)
}

fn ours(plan: &Plan, data: &[u8]) -> Option<DeadLetter> {
    let mut row = Row::default();
    decode::row(plan, data, &mut row).ok()?;
    if !row.problems.is_empty() {
        return None;
    }
    serde_json::from_slice(data).ok()
}
