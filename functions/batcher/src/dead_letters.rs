//! The end of the line: what comes here is stored, whatever its form, and never published again.

use shared::clock::Micros;
use shared::dead_letter::{DeadLetter, MAX_RAW, Origin, Reason};
use shared::decode::{self, Code, time};
use shared::push::Push;
use shared::row::Row;
use shared::schema::{DEAD_LETTER, Plan};

/// Reads one of ours, or wraps anything else: Pub/Sub's own forwarded copies, foreign messages, bodies that are no push.
pub fn read(plan: &Plan, body: &[u8], now: Micros) -> DeadLetter {
    let unknown = Origin { stage: "pubsub", failed_at: now, attempts: 1, ..Origin::default() };
    let Ok(push) = Push::parse(body) else {
        let reason = Reason { code: Code::BadEnvelope, detail: "not a Pub/Sub push".into() };
        return DeadLetter::new(&Origin { identity: &[body], ..unknown }, reason, body);
    };
    if push.attributes.get("event_type").is_some_and(|kind| kind == DEAD_LETTER)
        && let Some(letter) = ours(plan, &push.data)
    {
        return letter;
    }
    let attribute = |name: &str| push.attributes.get(name).map(String::as_str);
    let attempts = attribute("CloudPubSubDeadLetterSourceDeliveryCount").and_then(|count| count.parse().ok());
    let detail = match attribute("CloudPubSubDeadLetterSourceSubscription") {
        Some(subscription) => format!("given up by subscription {subscription}"),
        None => "a message of foreign form on the dead-letter topic".into(),
    };
    let origin = Origin {
        event_type: attribute("event_type"),
        identity: &[push.subscription.as_bytes(), push.message_id.as_bytes()],
        received_at: attribute("received_at").and_then(|text| time::timestamp(text).ok()).or(push.published_at),
        attempts: attempts.unwrap_or(push.attempt),
        ..unknown
    };
    DeadLetter::new(&origin, Reason { code: Code::Undeliverable, detail }, &push.data)
}

fn ours(plan: &Plan, data: &[u8]) -> Option<DeadLetter> {
    let mut row = Row::default();
    decode::row(plan, data, &mut row).ok()?;
    if !row.problems.is_empty() {
        return None;
    }
    serde_json::from_slice(data).ok()
}

/// Whether the raw bytes have to leave the dead letter for the bucket.
pub fn is_large(letter: &DeadLetter) -> bool {
    letter.raw_uri.is_none() && letter.raw_size > MAX_RAW
}
