//! The kill-switch: budget notices in; brake, stop and detach out, before a server that records them.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use futures::future::join_all;
use kill_switch::controls::rest::{Backlog, Rest};
use kill_switch::day::BillingDays;
use kill_switch::release::{self, ReleaseError, Subscription};
use kill_switch::state::{Action, Claim, Grant, Mode, State, Status};
use kill_switch::store::Store;
use kill_switch::{Config, Deps, KillSwitch};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use pipeline_tests::binary::binary_beside;
use pipeline_tests::google_server::{Answer, GoogleServer};
use pipeline_tests::parts::{self, Process, free_port};
use pipeline_tests::pubsub::{PROJECT as EMULATED, PubSubApi, PushTo};
use pipeline_tests::topic_server::serve;
use pipeline_tests::{NOW, get, post_json};
use serde_json::{Value, json};
use shared::bucket::{self, Location};
use shared::clock::{Clock, DAY, Micros, SECOND};
use shared::decode::time::{timestamp, timestamp_text};
use shared::metrics::Metrics;
use shared::push::Push;
use shared::settings::Settings;

const HOUR: Micros = 3_600 * SECOND;
const OCTOBER: &str = "2026-10-01T07:00:00Z";
const NOVEMBER: &str = "2026-11-01T07:00:00Z";
const ACCOUNT: &str = "0A1B2C-3D4E5F-678901";
const BUDGET: &str = "de72f49d-779b-4945-a127-4d6ce8def0bb";
const MEMBER: &str = "serviceAccount:contextflow-publisher@p.iam.gserviceaccount.com";
const TOPIC: &str = "projects/p/topics/clickstream-raw-topic";
const SUBSCRIPTIONS: [&str; 4] =
    ["clickstream-raw-sub", "clickstream-enriched-sub", "clickstream-archive-sub", "clickstream-dead-letter-sub"];
/// How long a call may take in these tests.
const CALL: Duration = Duration::from_secs(2);

fn subscription(name: &str) -> String {
    format!("projects/p/subscriptions/{name}")
}

/// A notice; by default one of October that has just been published.
#[derive(Clone)]
struct Notice {
    body: Value,
    attributes: Vec<(&'static str, &'static str)>,
    published_at: Micros,
    project: &'static str,
}

impl Notice {
    fn of(cost: f64) -> Self {
        let body = json!({
            "budgetDisplayName": "ContextFlow", "costAmount": cost, "costIntervalStart": OCTOBER, "budgetAmount": 1.0,
            "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD", "forecastThresholdExceeded": 9.0,
        });
        let attributes = vec![("billingAccountId", ACCOUNT), ("budgetId", BUDGET), ("schemaVersion", "1.0")];
        Self { body, attributes, published_at: NOW, project: "p" }
    }

    fn at(mut self, published_at: Micros) -> Self {
        self.published_at = published_at;
        self
    }

    fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.body[member] = value.into();
        self
    }

    fn attribute(mut self, name: &'static str, value: &'static str) -> Self {
        self.attributes.retain(|(other, _)| *other != name);
        self.attributes.push((name, value));
        self
    }

    fn push(&self) -> Vec<u8> {
        let attributes = self.attributes.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string()));
        Push {
            subscription: format!("projects/{}/subscriptions/budget-sub", self.project),
            message_id: "1".into(),
            published_at: Some(self.published_at),
            attributes: attributes.collect(),
            data: self.body.to_string().into_bytes().into(),
            attempt: 1,
        }
        .to_json()
    }
}

/// A project with its pipeline, and a bucket for the state.
struct World {
    google: GoogleServer,
    place: Location,
    clock: Clock,
}

/// One instance of the kill-switch.
#[derive(Clone)]
struct Instance {
    router: Router,
    switch: Arc<KillSwitch>,
}

fn memory() -> Location {
    Location { store: Arc::new(InMemory::new()), path: Path::from("kill-switch"), uri: "memory://kill-switch".into() }
}

fn push_settings(name: &str) -> Value {
    json!({
        "pushEndpoint": format!("https://{name}.example.com/"), "attributes": {"x-goog-version": "v1"},
        "oidcToken": {"serviceAccountEmail": "contextflow-push@p.iam.gserviceaccount.com", "audience": "enricher"},
    })
}

impl World {
    async fn start() -> Self {
        Self::in_bucket(memory()).await
    }

    async fn in_bucket(place: Location) -> Self {
        let google = GoogleServer::start().await;
        for name in SUBSCRIPTIONS.iter().chain(&["budget-sub"]) {
            google.set_push(&subscription(name), push_settings(name));
        }
        google.set_bindings(TOPIC, bindings(&[MEMBER, "serviceAccount:other@p.iam.gserviceaccount.com"]));
        google.set_account("p", &format!("billingAccounts/{ACCOUNT}"));
        Self { google, place, clock: Clock::manual(NOW) }
    }

