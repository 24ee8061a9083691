//! What every sink keeps: one suite of checks, run on each adapter.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, Outcome, Sink};
use crate::clock::SECOND;
use crate::decode::{self, time};
use crate::row::{Row, Value};
use crate::schema::{Plan, Registry};

/// 2026-10-20T00:15:02.920Z
const NOW: i64 = 1_792_455_302_920_000;

/// Runs the suite on an empty sink. `read` answers all rows of a plan's table as lines of the enriched message, in any
/// order; `loaded_at` may be missing from them.
pub async fn holds<R, F>(sink: Arc<dyn Sink>, read: R)
where
    R: Fn(Arc<Plan>) -> F,
    F: Future<Output = Vec<Bytes>>,
{
    let registry = Registry::built_in().unwrap();
    let plan = |name: &str| Arc::clone(registry.get(name).unwrap());
    sink.ready().await.expect("an empty sink is ready");
    an_empty_batch_has_an_empty_answer(&*sink, plan("clickstream")).await;
    nested_rows_come_back_exactly(&*sink, plan("order"), &read).await;
    one_bad_row_costs_one_row(&*sink, plan("clickstream"), &read).await;
    concurrent_appends_lose_nothing(&sink, &[plan("user_activity"), plan("inventory")], &read).await;
}

/// A batch loaded at the suite's time.
pub fn batch(plan: &Arc<Plan>, rows: impl IntoIterator<Item = String>) -> Batch {
    Batch { plan: Arc::clone(plan), rows: rows.into_iter().map(Bytes::from).collect(), loaded_at: NOW }
}

/// The values of lines without `loaded_at`, in an order of their own.
pub fn values(plan: &Plan, lines: &[Bytes]) -> Vec<String> {
    let mut rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let mut row = Row::default();
            decode::row(plan, line, &mut row).unwrap();
            assert_eq!(*row.problems, [], "{}", String::from_utf8_lossy(line));
            if let Some(system) = plan.system {
                row.set(system.loaded_at, Value::Null);
            }
            format!("{:?}", row.values)
        })
        .collect();
    rows.sort();
    rows
}

async fn an_empty_batch_has_an_empty_answer(sink: &dyn Sink, plan: Arc<Plan>) {
    assert_eq!(sink.append(&batch(&plan, [])).await, []);
}

async fn nested_rows_come_back_exactly<F: Future<Output = Vec<Bytes>>>(
    sink: &dyn Sink,
    plan: Arc<Plan>,
    read: impl Fn(Arc<Plan>) -> F,
) {
    let rows = [
        r#"{"order_id":"o1","customer_id":"c1","order_date":"2026-10-20T00:15:02.920001Z","status":"pending",
            "items":[{"product_id":"p1","product_name":"Café \"Ω\"","quantity":2,"price":19.99},
                     {"product_id":"p2","quantity":9223372036854775807,"price":99999999999999999999999999999.999999999}],
            "shipping_address":{"street":"1 Main St","city":"Zürich"},"total_amount":-0.000000001,
            "event_id":"e1","received_at":"2026-10-20T00:15:03Z","schema_version":"1-0-0"}"#,
        r#"{"order_id":"o2","order_date":"0001-01-01T00:00:00Z","items":[],"event_id":"e2"}"#,
        r#"{"order_id":"o3","order_date":"9999-12-31T23:59:59.999999Z","items":[{}],"shipping_address":{},"event_id":"e3"}"#,
        r#"{"event_id":"e4"}"#,
    ]
    .map(str::to_string);
    let given = batch(&plan, rows);
    assert_eq!(sink.append(&given).await, vec![Outcome::Done; 4]);
    assert_eq!(values(&plan, &read(Arc::clone(&plan)).await), values(&plan, &given.rows));
}

async fn one_bad_row_costs_one_row<F: Future<Output = Vec<Bytes>>>(
    sink: &dyn Sink,
    plan: Arc<Plan>,
    read: impl Fn(Arc<Plan>) -> F,
) {
    let rows = (0..100).map(|number| match number {
        17 => r#"{"event_id":"bad-17"}"#.to_string(),
        42 => "no JSON".to_string(),
        _ => click(number),
    });
    let given = batch(&plan, rows);
    let outcomes = sink.append(&given).await;
    assert_eq!(outcomes.len(), 100);
    for (number, outcome) in outcomes.iter().enumerate() {
        match number {
            17 | 42 => assert!(matches!(outcome, Outcome::Poison(_)), "{number}: {outcome:?}"),
            _ => assert_eq!(*outcome, Outcome::Done, "{number}"),
        }
    }
    let good: Vec<_> =
        (0..100).filter(|number| ![17, 42].contains(number)).map(|number| Bytes::from(click(number))).collect();
    assert_eq!(values(&plan, &read(Arc::clone(&plan)).await), values(&plan, &good));
}

async fn concurrent_appends_lose_nothing<F: Future<Output = Vec<Bytes>>>(
    sink: &Arc<dyn Sink>,
    plans: &[Arc<Plan>],
    read: impl Fn(Arc<Plan>) -> F,
) {
    let row = |append: usize, number: usize| {
        let time = time::timestamp_text(NOW + SECOND * i64::try_from(append * 40_000 + number).unwrap());
        format!(r#"{{"event_id":"{append}-{number}","timestamp":"{time}"}}"#)
    };
    let mut running = Vec::new();
    for append in 0..10 {
        for plan in plans {
            let (sink, given) = (Arc::clone(sink), batch(plan, (0..20).map(|number| row(append, number))));
            running.push(tokio::spawn(async move { sink.append(&given).await }));
        }
    }
    for append in running {
        assert_eq!(append.await.unwrap(), vec![Outcome::Done; 20]);
    }
    let all: Vec<_> = (0..200).map(|number| Bytes::from(row(number / 20, number % 20))).collect();
    for plan in plans {
        assert_eq!(values(plan, &read(Arc::clone(plan)).await), values(plan, &all));
    }
}

/// A row of the clickstream.
pub fn click(number: usize) -> String {
    let time = time::timestamp_text(NOW + SECOND * i64::try_from(number).unwrap());
    let city = ["Berlin", "Paris", "Roma"][number % 3];
    format!(
        r#"{{"user_id":"u{}","session_id":"s{number}","page_url":"https://shop.example.com/?p={number}","event_name":"page_view","ip_address":"192.0.2.1","event_timestamp":"{time}","country":"DE","city":"{city}","event_id":"click-{number}","received_at":"{time}","schema_version":"1-0-0"}}"#,
        number % 7
    )
}
