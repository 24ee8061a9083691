//! The publisher: events come in over HTTP and leave for the raw topic.
//!
//! [`router`] is the whole function; it runs behind API Gateway and in `contextflow dev` alike. [`handler`] knows no
//! runtime.

#[cfg(feature = "cloud")]
pub mod config;
pub mod handler;
#[cfg(feature = "cloud")]
pub mod runtime;
pub mod synthetic;

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tower_http::cors::{Any, CorsLayer};

pub use handler::{Deps, MAX_BODY, StreamTypes};
use handler::{Media, Receipt, Refusal};
use shared::publish::MAX_EVENTS;

/// The client's address as the runtime knows it (the socket, the gateway's request context), never a header that a
/// client can write. Put it into the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

/// The largest request that is taken.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of its body, at most [`MAX_BODY`].
    pub body_bytes: usize,
    /// Its events, at most [`MAX_EVENTS`].
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes: MAX_BODY, events: MAX_EVENTS }
    }
}

/// Seconds after which a client may try again when the topic was not reachable.
const RETRY_AFTER: &str = "2";

/// `POST /publish` and `GET /health`, open to pages of any origin.
pub fn router(deps: Arc<Deps>) -> Router {
    router_within(deps, Limits::default())
}

/// The same for requests of a limited size.
pub fn router_within(deps: Arc<Deps>, limits: Limits) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE])
        .expose_headers([header::RETRY_AFTER]);
    Router::new()
        .route("/publish", post(publish))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(cors)
        .with_state((deps, limits))
}

async fn publish(
    State((deps, limits)): State<(Arc<Deps>, Limits)>,
    address: Option<Extension<ClientAddress>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let address = address.map(|Extension(ClientAddress(address))| address);
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
    let answer = async {
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Refusal::TooLarge(format!("the body is over {} bytes; send less at once", limits.body_bytes))
            }
            _ => Refusal::Malformed("the body could not be read to its end".into()),
        })?;
        handler::publish_within(&deps, limits.events, Media::of(content_type)?, &body, address).await
    };
    match answer.await {
        Ok(receipt) => accepted(&receipt),
        Err(refusal) => refused(&refusal),
    }
}

fn accepted(receipt: &Receipt) -> Response {
    let status = if receipt.accepted.is_empty() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    (status, Json(receipt)).into_response()
}

fn refused(refusal: &Refusal) -> Response {
    let error = refusal.to_string();
    match refusal {
        Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, Json(json!({"error": error}))).into_response(),
        Refusal::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Json(json!({"error": error}))).into_response(),
        Refusal::MediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Json(json!({"error": error}))).into_response(),
        Refusal::Unreachable { events } => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, RETRY_AFTER)],
            Json(json!({"error": error, "events": events})),
        )
            .into_response(),
    }
}
