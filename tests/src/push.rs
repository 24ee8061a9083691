//! Pub/Sub's push requests, in the form that Google sends.

use serde_json::{Map, Value, json};
use shared::publish::{Attributes, Message};

/// The raw subscription.
pub const RAW_SUB: &str = "projects/p/subscriptions/clickstream-raw-sub";
/// The subscription of the warehouse.
pub const ENRICHED_SUB: &str = "projects/p/subscriptions/clickstream-enriched-sub";
/// `publishTime` of every push made here.
pub const PUBLISHED_AT: &str = "2026-10-20T00:15:01.500Z";

/// A push of the raw subscription.
pub fn push(message_id: &str, attributes: &[(&str, &str)], data: impl AsRef<[u8]>) -> Vec<u8> {
    push_from(RAW_SUB, message_id, attributes, data)
}

/// A push of any subscription.
pub fn push_from(subscription: &str, message_id: &str, attributes: &[(&str, &str)], data: impl AsRef<[u8]>) -> Vec<u8> {
    let mut message = json!({
        "data": base64_simd::STANDARD.encode_to_string(data.as_ref()),
        "messageId": message_id,
        "message_id": message_id,
        "publishTime": PUBLISHED_AT,
        "publish_time": PUBLISHED_AT,
    });
    if !attributes.is_empty() {
        let attributes: Map<_, _> = attributes.iter().map(|(key, value)| ((*key).to_string(), json!(value))).collect();
        message["attributes"] = Value::Object(attributes);
    }
    json!({"deliveryAttempt": 2, "subscription": subscription, "message": message}).to_string().into_bytes()
}

/// The push that delivers a published message to `subscription`.
pub fn delivery(subscription: &str, message_id: &str, message: &Message) -> Vec<u8> {
    push_from(subscription, message_id, &pairs(&message.attributes), &message.data)
}

/// The push of a message that Pub/Sub itself gave up and forwarded to the dead-letter topic.
pub fn forwarded(message_id: &str, attributes: &[(&str, &str)], data: impl AsRef<[u8]>) -> Vec<u8> {
    let policy = [
        ("CloudPubSubDeadLetterSourceDeliveryCount", "100"),
        ("CloudPubSubDeadLetterSourceSubscription", "clickstream-enriched-sub"),
        ("CloudPubSubDeadLetterSourceSubscriptionProject", "p"),
        ("CloudPubSubDeadLetterSourceTopicPublishTime", PUBLISHED_AT),
    ];
    push_from("projects/p/subscriptions/clickstream-dead-letter-sub", message_id, &[attributes, &policy].concat(), data)
}

fn pairs(attributes: &Attributes) -> Vec<(&str, &str)> {
    attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// The lines of NDJSON as JSON values.
pub fn json_lines(data: &[u8]) -> Vec<Value> {
    data.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("a line of JSON"))
        .collect()
}
