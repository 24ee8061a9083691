//! Lines through a mapping: the built-in one of the visits, and one of another source that is made up here.

use serde_json::{Value as Json, json};

use super::*;
use crate::decode::{self, Elements};
use crate::encode;

/// The rows of one line, as `[table, row]`, and the reasons of what was left out.
fn rows(mapping: &Mapping, line: &str) -> (Vec<(String, Json)>, Vec<String>) {
    let (mut row, mut elements, mut derived) = (Row::default(), Elements::default(), Vec::new());
    decode::nested(mapping.source(), line.as_bytes(), mapping.apart, &mut row, &mut elements).unwrap();
    assert_eq!(*row.problems, []);
    mapping.derive(&row, &mut derived);
    let (mut made, mut values, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    mapping
        .rows(&row, &derived, &mut values, &mut refused, |table, values| {
            let plan = &mapping.tables[table];
            let mut text = Vec::new();
            encode::object(&plan.columns, values, &mut text);
            made.push((plan.event_type.clone(), serde_json::from_slice(&text).unwrap()));
        })
        .unwrap();
    let faults = elements.faults.iter().flat_map(|(_, problems)| problems.iter()).map(ToString::to_string);
    (made, faults.chain(refused.iter().map(|(index, problem)| format!("{index}: {problem}"))).collect())
}

fn visits() -> Mapping {
    Mapping::built_in("visit", &Registry::built_in().unwrap()).unwrap().unwrap()
}

const VISIT: &str = r#""session_id":"SID-1","user_id":"UID-1","device_type":"mobile","geolocation":"1.5,-2.5""#;
const TIME: &str = r#""timestamp":"2024-07-01T09:00:00""#;

#[test]
fn a_visit_becomes_its_session_and_a_row_an_event() {
    let line = format!(
        r#"{{{VISIT},"events":[
            {{"event":{{"event_type":"page_view",{TIME},"details":{{"page_url":"/a","referrer_url":null}}}}}},
            {{"event":{{"event_type":"add_item_to_cart",{TIME},"details":{{"product_id":"P","price":89.99,"quantity":2}}}}}},
            {{"event":{{"event_type":"purchase",{TIME},"details":{{"order_id":"O","amount":3859.9399999999996,"currency":"USD",
                "items":[{{"product_id":"P","price":1929.97,"quantity":2}}]}}}}}}]}}"#
    );
    let (made, faults) = rows(&visits(), &line);
    assert_eq!(faults, Vec::<String>::new());
    let key = crate::event::hex(&Sha256::digest("SID-1:UID-1:mobile"));
    let time = "2024-07-01T09:00:00Z";
    assert_eq!(
        made,
        [
            (
                "session".into(),
                json!({"session_key": key, "session_id": "SID-1", "user_id": "UID-1", "geolocation": "1.5,-2.5",
                       "device_type": "mobile"})
            ),
            ("pageview_event".into(), json!({"session_key": key, "timestamp": time, "page_url": "/a"})),
            (
                "addtocart_event".into(),
                json!({"session_key": key, "timestamp": time, "product_id": "P", "quantity": 2, "price": 89.99})
            ),
            (
                "purchase_event".into(),
                json!({"session_key": key, "timestamp": time, "order_id": "O", "currency": "USD", "amount": 3859.94,
                       "items": [{"quantity": 2, "price": 1929.97, "product_id": "P"}]})
            ),
        ]
    );
}

