//! `GET /api/visits`: the analysts' views as the page `/visits` shows them, asked of the warehouse itself.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::decode::time;
use shared::sink::delta::Warehouse;

use crate::commands::query::rows_of;

const BY_PAGE: &str = "SELECT * FROM clickstream_dw.v_visits_by_page ORDER BY page_views DESC, page_url LIMIT 20";
const ITEMS: &str = "SELECT product_id, product_name, category, put_into_cart, bought, CAST(sales AS DOUBLE) AS sales \
    FROM clickstream_dw.v_popular_items ORDER BY bought DESC, put_into_cart DESC, product_id LIMIT 20";
const BY_CATEGORY: &str = "SELECT category, orders, bought, CAST(sales AS DOUBLE) AS sales \
    FROM clickstream_dw.v_sales_by_category ORDER BY sales DESC, category LIMIT 20";
const BY_DEVICE: &str =
    "SELECT * FROM clickstream_dw.v_visits_by_device_type ORDER BY visits DESC, device_type LIMIT 20";
const FUNNEL: &str = "SELECT position, step, CAST(visits AS BIGINT) AS visits FROM clickstream_dw.v_conversion_funnel \
    ORDER BY position";
const DAYS: &str = "SELECT CAST(CAST(minute AS DATE) AS VARCHAR) AS day, CAST(sum(page_views) AS BIGINT) AS page_views \
    FROM clickstream_dw.v_page_views_per_minute GROUP BY 1 ORDER BY 1";

#[derive(Deserialize)]
struct Wanted {
    /// Only the minutes of this day, `YYYY-MM-DD`; without it everything, with the minutes of the last day.
    day: Option<String>,
}

/// `GET /api/visits?day=YYYY-MM-DD`.
pub fn router(warehouse: Arc<Warehouse>) -> Router {
    Router::new().route("/api/visits", get(answer)).with_state(warehouse)
}

async fn answer(State(warehouse): State<Arc<Warehouse>>, Query(wanted): Query<Wanted>) -> Response {
    let answer = match &wanted.day {
        Some(day) if time::date(day).is_err() => {
            let error = "a day is YYYY-MM-DD, for example 2026-11-20";
            return (StatusCode::BAD_REQUEST, Json(json!({"error": error}))).into_response();
        }
        Some(day) => minutes(&warehouse, Some(day)).await.map(|minutes| json!({"page_views_per_minute": minutes})),
        None => all(&warehouse).await,
    };
    answer
        .map(Json)
        .map_err(|error| {
            tracing::warn!(error, "visits cannot be shown");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": "the warehouse cannot be read"})))
        })
        .into_response()
}

async fn all(warehouse: &Warehouse) -> Result<Value, String> {
    let days = rows(warehouse, DAYS).await?;
    let last = days.last().and_then(|row| row.get("day")).and_then(Value::as_str).map(str::to_string);
    Ok(json!({
        "visits_by_page": rows(warehouse, BY_PAGE).await?,
        "popular_items": rows(warehouse, ITEMS).await?,
        "sales_by_category": rows(warehouse, BY_CATEGORY).await?,
        "visits_by_device_type": rows(warehouse, BY_DEVICE).await?,
        "conversion_funnel": rows(warehouse, FUNNEL).await?,
        "page_views_per_minute": minutes(warehouse, last.as_deref()).await?,
        "days": days,
    }))
}

/// `{"day", "minutes": [{"minute", "page_views"}]}`; minutes without views are left out.
async fn minutes(warehouse: &Warehouse, day: Option<&str>) -> Result<Value, String> {
    let Some(day) = day else { return Ok(json!({"day": null, "minutes": []})) };
    let sql = format!(
        "SELECT minute, page_views FROM clickstream_dw.v_page_views_per_minute \
         WHERE CAST(minute AS DATE) = DATE '{day}' ORDER BY minute"
    );
    Ok(json!({"day": day, "minutes": rows(warehouse, &sql).await?}))
}

async fn rows(warehouse: &Warehouse, sql: &str) -> Result<Vec<Map<String, Value>>, String> {
    let batches = warehouse.sql(sql).await.map_err(|error| error.to_string())?;
    rows_of(&batches).map_err(|error| error.to_string())
}
