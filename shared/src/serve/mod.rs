//! A function as a process: it starts from its settings, serves HTTP and ends by SIGTERM with nothing held.

use std::future::Future;
use std::process::ExitCode;

use axum::Router;
use tokio::net::TcpListener;

use crate::settings::Settings;
use crate::telemetry;

/// Runs `wire` with the settings of the process; what it answers as an error is said aloud.
pub async fn main<F: Future<Output = Result<(), String>>>(wire: impl FnOnce(Settings) -> F) -> ExitCode {
    let settings = Settings::from_env();
    telemetry::init(settings.text("RUST_LOG", "info"));
    match wire(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            tracing::error!(reason, "cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// Serves `router` on `PORT` until the process is told to end; then `on_end` is called once, and what is under way is
/// answered.
pub async fn run(settings: &Settings, router: Router, on_end: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let port: u16 = settings.parsed("PORT", 8080).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(("0.0.0.0", port)).await.map_err(|error| format!("PORT: {port}: {error}"))?;
    let ended = async move {
        let _ = tokio::signal::ctrl_c().await;
        on_end();
    };
    axum::serve(listener, router).with_graceful_shutdown(ended).await.map_err(|error| error.to_string())
}
