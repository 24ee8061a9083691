//! The binary starts. As an integration test of this crate it also makes `cargo test --workspace` build the binary that
//! the black-box tests in `tests/` run.

use std::process::Command;

#[test]
fn every_command_is_in_the_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_contextflow")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["dev", "generate", "enrich", "query", "schema", "status", "cost", "release"] {
        assert!(help.contains(&format!("\n  {command}")), "{command} is missing:\n{help}");
    }
}

#[cfg(not(feature = "cloud"))]
#[test]
fn what_needs_the_clouds_says_how_to_get_them() {
    let commands: [&[&str]; 6] = [
        &["schema", "diff"],
        &["schema", "apply", "--dry-run"],
        &["release", "--project", "project"],
        &["query", "--warehouse", "bigquery", "SELECT 1"],
        &["status", "--warehouse", "bigquery"],
        &["generate", "--to", "pubsub://project/topic", "--count", "1"],
    ];
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_contextflow")).args(command).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {error}");
        assert!(error.contains("`cargo run --features cloud -- "), "{command:?}: {error}");
    }
}
