//! Who may ask `contextflow dev` for what. It listens on this machine alone, but every page in a browser of this machine
//! reaches it, and by DNS rebinding under a name of the page's own.
//!
//! - A request names this pipeline as its host, else 421.
//! - A page of another origin may send events and nothing else, else 403.
//! - Pushes carry the token that the bus was given at the start, else 401.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};
use shared::serve::bearer;

/// Where pages of any origin may ask.
const OPEN: [&str; 2] = ["/publish", "/health"];

/// The names of this pipeline.
pub struct Trust {
    hosts: Vec<String>,
}

impl Trust {
    /// Those of this machine on `port`, and further ones (`HOST` or `HOST:PORT`).
    pub fn new(port: u16, further: &[String]) -> Self {
        let own = ["127.0.0.1", "localhost", "[::1]"];
        let with_port = own.iter().map(|host| format!("{host}:{port}"));
        // The port that a browser leaves out.
        let without = own.iter().filter(|_| port == 80).map(ToString::to_string);
        Self { hosts: with_port.chain(without).chain(further.iter().map(|host| host.to_ascii_lowercase())).collect() }
    }

    fn is_own(&self, host: &str) -> bool {
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }

    fn check(&self, request: &Request) -> Result<(), (StatusCode, String)> {
        let host = only(request.headers(), HOST.as_str()).unwrap_or_default();
        let is_named = request.uri().authority().is_none_or(|authority| self.is_own(authority.as_str()));
        if !is_named || !self.is_own(host) {
            let own = self.hosts.first().map_or("", String::as_str);
            let error =
                format!("this host is not served here; use http://{own}, or allow another with --allow-host HOST");
            return Err((StatusCode::MISDIRECTED_REQUEST, error));
        }
        if OPEN.contains(&request.uri().path()) || self.is_same_origin(request) {
            return Ok(());
        }
        Err((StatusCode::FORBIDDEN, "pages of other origins may send events to /publish and nothing else".into()))
    }

    /// Whether a page of this pipeline asks, or no page at all: what browsers add to a request no page can leave out, and
    /// what others could add to theirs proves nothing. A link from another page to one of ours is followed.
    fn is_same_origin(&self, request: &Request) -> bool {
        let headers = request.headers();
        if headers.contains_key(ORIGIN) {
            let origin = only(headers, ORIGIN.as_str()).and_then(|origin| origin.split_once("://"));
            return origin.is_some_and(|(scheme, host)| matches!(scheme, "http" | "https") && self.is_own(host));
        }
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let is_link = request.method() == Method::GET
            && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
            && headers.get("sec-fetch-dest").is_some_and(|dest| dest == "document");
        site.is_none_or(|site| matches!(site, b"same-origin" | b"none") || is_link)
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Lets a request through where [`Trust`] has it.
pub async fn guard(State(trust): State<Arc<Trust>>, request: Request, next: Next) -> Response {
    match trust.check(&request) {
        Ok(()) => next.run(request).await,
        Err((status, error)) => (status, Json(json!({"error": error}))).into_response(),
    }
}

/// Lets a push through where it carries the token.
pub async fn push_guard(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    // Digests, so that the time of comparing says nothing of the token.
    let is_token = |found: &[u8]| Sha256::digest(found) == Sha256::digest(token.as_bytes());
    if request.method() != Method::POST || bearer(request.headers()).is_some_and(is_token) {
        return next.run(request).await;
    }
    let headers = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
    let error = json!({"error": "only the bus of this process may push here; send events to /publish"});
    (StatusCode::UNAUTHORIZED, headers, Json(error)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    /// The answer to a request with these headers; 200 where it is let through.
    fn answer(method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let trust = Trust::new(8080, &["dev.example:9000".into()]);
        trust.check(&request.body(Body::empty()).unwrap()).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_the_names_of_this_pipeline_are_served() {
        for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST:8080", "[::1]:8080", "dev.example:9000"] {
            assert_eq!(answer("GET", "/api/report", &[("host", host)]), 200, "{host}");
        }
        let hosts =
            ["evil.example", "evil.example:8080", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:8080", ""];
        for host in hosts {
            for path in ["/", "/api/report", "/publish", "/health", "/enricher"] {
                assert_eq!(answer("GET", path, &[("host", host)]), 421, "{host} {path}");
            }
        }
        assert_eq!(answer("GET", "/", &[]), 421, "no host");
        assert_eq!(answer("GET", "/", &[("host", "localhost:8080"), ("host", "evil.example")]), 421, "two hosts");
        assert_eq!(answer("GET", "http://evil.example/", &[("host", "localhost:8080")]), 421, "an absolute target");
        let trust = Trust::new(80, &[]);
        assert!(trust.is_own("localhost") && trust.is_own("localhost:80"));
    }

    #[test]
    fn pages_of_other_origins_may_send_events_and_follow_links() {
        let ask = |method, path, header| answer(method, path, &[("host", "localhost:8080"), header]);
        for origin in
            ["http://evil.example", "null", "http://localhost:3000", "http://localhost", "ftp://localhost:8080"]
        {
            assert_eq!(ask("POST", "/publish", ("origin", origin)), 200, "{origin}");
            assert_eq!(ask("OPTIONS", "/publish", ("origin", origin)), 200, "{origin}");
            for (method, path) in [
                ("GET", "/api/report"),
                ("POST", "/api/dead-letters/replay"),
                ("OPTIONS", "/api/dead-letters/replay"),
                ("POST", "/enricher"),
                ("POST", "/batcher/dead-letter"),
            ] {
                assert_eq!(ask(method, path, ("origin", origin)), 403, "{origin} {path}");
            }
        }
        assert_eq!(ask("POST", "/api/dead-letters/replay", ("origin", "http://localhost:8080")), 200);
        assert_eq!(ask("GET", "/api/report", ("sec-fetch-site", "same-origin")), 200);
        for site in ["cross-site", "same-site"] {
            assert_eq!(ask("GET", "/api/report", ("sec-fetch-site", site)), 403, "{site}");
            let link = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
            let link = [&[("host", "localhost:8080")][..], &link].concat();
            assert_eq!((answer("GET", "/", &link), answer("POST", "/api/dead-letters/replay", &link)), (200, 403));
        }
        assert_eq!(answer("POST", "/api/dead-letters/replay", &[("host", "localhost:8080")]), 200, "no browser");
    }
}
