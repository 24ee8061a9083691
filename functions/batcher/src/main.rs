//! The function as a process.

use std::process::ExitCode;
use std::sync::Arc;

use batcher::config::{Config, cloud};
use batcher::{Batcher, router};
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
    let batcher = Arc::new(Batcher::new(cloud::deps(&settings).await?, &config));
    let ending = Arc::clone(&batcher);
    serve::run(&settings, router(Arc::clone(&batcher)), move || ending.hurry()).await?;
    batcher.metrics().report();
    Ok(batcher.close().await?)
}