    fn settings(&self, more: &[(&str, &str)]) -> Settings {
        let mut all = vec![
            ("GOOGLE_CLOUD_PROJECT", "p"),
            ("MODE", "armed"),
            ("BILLING_ACCOUNT_ID", ACCOUNT),
            ("BUDGET_ID", BUDGET),
            ("MONTHLY_LIMIT", "100 USD"),
            ("DAILY_LIMIT", "1000 USD"),
            ("PUBLISHER_MEMBER", MEMBER),
            ("PUBSUB_ENDPOINT", &self.google.url),
            ("BILLING_ENDPOINT", &self.google.url),
            ("MONITORING_ENDPOINT", &self.google.url),
        ];
        all.extend(more);
        Settings::from_iter(all)
    }

    fn store(&self) -> Store {
        Store::new(&self.place)
    }

    fn controls(&self) -> Rest {
        Rest::with_timeout(&self.settings(&[]), CALL).unwrap()
    }

    fn instance(&self) -> Instance {
        self.instance_with(&[])
    }

    fn instance_with(&self, more: &[(&str, &str)]) -> Instance {
        let settings = self.settings(more);
        let deps = Deps {
            controls: Arc::new(Rest::with_timeout(&settings, CALL).unwrap()),
            store: self.store(),
            days: BillingDays::new().unwrap(),
            clock: self.clock.clone(),
            metrics: Arc::new(Metrics::new(self.clock.clone())),
        };
        let switch = Arc::new(KillSwitch::new(deps, Config::read(&settings).unwrap()));
        Instance { router: kill_switch::router(Arc::clone(&switch)), switch }
    }

    /// One that may detach.
    fn detaching(&self) -> Instance {
        self.instance_with(&[("DETACH", "monthly")])
    }

    /// One that may detach, in a world where brake and stop have just been done.
    async fn about_to_detach(&self) -> Instance {
        let instance = self.detaching();
        assert_eq!(instance.push(&Notice::of(125.0)).await, 204);
        assert_eq!(self.done(), [4, 1, 0]);
        instance
    }

    /// A notice that is published so many hours later, which it then is.
    fn later(&self, hours: Micros, cost: f64) -> Notice {
        self.clock.set(NOW + hours * HOUR);
        Notice::of(cost).at(NOW + hours * HOUR)
    }

    async fn state(&self) -> State {
        self.store().read().await.unwrap()
    }

    /// How often a subscription was made pull, the right was taken away, billing was taken away.
    fn done(&self) -> [usize; 3] {
        let calls = self.google.calls();
        let count = |end: &str, is_done: &dyn Fn(&Value) -> bool| {
            let calls = calls.iter().filter(|call| call.method != "GET" && call.path.ends_with(end));
            calls.filter(|call| is_done(&call.body)).count()
        };
        [
            count(":modifyPushConfig", &|body| body["pushConfig"] == json!({})),
            count(":setIamPolicy", &|body| !body["policy"]["bindings"][0]["members"].to_string().contains(MEMBER)),
            count("/billingInfo", &|body| body == &json!({"billingAccountName": ""})),
        ]
    }
}

fn bindings(publishers: &[&str]) -> Value {
    let condition = json!({"title": "weekdays", "expression": "request.time.getDayOfWeek() < 6"});
    json!([
        {"role": "roles/pubsub.publisher", "members": publishers},
        {"role": "roles/pubsub.publisher", "members": ["serviceAccount:third@p.iam.gserviceaccount.com"], "condition": condition},
        {"role": "roles/pubsub.viewer", "members": [MEMBER]},
    ])
}

impl Instance {
    async fn push(&self, notice: &Notice) -> u16 {
        post_json(&self.router, "/", notice.push()).await.status.as_u16()
    }

    async fn metrics(&self) -> String {
        String::from_utf8(get(&self.router, "/metrics").await.body.to_vec()).unwrap()
    }
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![vec![]] };
    let with = |order: Vec<usize>, at: usize| [&order[..at], &[last], &order[at..]].concat();
    orders(last).into_iter().flat_map(|order| (0..count).map(move |at| with(order.clone(), at))).collect()
}

#[tokio::test]
async fn in_every_order_of_five_notices_the_crossed_one_alone_acts_and_once() {
    for (crossed, month, day, expected) in [
        (85.0, "100 USD", "1000 USD", [4, 0, 0]),
        (105.0, "100 USD", "1000 USD", [4, 1, 0]),
        (499.0, "100 USD", "1000 USD", [4, 1, 0]),
        (26.0, "1000 USD", "20 USD", [4, 0, 0]),
        (499.0, "1000 USD", "20 USD", [4, 1, 0]),
    ] {
        let mut tried = 0;
        for order in orders(5) {
            let world = World::start().await;
            let settings = [("MONTHLY_LIMIT", month), ("DAILY_LIMIT", day), ("DETACH", "monthly")];
            let instance = world.instance_with(&settings);
            // What was spent before the day: without it the first notice would set the day's baseline.
            assert_eq!(instance.push(&Notice::of(10.0).at(NOW - 20 * HOUR)).await, 204);
            let notices = [
                Notice::of(15.0).at(NOW - 2 * HOUR),
                Notice::of(crossed),
                Notice::of(crossed),
                Notice::of(500.0).at(NOW - DAY - SECOND),
                Notice::of(900.0).with("currencyCode", "EUR"),
            ];
            for at in &order {
                assert_eq!(instance.push(&notices[*at]).await, 204, "{order:?}");
            }
            assert_eq!(world.done(), expected, "{crossed} in the order {order:?}");
            assert_eq!(world.google.changes().len(), expected.iter().sum::<usize>(), "nothing else is changed");
            tried += 1;
        }
        assert_eq!(tried, 120);
    }
}

