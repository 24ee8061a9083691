//! The function as a process: on AWS Lambda, else plain HTTP on `PORT`.

use std::process::ExitCode;
use std::sync::Arc;

use publisher::{config, router_within, runtime};
use shared::serve::{self, Failure};
use shared::settings::Settings;

#[tokio::main]
async fn main() -> ExitCode {
    serve::main(wire).await
}

async fn wire(settings: Settings) -> Result<(), Failure> {
    let limits = config::limits(&settings)?;
    let router = router_within(Arc::new(config::deps(&settings).await?), limits);
    match settings.get("AWS_LAMBDA_RUNTIME_API") {
        Some(_) => runtime::lambda(router).await,
        None => runtime::http(&settings, router).await,
    }
}
