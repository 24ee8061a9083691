//! The function as a process.

use std::process::ExitCode;
use std::sync::Arc;

use kill_switch::config::{Config, cloud};
use kill_switch::state::Mode;
use kill_switch::{KillSwitch, router};
use mimalloc::MiMalloc;
use shared::serve::{self, Failure};
use shared::settings::Settings;

/// The allocator of every function.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    serve::main(wire).await
}

async fn wire(settings: Settings) -> Result<(), Failure> {
    let config = Config::read(&settings)?;
    if config.mode == Mode::DryRun {
        tracing::warn!("MODE=dry-run: what would be stopped is logged, and nothing is stopped");
    }
    let switch = Arc::new(KillSwitch::new(cloud::deps(&settings)?, config));
    switch.announce().await;
    serve::run(&settings, router(Arc::clone(&switch)), || ()).await?;
    switch.metrics().report();
    Ok(())
}
