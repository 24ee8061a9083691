//! The function as a process.

use std::process::ExitCode;
use std::sync::Arc;

use enricher::config::{Config, cloud};
use enricher::{Enricher, router};
use mimalloc::MiMalloc;
use shared::serve::{self, Failure};
use shared::settings::Settings;

/// A push is many small allocations on whatever thread is free.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    serve::main(wire).await
}

async fn wire(settings: Settings) -> Result<(), Failure> {
    let config = Config::read(&settings)?;
    let enricher = Arc::new(Enricher::new(cloud::deps(&settings).await?, config));
    let ending = Arc::clone(&enricher);
    serve::run(&settings, router(Arc::clone(&enricher)), move || ending.hurry()).await?;
    enricher.metrics().report();
    Ok(())
}
