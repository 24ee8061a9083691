//! The binary says which setting it cannot use. As an integration test of this crate it also makes
//! `cargo test --workspace` build the binary that the black-box tests in `tests/` run.

use std::process::Command;

fn started_with(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batcher"));
    let output = command.env_clear().envs(settings.iter().copied()).output().expect("the binary starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_setting_that_cannot_be_used_is_named() {
    let endpoints = [
        ("PUBSUB_ENDPOINT", "http://127.0.0.1:1"),
        ("BIGQUERY_GRPC_ENDPOINT", "http://127.0.0.1:1"),
        ("BIGQUERY_REST_ENDPOINT", "http://127.0.0.1:1"),
        ("GOOGLE_CLOUD_PROJECT", "p"),
    ];
    for (name, value) in [
        ("GOOGLE_CLOUD_PROJECT", ""),
        ("PUSH_AUTH", ""),
        ("PUSH_AUTH", "maybe"),
        ("WAREHOUSE", "attic"),
        ("WAREHOUSE", "delta"),
        ("ARCHIVE_URI", "ftp://bucket/prefix"),
        ("BATCH_ROWS", "-1"),
        ("SCHEMAS_URI", "/nowhere/at/all"),
    ] {
        let settings = [&endpoints[..], &[("PUSH_AUTH", "off"), (name, value)]].concat();

        let (code, said) = started_with(&settings);

        assert_eq!(code, Some(2), "{name}={value}: {said}");
        assert!(said.contains(&format!("{name}: ")), "{name}={value}: {said}");
    }
}
