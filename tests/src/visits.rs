//! A handful of visits in the star schema, of which every figure is known.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use shared::schema::Registry;
use shared::sink::{Batch, Outcome, Sink};

use crate::NOW;

/// Fills the tables: four visits, of which three view a page, two put something into the cart and two buy, one of them
/// without having viewed anything.
pub async fn fill(sink: &dyn Sink, registry: &Registry) {
    let sessions = [("a", "desktop"), ("b", "mobile"), ("c", "mobile"), ("d", "tablet")]
        .map(|(key, device)| json!({"session_key": key, "session_id": key, "user_id": "u", "device_type": device}));
    let views = [
        ("a", "2024-07-01T09:00:01Z", "/home"),
        ("a", "2024-07-01T09:00:59.999999Z", "/products"),
        ("b", "2024-07-01T09:01:00Z", "/home"),
        ("c", "2024-07-02T23:59:59Z", "/home"),
        ("c", "2024-07-02T23:59:59Z", "/home"),
    ]
    .map(|(key, time, page)| json!({"session_key": key, "timestamp": time, "page_url": page}));
    let carts = [("a", "P1", 2), ("a", "P2", 1), ("b", "P1", 1)].map(|(key, product, quantity)| {
        let mut cart = item(product, quantity);
        cart["session_key"] = json!(key);
        cart["timestamp"] = json!("2024-07-01T09:02:00Z");
        cart
    });
    let purchases = [
        ("a", "o1", "259.97", json!([item("P1", 2), item("P2", 1)])),
        ("d", "o2", "3599.97", json!([item("P3", 3)])),
        ("d", "o3", "0", json!([])),
    ]
    .map(|(key, order, amount, items)| {
        json!({"session_key": key, "timestamp": "2024-07-01T09:03:00Z", "order_id": order, "currency": "USD",
            "amount": amount, "items": items})
    });
    append(sink, registry, "session", &sessions).await;
    append(sink, registry, "pageview_event", &views).await;
    append(sink, registry, "addtocart_event", &carts).await;
    append(sink, registry, "purchase_event", &purchases).await;
}

/// What each view answers: its name, its columns in an order that tells rows apart, and its rows with numbers as text.
pub fn answers() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("v_visits_by_page", "page_url, page_views, visits", json!([["/home", "4", "3"], ["/products", "1", "1"]])),
        (
            "v_popular_items",
            "product_id, product_name, category, put_into_cart, bought, sales",
            json!([
                ["P1", "Keyboard", "peripherals", "3", "2", "179.98"],
                ["P2", "Photo Editor", "software", "1", "1", "79.99"],
                ["P3", "Ultrabook", "hardware", "0", "3", "3599.97"]
            ]),
        ),
        (
            "v_sales_by_category",
            "category, orders, bought, sales",
            json!([
                ["hardware", "1", "3", "3599.97"],
                ["peripherals", "1", "2", "179.98"],
                ["software", "1", "1", "79.99"]
            ]),
        ),
        ("v_visits_by_device_type", "device_type, visits", json!([["desktop", "1"], ["mobile", "2"], ["tablet", "1"]])),
        (
            "v_page_views_per_minute",
            "minute, page_views",
            json!([["2024-07-01T09:00:00Z", "2"], ["2024-07-01T09:01:00Z", "1"], ["2024-07-02T23:59:00Z", "2"]]),
        ),
        (
            "v_conversion_funnel",
            "position, step, visits",
            json!([["1", "view", "3"], ["2", "cart", "2"], ["3", "purchase", "1"]]),
        ),
    ]
}

fn item(product: &str, quantity: u32) -> Value {
    let (name, category, price) = match product {
        "P1" => ("Keyboard", "peripherals", "89.99"),
        "P2" => ("Photo Editor", "software", "79.99"),
        _ => ("Ultrabook", "hardware", "1199.99"),
    };
    json!({"product_id": product, "product_name": name, "category": category, "price": price, "quantity": quantity})
}

async fn append(sink: &dyn Sink, registry: &Registry, event_type: &str, rows: &[Value]) {
    let plan = Arc::clone(registry.get(event_type).expect("it is built in"));
    let rows: Vec<_> = rows.iter().map(|row| Bytes::from(row.to_string())).collect();
    let count = rows.len();
    let outcomes = sink.append(&Batch { plan, rows, loaded_at: NOW }).await;
    assert_eq!(outcomes, vec![Outcome::Done; count], "{event_type}");
}