#[tokio::test]
async fn brake_stop_and_a_later_detach_save_what_they_change() {
    let world = World::start().await;
    let instance = world.detaching();
    assert_eq!(instance.push(&Notice::of(500.0)).await, 204);
    assert_eq!(world.done(), [4, 1, 0], "one notice, however late");

    assert_eq!(instance.push(&world.later(6, 501.0)).await, 204);

    let changes = world.google.changes();
    assert!(changes[..4].iter().all(|change| change.ends_with(":modifyPushConfig")), "{changes:?}");
    assert_eq!(changes[4..], [format!("POST /v1/{TOPIC}:setIamPolicy"), "PUT /v1/projects/p/billingInfo".into()]);
    let read = format!("/v1/{TOPIC}:getIamPolicy?options.requestedPolicyVersion=3");
    assert!(world.google.calls().iter().any(|call| call.path == read), "{read}");
    let state = world.state().await;
    assert_eq!(state.active, BTreeSet::from(Action::ALL));
    for name in SUBSCRIPTIONS {
        assert_eq!(world.google.push(&subscription(name)), json!({}), "{name} is pulled from");
        assert_eq!(Value::from(state.saved[&subscription(name)].clone()), push_settings(name));
    }
    assert_eq!(world.google.push(&subscription("budget-sub")), push_settings("budget-sub"), "never the budget's");
    assert_eq!(world.google.bindings(TOPIC), bindings(&["serviceAccount:other@p.iam.gserviceaccount.com"]));
    assert_eq!(world.google.account("p"), "");
    assert_eq!(state.detached, BTreeMap::from([("p".to_string(), ACCOUNT.to_string())]));
    assert_eq!((state.due(), state.claim), (vec![], None));
}

