//! The binary refuses settings that it cannot use, and names them. As an integration test of this crate it also makes
//! `cargo test --workspace` build the binary that the black-box tests in `tests/` run.

use std::process::Command;

/// Exit code and log of the function with these settings in place of usable ones.
fn start(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kill-switch"));
    // It must end before anything is asked of these endpoints: nobody is there.
    let usable = [
        ("GOOGLE_CLOUD_PROJECT", "p"),
        ("PUSH_AUTH", "off"),
        ("PORT", "0"),
        ("MODE", "armed"),
        ("BILLING_ACCOUNT_ID", "0A1B2C-3D4E5F-678901"),
        ("BUDGET_ID", "de72f49d-779b-4945-a127-4d6ce8def0bb"),
        ("MONTHLY_LIMIT", "100 USD"),
        ("DAILY_LIMIT", "20 USD"),
        ("PUBLISHER_MEMBER", "serviceAccount:contextflow-publisher@p.iam.gserviceaccount.com"),
        ("STATE_URI", "gs://p-contextflow/kill-switch"),
        ("PUBSUB_ENDPOINT", "http://127.0.0.1:9"),
        ("BILLING_ENDPOINT", "http://127.0.0.1:9"),
        ("STORAGE_ENDPOINT", "http://127.0.0.1:9"),
    ];
    let output = command.env_clear().envs(usable).envs(settings.iter().copied()).output().expect("it starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let cases: &[(&str, (&str, &str))] = &[
        ("GOOGLE_CLOUD_PROJECT: not set", ("GOOGLE_CLOUD_PROJECT", "")),
        ("PUSH_AUTH: not set; give oidc, iam (on Cloud Run) or off", ("PUSH_AUTH", "")),
        ("PORT: `http`", ("PORT", "http")),
        ("MODE: not set; give dry-run (only logs what it would do) or armed", ("MODE", "")),
        ("MODE: `on`: neither dry-run nor armed", ("MODE", "on")),
        ("BILLING_ACCOUNT_ID: not set; give the billing account as 0X0X0X-0X0X0X-0X0X0X", ("BILLING_ACCOUNT_ID", "")),
        (
            "BILLING_ACCOUNT_ID: `billingAccounts/0A1B2C-3D4E5F-678901`",
            ("BILLING_ACCOUNT_ID", "billingAccounts/0A1B2C-3D4E5F-678901"),
        ),
        ("BILLING_ACCOUNT_ID: `0a1b2c-3d4e5f-678901`", ("BILLING_ACCOUNT_ID", "0a1b2c-3d4e5f-678901")),
        ("BUDGET_ID: not set", ("BUDGET_ID", "")),
        (
            "BUDGET_ID: `billingAccounts/A/budgets/B`: give the budget's id alone",
            ("BUDGET_ID", "billingAccounts/A/budgets/B"),
        ),
        ("MONTHLY_LIMIT: not set; give an amount and its currency, `100 USD`", ("MONTHLY_LIMIT", "")),
        ("MONTHLY_LIMIT: `100`", ("MONTHLY_LIMIT", "100")),
        ("MONTHLY_LIMIT: `0 USD`", ("MONTHLY_LIMIT", "0 USD")),
        ("DAILY_LIMIT: not set", ("DAILY_LIMIT", "")),
        ("DAILY_LIMIT: `inf USD`", ("DAILY_LIMIT", "inf USD")),
        ("DAILY_LIMIT: EUR, and MONTHLY_LIMIT is in USD", ("DAILY_LIMIT", "20 EUR")),
        ("BRAKE_AT: 0: give a percentage from 1 to 1000", ("BRAKE_AT", "0")),
        ("BRAKE_AT: `80%`", ("BRAKE_AT", "80%")),
        (
            "STOP_AT: 79: give a percentage from 80 to 1000; the order is BRAKE_AT, STOP_AT, DETACH_AT",
            ("STOP_AT", "79"),
        ),
        ("DETACH_AT: 99: give a percentage from 100 to 1000", ("DETACH_AT", "99")),
        ("DETACH: `daily`: give never or monthly", ("DETACH", "daily")),
        ("DETACH_AFTER: `soon`: give a time such as 6h or 90m", ("DETACH_AFTER", "soon")),
        ("DETACH_AFTER: `0h`", ("DETACH_AFTER", "0h")),
        ("PROJECTS: p (GOOGLE_CLOUD_PROJECT) is not on the list", ("PROJECTS", "q,r")),
        ("PROJECTS: `projects/q`: give ids of projects", ("PROJECTS", "p,projects/q")),
        ("PROJECTS: `p,,q`: give each name once", ("PROJECTS", "p,,q")),
        (
            "SUBSCRIPTIONS: projects/p/subscriptions/budget-sub brings the budget's notices",
            ("SUBSCRIPTIONS", "clickstream-raw-sub,budget-sub"),
        ),
        (
            "SUBSCRIPTIONS: projects/p/subscriptions/budget-sub brings",
            ("SUBSCRIPTIONS", "projects/p/subscriptions/budget-sub"),
        ),
        (
            "SUBSCRIPTIONS: projects/p/subscriptions/clickstream-raw-sub brings",
            ("BUDGET_SUBSCRIPTION", "clickstream-raw-sub"),
        ),
        ("SUBSCRIPTIONS: `projects/p/topics/t`: give names of subscriptions", ("SUBSCRIPTIONS", "projects/p/topics/t")),
        ("PUBLISHER_MEMBER: not set", ("PUBLISHER_MEMBER", "")),
        ("PUBLISHER_MEMBER: `allUsers`: give the IAM member that publishes", ("PUBLISHER_MEMBER", "allUsers")),
        ("STATE_URI: not set", ("STATE_URI", "")),
        (
            "STATE_URI: /tmp/state: a folder replaces no object on condition; give gs:// or s3://",
            ("STATE_URI", "/tmp/state"),
        ),
        ("STATE_URI: ftp://b/p: no such kind of bucket", ("STATE_URI", "ftp://b/p")),
        ("MAX_NOTICE_AGE_MS: 0 refuses every notice", ("MAX_NOTICE_AGE_MS", "0")),
        ("MAX_NOTICE_AGE_MS: `1h`", ("MAX_NOTICE_AGE_MS", "1h")),
        ("PUBSUB_ENDPOINT: `nowhere`", ("PUBSUB_ENDPOINT", "nowhere")),
        ("BILLING_ENDPOINT: `nowhere`", ("BILLING_ENDPOINT", "nowhere")),
    ];
    for (expected, setting) in cases {
        let (code, log) = start(&[*setting]);
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap();
        let reason = last["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with(expected), "{expected} is not said of {setting:?}:\n{log}");
        assert_eq!((code, &last["severity"]), (Some(2), &"ERROR".into()), "{log}");
    }
}
