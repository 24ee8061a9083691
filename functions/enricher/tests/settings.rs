//! The binary refuses settings that it cannot use, and names them. As an integration test of this crate it also makes
//! `cargo test --workspace` build the binary that the black-box tests in `tests/` run.

use std::process::Command;

/// Exit code and log of the function with these settings alone.
fn start(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enricher"));
    // It must end before anything is asked of this endpoint: nobody is there.
    let usable = [("GOOGLE_CLOUD_PROJECT", "p"), ("PUBSUB_ENDPOINT", "http://127.0.0.1:9"), ("PORT", "0")];
    let output = command.env_clear().envs(usable).envs(settings.iter().copied()).output().expect("it starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("PUSH_AUTH: not set; give oidc, iam (on Cloud Run) or off", &[]),
        ("PUSH_AUTH: `none` is none of oidc, iam, off", &[("PUSH_AUTH", "none")]),
        ("PUSH_AUTH: iam trusts", &[("PUSH_AUTH", "iam"), ("PUSH_AUDIENCE", "a"), ("PUSH_SERVICE_ACCOUNT", "b")]),
        ("PUSH_AUDIENCE: not set", &[("PUSH_AUTH", "oidc")]),
        ("PUSH_SERVICE_ACCOUNT: not set", &[("PUSH_AUTH", "oidc"), ("PUSH_AUDIENCE", "a")]),
        ("GOOGLE_CLOUD_PROJECT: not set", &[("PUSH_AUTH", "off"), ("GOOGLE_CLOUD_PROJECT", "")]),
        ("PORT: `http`", &[("PUSH_AUTH", "off"), ("PORT", "http")]),
        ("RUST_LOG: `info,x=lou`", &[("PUSH_AUTH", "off"), ("RUST_LOG", "info,x=lou")]),
        ("PACK_WAIT_MS: `soon`", &[("PUSH_AUTH", "off"), ("PACK_WAIT_MS", "soon")]),
        ("PACK_ROWS: 501: give 1 to 500", &[("PUSH_AUTH", "off"), ("PACK_ROWS", "501")]),
        ("IP_ANONYMISE: `some` is none of off, truncate, drop", &[("PUSH_AUTH", "off"), ("IP_ANONYMISE", "some")]),
        ("MAX_CONCURRENT_REQUESTS: give a number from 1 up", &[("PUSH_AUTH", "off"), ("MAX_CONCURRENT_REQUESTS", "0")]),
        ("MAX_HELD_BYTES: `16 MiB`", &[("PUSH_AUTH", "off"), ("MAX_HELD_BYTES", "16 MiB")]),
        ("GEO_URI: ftp://b/geo.csv: no such kind of bucket", &[("PUSH_AUTH", "off"), ("GEO_URI", "ftp://b/geo.csv")]),
        ("GEO_URI: /nowhere/geo.csv", &[("PUSH_AUTH", "off"), ("GEO_URI", "/nowhere/geo.csv")]),
        ("LOOKUP_MAX_AGE_MS: `1m`", &[("PUSH_AUTH", "off"), ("LOOKUP_MAX_AGE_MS", "1m")]),
        ("SCHEMAS_URI: schema file /nowhere: ", &[("PUSH_AUTH", "off"), ("SCHEMAS_URI", "/nowhere")]),
    ];
    for (expected, settings) in cases {
        let (code, log) = start(settings);
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap();
        let reason = last["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with(expected), "{expected} is not said of {settings:?}:\n{log}");
        assert_eq!((code, &last["severity"]), (Some(2), &"ERROR".into()), "{log}");
    }
}
