//! `POST /api/dead-letters/replay`: the way back for the letters of this pipeline, asked for by the page and by
//! `contextflow dead-letters replay`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::clock::Clock;
use shared::schema::Schemas;
use tokio::sync::Mutex;

use crate::dead_letters::replay::{Replay, Summary, Ways};
use crate::dead_letters::{Local, Selection};
use crate::error::Failure;

/// What is asked for.
#[derive(Serialize, Deserialize)]
pub struct Request {
    /// Which letters.
    #[serde(flatten)]
    pub selection: Selection,
    /// The folder that the asker means; another one than this pipeline's is refused.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
}

/// What replays work with.
pub struct DeadLetters {
    /// Where the letters lie.
    pub local: Local,
    /// The schemas that decide.
    pub schemas: Arc<Schemas>,
    /// The topics of this process.
    pub ways: Ways,
    /// Time.
    pub clock: Clock,
    /// The folder of this pipeline's data.
    pub folder: PathBuf,
    /// One replay at a time: the next one sees what it has marked.
    pub turn: Mutex<()>,
}

/// `POST /api/dead-letters/replay`, as `application/json` only: no other site's page can send that.
pub fn router(dead_letters: Arc<DeadLetters>) -> Router {
    Router::new().route("/api/dead-letters/replay", post(answer)).with_state(dead_letters)
}

async fn answer(State(dead_letters): State<Arc<DeadLetters>>, Json(request): Json<Request>) -> Response {
    // As a task of its own: a client that goes away leaves no letter sent and not marked.
    let work = tokio::spawn(async move { dead_letters.replay(&request).await });
    let refuse = |status: StatusCode, error: String| (status, Json(json!({"error": error}))).into_response();
    match work.await {
        Ok(Ok(summary)) => Json(summary).into_response(),
        Ok(Err(Failure::Usage(error))) => refuse(StatusCode::BAD_REQUEST, error),
        Ok(Err(Failure::Work(error))) => refuse(StatusCode::SERVICE_UNAVAILABLE, error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl DeadLetters {
    async fn replay(&self, request: &Request) -> Result<Summary, Failure> {
        if request.data_dir.as_ref().is_some_and(|meant| *meant != self.folder) {
            let own = self.folder.display();
            return Err(Failure::usage(format!(
                "this pipeline has its data in {own}, not in the folder that is meant"
            )));
        }
        let _turn = self.turn.lock().await;
        let registry = self.schemas.current().await;
        let replay = Replay { source: &self.local, registry: &registry, clock: &self.clock, takes_rows: true };
        let summary = replay.run(&request.selection, Some(&self.ways)).await?;
        tracing::info!(letters = summary.letters, replayed = summary.passing, "dead letters replayed");
        Ok(summary)
    }
}
