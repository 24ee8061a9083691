//! A function as a process: it starts from its settings, serves HTTP to those who may push, and ends by SIGTERM with
//! nothing held.

mod auth;
mod guard;
mod keys;
mod limits;
mod listen;
mod progress;

use std::fmt;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub use auth::bearer;
pub use guard::Guard;
pub use limits::{Limits, descriptors};
pub use listen::serve;

use crate::clock::Clock;
use crate::settings::{SettingError, Settings, fault};
use crate::telemetry;

/// From the signal to the end of the process, whatever happens. Cloud Run kills after 10 s.
const END_WITHIN: Duration = Duration::from_secs(8);
/// Of that, what requests under way have to be answered in.
const ANSWER_WITHIN: Duration = Duration::from_secs(7);

/// Why a function cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A setting cannot be used: exit code 2.
    Setting(SettingError),
    /// Anything else: exit code 1.
    Work(String),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Setting(_) => ExitCode::from(2),
            Self::Work(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(error) => error.fmt(f),
            Self::Work(reason) => f.write_str(reason),
        }
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self::Setting(error)
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Work(reason)
    }
}

/// Runs `wire` with the settings of the process; what it answers as an error is said aloud, with the variable where one
/// is at fault.
pub async fn main<F, E>(wire: impl FnOnce(Settings) -> F) -> ExitCode
where
    F: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    let settings = Settings::from_env();
    let logging = telemetry::init(settings.text("RUST_LOG", "info"), settings.get("GOOGLE_CLOUD_PROJECT"));
    let work = async {
        logging?;
        wire(settings).await.map_err(Into::into)
    };
    match work.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!(reason = %failure, "cannot go on");
            failure.exit_code()
        }
    }
}

/// Serves `router` on `PORT`, behind the [`Guard`] that the settings ask for, until SIGTERM or Ctrl-C. Then `on_end` is
/// called once, so that nothing waits any longer, and what is under way is answered. After 8 s the process ends,
/// whatever is left.
pub async fn run(settings: &Settings, router: Router, on_end: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let guard = Guard::read(settings, Clock::system())?;
    run_open(settings, guard.before(router), on_end).await
}

/// [`run`] for everyone, without a [`Guard`].
pub async fn run_open(
    settings: &Settings,
    router: Router,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<(), Failure> {
    let limits = Limits::read(settings)?;
    let (listener, asked_to_end) = listen(settings).await?;
    let ended = async move {
        asked_to_end.await;
        std::thread::spawn(end_by_force);
        on_end();
    };
    serve(listener, router, limits, ended, ANSWER_WITHIN).await;
    Ok(())
}

/// Listens on `PORT`; the future is there once SIGTERM or Ctrl-C asks the process to end.
async fn listen(settings: &Settings) -> Result<(TcpListener, impl Future<Output = ()> + Send + use<>), Failure> {
    let port: u16 = settings.parsed("PORT", 8080)?;
    let listener =
        TcpListener::bind(("0.0.0.0", port)).await.map_err(|error| fault("PORT", format!("{port}: {error}")))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
    let asked_to_end = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("asked to end");
    };
    tracing::info!(port, "serving");
    Ok((listener, asked_to_end))
}

/// A thread of its own, since a runtime whose threads are all blocked runs no timer.
fn end_by_force() {
    std::thread::sleep(END_WITHIN);
    tracing::error!("not at an end in time, ended by force");
    std::process::exit(1);
}
