//! What decoding an event allocates, counted in bytes: it grows with the event and stays below a multiple of it.

use std::sync::Arc;

use allocation_counter::{AllocationInfo, measure};
use shared::dead_letter::{DeadLetter, Origin, reason_of};
use shared::decode;
use shared::encode;
use shared::row::Row;
use shared::schema::{Plan, Registry};

const NOW: i64 = 1_792_455_302_920_000;

/// A body that asks for much work, about as large as the number says.
type Shape = fn(usize) -> String;

const SHAPES: &[(&str, Shape)] = &[
    ("bad elements, then one key over and over", |size| {
        let (bad, again) = (vec!["1"; size / 4].join(","), vec![r#""status":"a""#; size / 26].join(","));
        format!(r#"{{"items":[{bad}],{again}}}"#)
    }),
    ("one key with a bad value over and over", |size| object(&vec![r#""items":[1,1]"#; size / 14])),
    ("empty records", |size| format!(r#"{{"items":[{}]}}"#, vec!["{}"; size / 3].join(","))),
    ("bad records", |size| format!(r#"{{"items":[{}]}}"#, vec![r#"{"price":""}"#; size / 13].join(","))),
    ("unknown keys", |size| object(&(0..size / 12).map(|number| format!(r#""k{number}":1"#)).collect::<Vec<_>>())),
    ("escapes", |size| format!(r#"{{"status":"{}"}}"#, r"\u0041".repeat(size / 6))),
    ("half pairs", |size| format!(r#"{{"status":"{}"}}"#, r"\ud800".repeat(size / 6))),
    ("a long number", |size| format!(r#"{{"total_amount":{}}}"#, "9".repeat(size))),
    ("a long fraction", |size| format!(r#"{{"total_amount":0.{}1}}"#, "0".repeat(size))),
    ("deep arrays", |size| object(&vec![format!(r#""x":{}{}"#, "[".repeat(120), "]".repeat(120)); size / 246])),
];

fn object<T: AsRef<str>>(members: &[T]) -> String {
    format!("{{{}}}", members.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(","))
}

fn order() -> Arc<Plan> {
    let registry = Registry::built_in().expect("the built-in schemas compile");
    Arc::clone(registry.get("order").expect("orders are built in"))
}

/// From the text of an event to its row or its dead letter, as the enricher does it.
fn work(plan: &Plan, body: &str) -> AllocationInfo {
    measure(|| {
        let mut row = Row::default();
        let read = decode::event(plan, body.as_bytes(), NOW, &mut row);
        match read.ok().and_then(|()| reason_of(&row.problems)) {
            None => encode::object(&plan.columns, &row.values, &mut Vec::new()),
            Some(reason) => drop(DeadLetter::new(&Origin::default(), reason, body.as_bytes()).to_json()),
        }
    })
}

#[test]
fn twice_the_input_takes_twice_the_bytes() {
    let plan = order();
    for (name, shape) in SHAPES {
        let allocated = |size| work(&plan, &shape(size)).bytes_total;
        let (half, whole) = (allocated(30_000), allocated(60_000));
        assert!(whole <= half * 5 / 2 + 20_000, "{name}: {half} bytes, {whole} for twice the input");
    }
}

#[test]
fn an_event_takes_no_more_than_fifty_times_its_text() {
    let plan = order();
    for (name, shape) in SHAPES {
        let body = shape(250_000);
        let used = work(&plan, &body).bytes_max;
        assert!(used <= 50 * body.len() as u64, "{name}: {used} bytes of memory for {} of text", body.len());
    }
}
