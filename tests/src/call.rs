//! Requests to a router, without a socket.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// What a router answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The text of a header, empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Sends one request and reads the answer to its end.
pub async fn call(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("a router always answers");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("the body is whole").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// `GET path`.
pub async fn get(router: &Router, path: &str) -> Answer {
    call(router, Request::get(path).body(Body::empty()).expect("a request")).await
}

/// `POST path` with a body of any content type, or of none.
pub async fn post(router: &Router, path: &str, content_type: Option<&str>, body: impl Into<Body>) -> Answer {
    let mut request = Request::post(path);
    if let Some(content_type) = content_type {
        request = request.header(header::CONTENT_TYPE, content_type);
    }
    call(router, request.body(body.into()).expect("a request")).await
}

/// `POST path` as `application/json`.
pub async fn post_json(router: &Router, path: &str, body: impl Into<Body>) -> Answer {
    post(router, path, Some("application/json"), body).await
}

/// Column and code of each problem of an accepted event.
pub fn problem_codes(accepted: &Value) -> Vec<(&str, &str)> {
    let problems = accepted["problems"].as_array().unwrap_or_else(|| panic!("not an accepted event: {accepted}"));
    problems
        .iter()
        .map(|one| (one["column"].as_str().unwrap_or_default(), one["code"].as_str().unwrap_or_default()))
        .collect()
}
