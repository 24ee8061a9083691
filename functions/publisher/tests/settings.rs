//! The function refuses to start without what it needs. As an integration test of this crate it also makes
//! `cargo test --workspace` build the binary that the black-box tests in `tests/` run.

use std::process::Command;

#[test]
fn a_setting_that_is_missing_or_wrong_is_named_and_the_exit_code_is_2() {
    let cases = [
        (("GOOGLE_CLOUD_PROJECT", ""), "GOOGLE_CLOUD_PROJECT: not set; give the id of the Google Cloud project"),
        (("PUBLISH_TIMEOUT_MS", "soon"), "PUBLISH_TIMEOUT_MS: `soon`: invalid digit found in string"),
        (("SCHEMAS_URI", "/nowhere"), "SCHEMAS_URI: "),
        (("PORT", "eighty"), "PORT: `eighty`: invalid digit found in string"),
    ];
    for ((name, value), said) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_publisher"));
        command.env_clear().env("GOOGLE_CLOUD_PROJECT", "p").env("PUBSUB_ENDPOINT", "http://127.0.0.1:1");
        let output = command.env(name, value).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(said), "{name}: {log}");
        assert_eq!(output.status.code(), Some(2), "{name}: {log}");
    }
}
