//! The static pages, built into the binary.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

/// Nothing runs or loads but what the page brings itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' https:; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($name:literal) => {
        include_str!(concat!("../../../site/", $name))
    };
}

const FILES: [(&str, &str, &str); 12] = [
    ("/", HTML, file!("index.html")),
    ("/style.css", STYLE, file!("style.css")),
    ("/app.js", SCRIPT, file!("app.js")),
    ("/chart.js", SCRIPT, file!("chart.js")),
    ("/dead-letters.js", SCRIPT, file!("dead-letters.js")),
    ("/http.js", SCRIPT, file!("http.js")),
    ("/publish.js", SCRIPT, file!("publish.js")),
    ("/ranks.js", SCRIPT, file!("ranks.js")),
    ("/report.js", SCRIPT, file!("report.js")),
    ("/text.js", SCRIPT, file!("text.js")),
    ("/visits", HTML, file!("visits.html")),
    ("/visits.js", SCRIPT, file!("visits.js")),
];

/// A route for each file of the pages.
pub fn router() -> Router {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let headers = [
            (CONTENT_TYPE, kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(async move || (headers, text)))
    })
}
