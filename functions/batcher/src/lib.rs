//! The batcher: enriched rows come in as Pub/Sub pushes and land in the warehouse, the archive and the dead-letter table.

pub mod archive;
pub mod config;
mod dead_letters;
pub mod handler;
mod recent;
mod table;

use std::future::Future;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

pub use archive::Bucket;
pub use config::Config;
pub use handler::{Batcher, Deps};
use shared::push::Answer;

/// Pub/Sub's largest message (10 MB) in base64 with its envelope.
const MAX_BODY: usize = 16 << 20;

/// `POST /` appends rows, `POST /archive` archives them, `POST /dead-letter` is where everything else ends.
pub fn router(batcher: Arc<Batcher>) -> Router {
    Router::new()
        .route(
            "/",
            post(async |State(batcher): State<Arc<Batcher>>, body| {
                answer(async move { batcher.rows(body).await }).await
            }),
        )
        .route(
            "/archive",
            post(async |State(batcher): State<Arc<Batcher>>, body| {
                answer(async move { batcher.archive(body).await }).await
            }),
        )
        .route(
            "/dead-letter",
            post(async |State(batcher): State<Arc<Batcher>>, body| {
                answer(async move { batcher.dead_letter(body).await }).await
            }),
        )
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/ready", get(ready))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(batcher)
}

async fn ready(State(batcher): State<Arc<Batcher>>) -> Response {
    match batcher.ready().await {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(reason) => {
            tracing::warn!(reason, "warehouse not reachable");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "warehouse not reachable"}))).into_response()
        }
    }
}

/// Runs a handler in a task of its own: a client that goes away must not leave work half done.
async fn answer(handle: impl Future<Output = Answer> + Send + 'static) -> StatusCode {
    match tokio::spawn(handle).await {
        Ok(Answer::Settled) => StatusCode::NO_CONTENT,
        Ok(Answer::TryAgain(reason)) => {
            tracing::warn!(reason, "push to be delivered again");
            StatusCode::SERVICE_UNAVAILABLE
        }
        Err(error) => {
            tracing::error!(%error, "push handler ended early");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}