#[tokio::test]
async fn what_is_in_force_stays_so_over_an_interval_and_a_new_one_acts_anew() {
    let world = World::start().await;
    let instance = world.instance();
    assert_eq!(instance.push(&Notice::of(80.0)).await, 204);
    let saved = world.state().await.saved;
    let november = |cost: f64, hours: Micros| {
        let published_at = timestamp("2026-11-01T08:00:00Z").unwrap() + hours * HOUR;
        world.clock.set(published_at);
        Notice::of(cost).with("costIntervalStart", NOVEMBER).at(published_at)
    };

    assert_eq!(instance.push(&november(3.0, 0)).await, 204);
    let state = world.state().await;
    assert_eq!((state.active, &state.saved), (BTreeSet::from([Action::Brake]), &saved), "nobody has released it");
    // Of the interval before, whatever it says and whenever it was published.
    assert_eq!(instance.push(&Notice::of(400.0).at(world.clock.now())).await, 204);
    assert_eq!(world.done(), [4, 0, 0]);
    assert!(instance.metrics().await.contains(r#"contextflow_refused_total{reason="old_interval"} 1"#));

    assert_eq!(instance.push(&november(101.0, 2)).await, 204);
    assert_eq!(world.done(), [4, 1, 0], "they are pulled from already");
    let state = world.state().await;
    assert_eq!((state.active, &state.saved), (BTreeSet::from([Action::Brake, Action::Stop]), &saved));
}

#[tokio::test]
async fn a_day_that_costs_too_much_is_stopped_whatever_the_month_has_left() {
    let world = World::start().await;
    let instance = world.instance_with(&[("MONTHLY_LIMIT", "1000 USD"), ("DAILY_LIMIT", "20 USD")]);
    // The clocks go back in the night to 1 November: the day has 25 hours in California.
    let at = |time: &str, cost: f64| {
        let published_at = timestamp(time).unwrap();
        world.clock.set(published_at);
        Notice::of(cost).with("costIntervalStart", "2026-10-29T07:00:00Z").at(published_at)
    };
    for (time, cost, done) in [
        ("2026-10-31T12:00:00Z", 300.0, [0, 0, 0]),
        ("2026-11-01T06:59:59Z", 315.0, [0, 0, 0]),
        ("2026-11-01T07:00:00Z", 330.9, [0, 0, 0]),
        ("2026-11-02T07:59:59Z", 330.9, [0, 0, 0]),
        ("2026-11-02T08:00:00Z", 346.8, [0, 0, 0]),
        ("2026-11-02T09:00:00Z", 346.9, [4, 0, 0]),
        ("2026-11-02T10:00:00Z", 355.0, [4, 1, 0]),
        ("2026-11-03T07:00:00Z", 455.0, [4, 1, 0]),
    ] {
        assert_eq!(instance.push(&at(time, cost)).await, 204);
        assert_eq!(world.done(), done, "{time}");
    }
}

#[tokio::test]
async fn a_forged_or_unusable_notice_is_settled_counted_and_does_nothing() {
    let world = World::start().await;
    let instance = world.instance();
    let all = Notice::of(500.0);
    let mut foreign = all.clone();
    foreign.project = "q";
    let forged = [
        ("other_project", foreign),
        ("other_schema_version", all.clone().attribute("schemaVersion", "2.0")),
        ("other_billing_account", all.clone().attribute("billingAccountId", "0A1B2C-3D4E5F-678902")),
        ("other_budget", all.clone().attribute("budgetId", "de72f49d")),
        ("bad_notice", all.clone().with("costAmount", "500")),
        ("bad_amount", all.clone().with("costAmount", -500.0)),
        ("bad_amount", all.clone().with("budgetAmount", 0.0)),
        ("other_currency", all.clone().with("currencyCode", "JPY")),
        ("stale", all.clone().at(NOW - DAY - SECOND)),
        ("in_the_future", all.clone().at(NOW + 61 * SECOND)),
        ("future_interval", all.clone().with("costIntervalStart", "2026-10-21T07:00:00Z")),
        ("old_interval", all.clone().with("costIntervalStart", "2026-09-01T07:00:00Z")),
    ];
    for (reason, notice) in &forged {
        assert_eq!(instance.push(notice).await, 204, "{reason}");
        assert!(
            instance.metrics().await.contains(&format!("contextflow_refused_total{{reason=\"{reason}\"}}")),
            "{reason}"
        );
    }
    assert_eq!(post_json(&instance.router, "/", "{}").await.status, StatusCode::NO_CONTENT);
    assert!(world.google.calls().is_empty(), "{:?}", world.google.calls());
    assert_eq!(world.state().await, State::default());

    assert_eq!(instance.push(&all).await, 204);
    assert_eq!(world.done(), [4, 1, 0], "the genuine one");
}

#[tokio::test]
async fn an_error_of_the_billing_api_is_answered_503_until_it_is_done_once() {
    for (fault, times, in_process, detaches) in [
        (Answer::Status(403), 1, false, 2),
        (Answer::Status(500), 3, false, 4),
        (Answer::Status(500), 2, true, 3),
        (Answer::Silence, 1, false, 2),
        // Google has done it, and the answer was lost: it is not done again.
        (Answer::DoneInSilence, 1, false, 1),
    ] {
        let world = World::start().await;
        let instance = world.about_to_detach().await;
        world.google.fail("PUT", "/billingInfo", fault, times);
        let notice = world.later(6, 150.0);

        let first = instance.push(&notice).await;

        assert_eq!(first, if in_process { 204 } else { 503 });
        if !in_process {
            let state = world.state().await;
            assert_eq!((state.due(), state.claim), (vec![Action::Detach], None));
            assert_eq!(instance.push(&notice).await, 204, "delivered again");
        }
        assert_eq!(world.google.account("p"), "");
        assert_eq!(world.done(), [4, 1, detaches]);
        for _ in 0..3 {
            assert_eq!(instance.push(&notice).await, 204);
        }
        assert_eq!(world.done(), [4, 1, detaches], "once done it is done");
    }
    let world = World::start().await;
    let instance = world.about_to_detach().await;
    world.google.fail("GET", "/billingInfo", Answer::Status(403), 1);
    assert_eq!(instance.push(&world.later(6, 150.0)).await, 503);
    assert_eq!(world.done(), [4, 1, 0]);
}

#[tokio::test]
async fn a_brake_that_fails_keeps_nothing_else_from_being_done_and_goes_on_where_it_stopped() {
    let world = World::start().await;
    let instance = world.detaching();
    world.google.fail("POST", "clickstream-archive-sub:modifyPushConfig", Answer::Status(403), 1);
    world.google.fail("GET", "clickstream-enriched-sub", Answer::Status(403), 1);

    assert_eq!(instance.push(&Notice::of(125.0)).await, 503);

    assert_eq!(world.done(), [3, 1, 0], "three, one of which was refused");
    let state = world.state().await;
    assert_eq!((state.due(), state.saved.len()), (vec![Action::Brake], 3));
    assert_eq!(state.active, BTreeSet::from([Action::Brake, Action::Stop]));
    assert_eq!(instance.push(&world.later(7, 130.0)).await, 204);
    assert_eq!(world.done(), [5, 1, 0], "only the two that were left, and no detach while the brake was not whole");
    assert_eq!(instance.push(&world.later(12, 140.0)).await, 204);
    assert_eq!(world.done(), [5, 1, 0], "whole for five hours");
    let saved = world.state().await.saved;
    for name in SUBSCRIPTIONS {
        assert_eq!(Value::from(saved[&subscription(name)].clone()), push_settings(name), "{name}");
    }
}

#[tokio::test]
async fn a_policy_that_another_changes_meanwhile_keeps_that_change() {
    let world = World::start().await;
    world.google.change_policies_meanwhile(2);
    assert_eq!(world.instance().push(&Notice::of(101.0)).await, 204);
    let left = world.google.bindings(TOPIC);
    assert!(!left[0].to_string().contains(MEMBER), "{left}");
    for user in ["user:2@example.com", "user:3@example.com"] {
        assert!(left.to_string().contains(user), "{left}");
    }
}

#[tokio::test]
async fn a_project_of_another_account_is_left_alone() {
    let world = World::start().await;
    world.google.set_account("p", "billingAccounts/FFFFFF-FFFFFF-FFFFFF");
    world.google.set_account("q", &format!("billingAccounts/{ACCOUNT}"));
    let instance = world.instance_with(&[("PROJECTS", "p,q"), ("DETACH", "monthly")]);
    assert_eq!(instance.push(&Notice::of(125.0)).await, 204);
    assert_eq!(instance.push(&world.later(6, 126.0)).await, 204);
    assert_eq!(
        (world.google.account("p").as_str(), world.google.account("q")),
        ("billingAccounts/FFFFFF-FFFFFF-FFFFFF", String::new())
    );
}

#[tokio::test]
async fn a_start_writes_down_how_the_switch_is_set_and_nothing_else() {
    let world = World::start().await;
    world.instance_with(&[("MODE", "dry-run")]).switch.announce().await;
    assert_eq!(world.state().await, State { mode: Some(Mode::DryRun), ..State::default() });
    world.instance().switch.announce().await;
    assert_eq!(world.state().await, State { mode: Some(Mode::Armed), ..State::default() });
    assert!(world.google.changes().is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_keeps_nothing_from_being_done_once_armed() {
    let world = World::start().await;
    let rehearsing = world.instance_with(&[("MODE", "dry-run"), ("DETACH", "monthly")]);
    for notice in [Notice::of(125.0), Notice::of(125.0), world.later(6, 126.0)] {
        assert_eq!(rehearsing.push(&notice).await, 204);
    }
    assert!(world.google.calls().is_empty(), "{:?}", world.google.calls());
    let state = world.state().await;
    assert_eq!((state.active.len(), state.mode), (0, Some(Mode::DryRun)));
    let records = state.interval.unwrap().actions;
    assert!(records.len() == 3 && records.values().all(|record| record.status == Status::Rehearsed), "{records:?}");

    let armed = world.detaching();
    assert_eq!(armed.push(&world.later(7, 127.0)).await, 204);
    assert_eq!(world.done(), [4, 1, 0], "they are not in force before");
    assert_eq!(armed.push(&world.later(13, 128.0)).await, 204);
    assert_eq!(world.done(), [4, 1, 1]);
}

#[tokio::test]
async fn one_that_dies_at_work_leaves_it_to_the_next_after_its_claim() {
    let world = World::start().await;
    world.google.fail("POST", ":modifyPushConfig", Answer::Silence, 99);
    let dying = world.instance();
    // Dropped in the middle: as a process that is killed.
    let died = tokio::time::timeout(Duration::from_millis(500), dying.switch.push(&Notice::of(125.0).push())).await;
    assert!(died.is_err(), "it was at work");
    world.google.heal();
    let next = world.instance();

    assert_eq!(next.push(&Notice::of(125.0)).await, 503, "another may be at work");
    world.clock.set(NOW + 59 * SECOND);
    assert_eq!(next.push(&Notice::of(125.0)).await, 503);
    world.clock.set(NOW + 61 * SECOND);
    assert_eq!(next.push(&Notice::of(125.0)).await, 204);

    assert_eq!(world.done()[1..], [1, 0]);
    for name in SUBSCRIPTIONS {
        assert_eq!(world.google.push(&subscription(name)), json!({}), "{name}");
    }
}

/// What the notices of a flood of 40 minutes say, in whatever order they come: hours late, all limits at once.
#[tokio::test]
async fn no_order_of_late_notices_detaches_within_the_wait_and_none_without_the_setting() {
    for (setting, past, expected) in [("never", 30, [4, 1, 0]), ("monthly", 5, [4, 1, 0]), ("monthly", 6, [4, 1, 1])] {
        for order in orders(4) {
            let world = World::start().await;
            let instance = world.instance_with(&[("DETACH", setting), ("DAILY_LIMIT", "20 USD")]);
            let notices = [(-3, 300.0), (-2, 900.0), (-1, 950.0), (0, 990.0)];
            for at in &order {
                let (hours, cost) = notices[*at];
                assert_eq!(instance.push(&Notice::of(cost).at(NOW + hours * HOUR)).await, 204);
            }
            assert_eq!(instance.push(&world.later(past, 990.0)).await, 204);
            assert_eq!(world.done(), [4, 1, 0], "nothing more is spent: {order:?}");
            assert_eq!(instance.push(&world.later(past, 991.0)).await, 204);
            assert_eq!(world.done(), expected, "{setting} after {past} h, {order:?}");
        }
    }
}

/// The state of a version that detached with everything else: *detach* was called for, and Google refused it.
#[tokio::test]
async fn a_state_of_an_earlier_version_is_read_and_its_detach_withdrawn() {
    let record = |status| json!({"status": status, "limit": "day", "since": "2026-10-19T20:00:00Z"});
    let before = json!({
        "version": 1, "active": ["brake", "stop"], "mode": "armed", "saved": {subscription("clickstream-raw-sub"): {}},
        "interval": {
            "start": OCTOBER, "highest": 125.0, "newest": "2026-10-19T20:00:00Z", "day": "2026-10-19", "baseline": 5.0,
            "actions": {"brake": record("done"), "stop": record("done"), "detach": record("due")},
        },
        "removed": {"topic": TOPIC, "member": MEMBER}, "detached": {}, "claim": null,
    });
    for setting in ["never", "monthly"] {
        let world = World::start().await;
        let path = world.place.path.clone().join("state.json");
        world.place.store.put(&path, before.to_string().into()).await.unwrap();
        let instance = world.instance_with(&[("DETACH", setting), ("DETACH_AFTER", "720h")]);
        assert_eq!(instance.push(&Notice::of(130.0)).await, 204);
        assert_eq!(world.done(), [0, 0, 0], "{setting}");
        assert_eq!(world.state().await.due(), []);
    }
}

/// The project's last words may be lost with its bucket: a detach that nobody could write down is not done to whoever has linked
/// the project again, while one that was broken off just before it is done.
#[tokio::test]
async fn a_project_that_was_linked_again_after_a_detach_is_left_so() {
    let linked = format!("billingAccounts/{ACCOUNT}");
    for (later, account) in [(2 * HOUR, linked.as_str()), (61 * SECOND, "")] {
        let world = World::start().await;
        let instance = world.about_to_detach().await;
        assert_eq!(instance.push(&world.later(6, 126.0)).await, 204);
        let unwritten = |state: &mut State| {
            state.interval.as_mut().unwrap().actions.get_mut(&Action::Detach).unwrap().status = Status::Due;
            state.claim = Some(Claim { by: "gone with the project".into(), until: NOW + 6 * HOUR });
        };
        world.store().update(unwritten).await.unwrap();
        world.google.set_account("p", &linked);
        world.clock.set(NOW + 6 * HOUR + later);

        assert_eq!(instance.push(&Notice::of(126.0).at(NOW + 6 * HOUR + later)).await, 204);

        assert_eq!(world.google.account("p"), account, "{later}");
        assert_eq!(world.state().await.due(), []);
    }
}

/// The same notice at two instances at once, each again until it is settled; then one that detaches.
async fn two_at_once(world: &World) {
    for notice in [Notice::of(125.0), world.later(6, 126.0)] {
        world.clock.set(notice.published_at);
        let deliver = || {
            let (instance, notice) = (world.detaching(), notice.clone());
            tokio::spawn(async move {
                let started = Instant::now();
                while instance.push(&notice).await != 204 {
                    assert!(started.elapsed() < Duration::from_secs(30), "it is never settled");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        };
        for ended in join_all([deliver(), deliver()]).await {
            ended.unwrap();
        }
    }
    assert_eq!(world.done(), [4, 1, 1]);
    assert_eq!(world.google.changes().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_instances_at_once_act_once() {
    for _ in 0..50 {
        two_at_once(&World::start().await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_instances_at_once_act_once_on_a_bucket() {
    let Some(moto) = parts::moto(false) else { return };
    for round in 0..10 {
        let place = pipeline_tests::bucket::s3(&moto, "states", &format!("round-{round}")).await;
        two_at_once(&World::in_bucket(place).await).await;
    }
}

#[tokio::test]
async fn a_state_that_is_not_understood_is_left_as_it_is_and_nothing_is_done() {
    for text in ["{\"version\": 2, \"active\": []}", "{\"version\": 1, \"active\": [\"halt\"]}", "{}", "not JSON"] {
        let world = World::start().await;
        let path = world.place.path.clone().join("state.json");
        world.place.store.put(&path, text.into()).await.unwrap();
        let instance = world.instance();
        assert_eq!(instance.push(&Notice::of(125.0)).await, 503, "{text}");
        assert_eq!(get(&instance.router, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(world.google.calls().is_empty());
        let left = world.place.store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(left, text.as_bytes());
    }
    assert_eq!(get(&World::start().await.instance().router, "/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_release_restores_what_was_and_what_it_released_comes_again_at_a_raised_limit() {
    let world = World::start().await;
    let instance = world.instance();
    assert_eq!(instance.push(&Notice::of(105.0)).await, 204);
    let looked = release::look(&world.store()).await.unwrap();
    assert_eq!(looked.subscriptions.len(), 4);
    assert_eq!(world.state().await.active.len(), 2, "a look changes nothing");
    world.google.fail("POST", "clickstream-raw-sub:modifyPushConfig", Answer::Status(403), 1);
    let detached = |state: &mut State| {
        state.active.insert(Action::Detach);
        state.detached.insert("q".into(), ACCOUNT.into());
    };
    world.store().update(detached).await.unwrap();

    let released = release::release(&world.store(), &world.controls(), NOW).await.unwrap();

    assert!(released.left.len() == 1 && released.left[0].contains("clickstream-raw-sub"), "{:?}", released.left);
    let state = world.state().await;
    assert_eq!(
        (state.active, state.saved.len()),
        (BTreeSet::from([Action::Brake, Action::Detach]), 1),
        "what is left is kept"
    );
    assert_eq!(state.detached.len(), 1, "and what tells how to link it");
    let released = release::release(&world.store(), &world.controls(), NOW).await.unwrap();
    assert_eq!(released.subscriptions, [(subscription("clickstream-raw-sub"), Subscription::Restored)]);
    for name in SUBSCRIPTIONS {
        assert_eq!(world.google.push(&subscription(name)), push_settings(name), "{name}");
    }
    let publishers = bindings(&["serviceAccount:other@p.iam.gserviceaccount.com", MEMBER]);
    assert_eq!(world.google.bindings(TOPIC), publishers);
    let state = world.state().await;
    assert_eq!((state.active.len(), state.saved.len(), state.removed, state.claim), (0, 0, None, None));
    assert!(state.detached.is_empty());

    let done = world.done();
    world.clock.set(NOW + HOUR);
    assert_eq!(instance.push(&Notice::of(110.0).at(NOW + HOUR)).await, 204);
    assert_eq!(world.done(), done, "their shares were reached before");
    let raised = world.instance_with(&[("MONTHLY_LIMIT", "200 USD")]);
    assert_eq!(raised.push(&world.later(2, 159.0)).await, 204);
    assert_eq!(world.done(), done);
    assert_eq!(raised.push(&world.later(3, 160.0)).await, 204);
    assert_eq!(world.done(), [done[0] + 4, done[1], 0], "the brake's share of the raised limit");
    assert_eq!(raised.push(&world.later(4, 200.0)).await, 204);
    assert_eq!(world.done(), [done[0] + 4, done[1] + 1, 0]);
}

#[tokio::test]
async fn a_release_waits_for_the_kill_switch_and_leaves_what_pushes_or_is_gone() {
    let world = World::start().await;
    assert_eq!(world.instance().push(&Notice::of(80.0)).await, 204);
    world.google.set_push(&subscription("clickstream-raw-sub"), push_settings("elsewhere"));
    let store = world.store();
    let claim = |until| Some(Claim { by: "another".into(), until });
    store.update(|state| state.claim = claim(NOW + SECOND)).await.unwrap();
    let busy = release::release(&store, &world.controls(), NOW).await.unwrap_err();
    assert!(matches!(busy, ReleaseError::Busy(_)), "{busy}");
    store
        .update(|state| {
            state.removed = Some(Grant { topic: "projects/p/topics/gone-topic".into(), member: MEMBER.into() });
            state
                .saved
                .insert(subscription("gone-sub"), json!({"pushEndpoint": "https://x"}).as_object().unwrap().clone())
        })
        .await
        .unwrap();

    let released = release::release(&store, &world.controls(), NOW + SECOND).await.unwrap();

    let became = |name: &str| released.subscriptions.iter().find(|(one, _)| *one == subscription(name)).unwrap().1;
    assert_eq!(became("clickstream-raw-sub"), Subscription::Pushing);
    assert_eq!(became("gone-sub"), Subscription::Gone);
    assert_eq!(became("clickstream-archive-sub"), Subscription::Restored);
    assert_eq!(world.google.push(&subscription("clickstream-raw-sub")), push_settings("elsewhere"));
    let left = world.state().await;
    assert_eq!((left.active.len(), left.removed), (0, None), "a topic that is gone holds nothing up");
    world.google.set_backlog("clickstream-raw-sub", 1_234);
    let backlogs = world.controls().backlogs("p", NOW).await.unwrap();
    let backlog = Backlog { messages: 1_234, bytes: 308_500, oldest_seconds: 3_702 };
    assert_eq!(backlogs["clickstream-raw-sub"], backlog);
}

/// Before Google's own emulator: what is published while the pipeline is braked waits, and comes after the release.
#[test]
fn no_event_is_lost_from_brake_to_release() {
    let Some(emulator) = parts::pubsub_emulator() else { return };
    let api = PubSubApi::at(&emulator.url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let arrived: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let endpoint = {
        let arrived = Arc::clone(&arrived);
        let take = move |body: Bytes| {
            let push = Push::parse(&body).unwrap();
            arrived.lock().unwrap().insert(String::from_utf8(push.data.to_vec()).unwrap());
            async { StatusCode::NO_CONTENT }
        };
        runtime.block_on(serve(Router::new().route("/", post(take))))
    };
    api.create_topics(&["clickstream-raw-topic", "empty-topic"]);
    for name in SUBSCRIPTIONS {
        let topic = if name == "clickstream-raw-sub" { "clickstream-raw-topic" } else { "empty-topic" };
        api.create_push(&PushTo {
            name,
            topic,
            endpoint: format!("{endpoint}/"),
            backoff_millis: 100,
            dead_letter: None,
        });
    }
    let mut published = BTreeSet::new();
    let mut publish = |count: usize| {
        for _ in 0..count {
            let event = format!("event-{}", published.len());
            api.publish("clickstream-raw-topic", event.as_bytes(), &[]);
            published.insert(event);
        }
        published.clone()
    };
    let wait_for = |all: &BTreeSet<String>| {
        let started = Instant::now();
        while *arrived.lock().unwrap() != *all {
            assert!(started.elapsed() < Duration::from_mins(1), "{} of {}", arrived.lock().unwrap().len(), all.len());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let world = runtime.block_on(World::start());
    let settings = [("PUBSUB_ENDPOINT", emulator.url.as_str()), ("GOOGLE_CLOUD_PROJECT", EMULATED)];
    let instance = world.instance_with(&settings);
    let mut notice = Notice::of(80.0);
    notice.project = EMULATED;

    wait_for(&publish(50));
    publish(50);
    assert_eq!(runtime.block_on(instance.push(&notice)), 204);
    // Pushes that were under way end; what comes from now on is kept.
    std::thread::sleep(Duration::from_secs(2));
    let before = arrived.lock().unwrap().clone();
    let all = publish(200);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(*arrived.lock().unwrap(), before, "nothing is pushed while braked");
    let controls = Rest::new(&world.settings(&settings)).unwrap();
    let released = runtime.block_on(release::release(&world.store(), &controls, NOW)).unwrap();

    assert_eq!(released.subscriptions.len(), 4);
    wait_for(&all);
    wait_for(&publish(10));
}

/// The deployed binary, with its state in a bucket.
#[test]
fn the_process_acts_and_says_so_at_critical_severity() {
    let Some(moto) = parts::moto(false) else { return };
    let client = reqwest::blocking::Client::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(pipeline_tests::bucket::s3(&moto, "states", "kill-switch"));
    let world = runtime.block_on(World::start());
    let port = free_port();
    let mut command = Command::new(binary_beside("kill-switch"));
    for (name, value) in [
        ("PORT", port.to_string().as_str()),
        ("GOOGLE_CLOUD_PROJECT", "p"),
        ("PUSH_AUTH", "off"),
        ("MODE", "armed"),
        ("BILLING_ACCOUNT_ID", ACCOUNT),
        ("BUDGET_ID", BUDGET),
        ("MONTHLY_LIMIT", "100 USD"),
        ("DAILY_LIMIT", "20 USD"),
        ("DETACH", "monthly"),
        ("DETACH_AFTER", "1ms"),
        ("PUBLISHER_MEMBER", MEMBER),
        ("STATE_URI", "s3://states/kill-switch"),
        ("PUBSUB_ENDPOINT", &world.google.url),
        ("BILLING_ENDPOINT", &world.google.url),
    ] {
        command.env(name, value);
    }
    command.envs(pipeline_tests::bucket::environment(&moto));
    let mut process = Process::start("kill-switch", command);
    process.wait_for_port(port);
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    for path in ["/health", "/ready"] {
        assert_eq!(client.get(url(path)).send().unwrap().status(), 200, "{path}: {}", process.log());
    }
    let now = Clock::system().now();
    let interval = timestamp_text(now - DAY);
    let notice = |cost: f64, at| Notice::of(cost).with("costIntervalStart", interval.as_str()).at(at);
    world.google.fail("PUT", "/billingInfo", Answer::Status(403), 1);
    let push = |notice: Notice| client.post(url("/")).body(notice.push()).send().unwrap().status().as_u16();
    assert_eq!(push(notice(120.0, now)), 204, "{}", process.log());
    let later = notice(121.0, now + 30 * SECOND);

    assert_eq!((push(later.clone()), push(later)), (503, 204), "{}", process.log());

    assert_eq!(world.done(), [4, 1, 2]);
    let state = runtime.block_on(async {
        let path = place.path.clone().join("state.json");
        place.store.get(&path).await.unwrap().bytes().await.unwrap()
    });
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["active"], json!(["brake", "stop", "detach"]), "as the scripts read it");
    assert_eq!(state["mode"], "armed");
    let log = process.log();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let failed = lines.iter().find(|line| line["what"] == "detach").unwrap_or_else(|| panic!("{log}"));
    assert_eq!(failed["severity"], "CRITICAL");
    assert!(failed["reason"].as_str().unwrap().contains("HTTP status 403"), "{failed}");
    process.signal("TERM");
    assert_eq!(process.wait(Duration::from_secs(8)), Some(0));
}

/// What the deployment and the command find in the bucket by its address.
#[tokio::test]
async fn the_state_is_one_object_below_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let place = bucket::open(&folder.path().display().to_string(), &Settings::default()).unwrap();
    assert!(Store::new(&place).name().ends_with("/state.json"));
    let created = Store::new(&place).update(|state| state.active.insert(Action::Brake)).await;
    assert_eq!(created.ok(), Some(true), "the first version is created");
    let error = Store::new(&place).update(|state| state.active.remove(&Action::Brake)).await.unwrap_err();
    assert!(error.to_string().contains("state.json"), "a folder replaces nothing on condition: {error}");
}
