//! The batcher: enriched rows come in as Pub/Sub pushes and land in the warehouse, the archive and the dead-letter table.

mod archive;
pub mod config;
mod dead_letters;
pub mod handler;
mod recent;
mod table;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

pub use config::Config;
pub use handler::{Batcher, Deps};
use shared::push;

/// The way of a push into one of the batcher's handlers.
macro_rules! push {
    ($handler:ident) => {
        async |State(batcher): State<Arc<Batcher>>, body: Bytes| {
            let working = Arc::clone(&batcher);
            push::answer(batcher.metrics(), async move { working.$handler(body).await }).await
        }
    };
}

/// `POST /` appends rows, `POST /archive` archives them, `POST /dead-letter` is where everything else ends.
pub fn router(batcher: Arc<Batcher>) -> Router {
    Router::new()
        .route("/", post(push!(rows)))
        .route("/archive", post(push!(archive)))
        .route("/dead-letter", post(push!(dead_letter)))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/metrics", get(async |State(batcher): State<Arc<Batcher>>| batcher.metrics().text()))
        .route("/ready", get(ready))
        .layer(DefaultBodyLimit::max(push::MAX_BODY))
        .with_state(batcher)
}

async fn ready(State(batcher): State<Arc<Batcher>>) -> Response {
    match batcher.ready().await {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(reason) => {
            tracing::warn!(reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not ready", "reason": reason}))).into_response()
        }
    }
}
