//! The binary starts. As an integration test of this crate it also makes `cargo test --workspace` build the binary that
//! the black-box tests in `tests/` run.

use std::process::Command;

#[test]
fn every_command_is_in_the_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_contextflow")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["dev", "generate", "enrich", "query", "schema"] {
        assert!(help.contains(&format!("\n  {command}")), "{command} is missing:\n{help}");
    }
}
