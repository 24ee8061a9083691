//! What the router runs under: AWS Lambda, or plain HTTP. Each knows in its own way whom a request comes from.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware::{self, Next};
use axum::response::Response;
use lambda_http::RequestExt;
use lambda_http::request::RequestContext;
use lambda_http::tower::ServiceExt;
use shared::serve::{self, Failure};
use shared::settings::Settings;

use crate::ClientAddress;

/// Answers the events of API Gateway (HTTP API, REST API) and of function URLs, one after the other.
pub async fn lambda(router: Router) -> Result<(), Failure> {
    let ended = lambda_http::run(router.map_request(from_gateway)).await;
    ended.map_err(|error| Failure::Work(format!("the Lambda runtime ended: {error}")))
}

/// Serves on `PORT` until SIGTERM or Ctrl-C; what is under way is answered.
pub async fn http(settings: &Settings, router: Router) -> Result<(), Failure> {
    serve::run_open(settings, router.layer(middleware::from_fn(from_socket)), || ()).await
}

/// The gateway tells the address in the request's context, which no client can write. Its stage is no part of the path.
fn from_gateway(mut request: lambda_http::Request) -> lambda_http::Request {
    let (stage, address) = match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV1(context)) => (&context.stage, &context.identity.source_ip),
        Some(RequestContext::ApiGatewayV2(context)) => (&context.stage, &context.http.source_ip),
        _ => (&None, &None),
    };
    let address = address.as_ref().and_then(|address| address.parse().ok());
    let path = without_stage(request.raw_http_path(), stage.as_deref().unwrap_or_default());
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(path) = PathAndQuery::try_from(format!("{path}{query}")) {
        *request.uri_mut() = Uri::from(path);
    }
    if let Some(address) = address {
        request.extensions_mut().insert(ClientAddress(address));
    }
    request
}

/// `/publish` of `/prod/publish`.
fn without_stage<'p>(path: &'p str, stage: &str) -> &'p str {
    let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(stage));
    rest.filter(|rest| !stage.is_empty() && rest.starts_with('/')).unwrap_or(path)
}

/// The address of the socket.
async fn from_socket(ConnectInfo(address): ConnectInfo<SocketAddr>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(ClientAddress(address.ip()));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_first_segment_is_the_stage() {
        assert_eq!(without_stage("/prod/publish", "prod"), "/publish");
        assert_eq!(without_stage("/publish", "prod"), "/publish");
        assert_eq!(without_stage("/publish", "publish"), "/publish");
        assert_eq!(without_stage("/product/publish", "prod"), "/product/publish");
        assert_eq!(without_stage("/publish", "$default"), "/publish");
        assert_eq!(without_stage("//publish", ""), "//publish");
        assert_eq!(without_stage("", "prod"), "");
    }
}
