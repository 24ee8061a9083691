//! The function as a process.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    shared::serve::main(async |_| Ok::<(), shared::serve::Failure>(())).await
}
