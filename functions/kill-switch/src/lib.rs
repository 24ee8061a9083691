//! The kill-switch: budget notices come in as Pub/Sub pushes, and past a limit the spending is braked, stopped, and at last
//! ended by taking the billing account away.
//!
//! [`notice`] says which notices are believed, [`policy`] what they call for, [`handler`] how it is done once.

pub mod amount;
pub mod config;
pub mod controls;
pub mod day;
pub mod handler;
pub mod notice;
pub mod policy;
pub mod release;
pub mod state;
pub mod store;
pub mod turn;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
pub use config::Config;
pub use handler::{Deps, KillSwitch};
use serde_json::json;
use shared::push;

/// `POST /` takes pushes; `GET /health` answers 200, `GET /ready` does where the state can be read.
pub fn router(switch: Arc<KillSwitch>) -> Router {
    Router::new()
        .route("/", post(push))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/metrics", get(async |State(switch): State<Arc<KillSwitch>>| switch.metrics().text()))
        .route("/ready", get(ready))
        .layer(DefaultBodyLimit::max(push::MAX_BODY))
        .with_state(switch)
}

async fn push(State(switch): State<Arc<KillSwitch>>, body: Bytes) -> StatusCode {
    let working = Arc::clone(&switch);
    push::answer(switch.metrics(), async move { working.push(&body).await }).await
}

async fn ready(State(switch): State<Arc<KillSwitch>>) -> StatusCode {
    if switch.is_ready().await { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
