//! The enricher: raw events come in as Pub/Sub pushes and leave as rows on the enriched topic, or as dead letters.

pub mod config;
mod first_seen;
pub mod handler;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
pub use config::Config;
pub use handler::{Deps, Enricher};
use serde_json::json;
use shared::push;

/// `POST /` takes pushes; `GET /health` and `GET /ready` answer 200 (the lookups were loaded before).
pub fn router(enricher: Arc<Enricher>) -> Router {
    Router::new()
        .route("/", post(push))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/metrics", get(async |State(enricher): State<Arc<Enricher>>| enricher.metrics().text()))
        .route("/ready", get(async || Json(json!({"status": "ready"}))))
        .layer(DefaultBodyLimit::max(push::MAX_BODY))
        .with_state(enricher)
}

async fn push(State(enricher): State<Arc<Enricher>>, body: Bytes) -> StatusCode {
    let working = Arc::clone(&enricher);
    push::answer(enricher.metrics(), async move { working.push(body).await }).await
}