#[test]
fn an_event_that_cannot_be_used_costs_itself() {
    let event = |kind: &str, time: &str, details: &str| {
        format!(r#"{{"event":{{"event_type":"{kind}","timestamp":"{time}","details":{details}}}}}"#)
    };
    let noon = "2024-07-01T12:00:00+02:00";
    let events = [
        event("page_view", noon, "{}"),
        event("add_item_to_cart", noon, r#"{"quantity":1.5}"#),
        event("add_item_to_cart", noon, r#"{"price":"cheap"}"#),
        event("login", noon, "{}"),
        event("page_view", "2024-02-30T00:00:00", "{}"),
        event("purchase", noon, r#"{"amount":1e300}"#),
        event("page_view", noon, "null"),
        event("page_view", noon, "{}"),
    ];
    let (made, faults) = rows(&visits(), &format!(r#"{{{VISIT},"events":[{}]}}"#, events.join(",")));
    assert_eq!(made.len(), 3);
    assert_eq!(made[1].1["timestamp"], "2024-07-01T10:00:00Z");
    assert_eq!(
        faults,
        [
            "events.event.details.quantity: expected a whole number",
            "events.event.details.price: expected FLOAT, found a string",
            "events.event.timestamp: expected an existing time as RFC 3339 (2026-10-20T00:15:02.92Z, at most 9 decimals) or epoch \
             seconds or milliseconds",
            "events.event.details: a value is required",
            "1: events.event.event_type: none of add_item_to_cart, page_view, purchase",
            "2: amount: a NUMERIC has at most 29 digits before the point",
        ]
    );
}

#[test]
fn of_events_that_come_twice_the_last_count() {
    let bad = r#"[{"event":{}},{"event":{"event_type":"page_view","timestamp":"2024-07-01T09:00:00","details":{}}}]"#;
    for last in ["[]", "null"] {
        let (made, faults) = rows(&visits(), &format!(r#"{{{VISIT},"events":{bad},"events":{last}}}"#));
        assert_eq!((made.len(), faults.len()), (1, 0));
    }
}

/// Sensors that report several readings a message.
fn registry_of_sensors() -> Registry {
    let mut registry = Registry::default();
    let schema = |name: &str, columns: &str| {
        format!(
            r#"{{"event_type":"{name}","version":"1-0-0","ingest":"batch","table":{{"dataset":"d","name":"{name}s"}},
                "columns":[{columns}]}}"#
        )
    };
    let string = |name: &str| format!(r#"{{"name":"{name}","type":"STRING","mode":"REQUIRED"}}"#);
    let message = format!(
        r#"{},{{"name":"count","type":"INTEGER"}},{{"name":"readings","type":"RECORD","mode":"REPEATED","fields":[
            {},{{"name":"value","type":"FLOAT","mode":"REQUIRED"}},{{"name":"flags","type":"STRING","mode":"REPEATED"}}]}}"#,
        string("sensor"),
        string("kind")
    );
    let reading = format!(
        r#"{},{},{{"name":"value","type":"NUMERIC","mode":"REQUIRED"}},{{"name":"flags","type":"STRING","mode":"REPEATED"}},
            {{"name":"of","type":"NUMERIC"}}"#,
        string("id"),
        string("sensor")
    );
    registry.add("message", &schema("message", &message)).unwrap();
    registry.add("heat", &schema("heat", &reading)).unwrap();
    registry
}

const SENSORS: &str = r#"{"source":"message","numeric_decimals":1,
    "derived":{"id":{"sha256":["sensor"],"separator":""}},
    "elements":{"by":"readings.kind","rows":{"heat":{"table":"heat","columns":
        {"id":"id","sensor":"sensor","value":"readings.value","flags":"readings.flags","of":"count"}}}}}"#;

#[test]
fn another_source_needs_no_code() {
    let mapping = compile("sensors.json", SENSORS, &registry_of_sensors()).unwrap();
    let line = r#"{"sensor":"s","count":3,"readings":[{"kind":"heat","value":-0.25,"flags":["a","b"]},{"kind":"rain","value":1}]}"#;
    let (made, faults) = rows(&mapping, line);
    let id = crate::event::hex(&Sha256::digest("s"));
    let row = json!({"id": id, "sensor": "s", "value": -0.3, "flags": ["a", "b"], "of": 3});
    assert_eq!(made, [("heat".to_string(), row)]);
    assert_eq!(faults, ["1: readings.kind: none of heat"]);
}

#[test]
fn a_mapping_that_cannot_be_used_says_where_and_why() {
    let registry = registry_of_sensors();
    let broken: [(&str, &str, &str); 10] = [
        (r#""source":"message""#, r#""source":"nothing""#, "source: no schema `nothing`"),
        (r#""source":"message""#, r#""source":"message","extra":1"#, "extra: unknown field `extra`"),
        (r#""numeric_decimals":1,"#, "", "columns.value: `value` is FLOAT, `value` NUMERIC: say `numeric_decimals`"),
        (r#""numeric_decimals":1"#, r#""numeric_decimals":10"#, "numeric_decimals: a NUMERIC has at most 9 decimals"),
        (r#""sha256":["sensor"]"#, r#""sha256":["count"]"#, "derived.id.sha256: `count` is no REQUIRED STRING"),
        (r#""by":"readings.kind""#, r#""by":"sensor""#, "elements.by: `sensor` is no REPEATED RECORD"),
        (r#""by":"readings.kind""#, r#""by":"readings.value""#, "elements.by: `readings.value` is no REQUIRED STRING"),
        (r#""sensor":"sensor","#, "", "elements.rows.heat.columns.sensor: missing; say where its value comes from"),
        (r#""of":"count""#, r#""of":"readings.nothing""#, "columns.of: `readings.nothing` is no column of `message`"),
        (r#""of":"count""#, r#""of":"readings.flags""#, "columns.of: one of `flags` and `of` is REPEATED"),
    ];
    for (from, to, expected) in broken {
        assert!(SENSORS.contains(from), "{from}");
        let error = compile("sensors.json", &SENSORS.replacen(from, to, 1), &registry).unwrap_err().to_string();
        assert!(error.starts_with("mapping file sensors.json: ") && error.contains(expected), "{error}");
    }
}
