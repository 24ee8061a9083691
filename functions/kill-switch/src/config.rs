//! What can be set.

use std::time::Duration;

use jiff::SignedDuration;
use shared::clock::Micros;
use shared::settings::{SettingError, Settings, fault};

use crate::amount::limit;
use crate::notice::Checks;
use crate::policy::{Detach, Limits};
use crate::state::{Grant, Mode};
use crate::turn::Targets;

/// The pipeline's subscriptions, in the order of the flow.
pub const SUBSCRIPTIONS: &str =
    "clickstream-raw-sub,clickstream-enriched-sub,clickstream-archive-sub,clickstream-dead-letter-sub";
/// What brings the notices.
pub const BUDGET_SUBSCRIPTION: &str = "budget-sub";
/// Longer than Pub/Sub tries to deliver a notice before it gives up, 100 times with pauses of up to 10 minutes.
const MAX_NOTICE_AGE: Duration = Duration::from_hours(24);
/// How long brake and stop must have been in force before *detach*: most cost is known to Google Billing by then.
const DETACH_AFTER: &str = "6h";

/// Settings of the kill-switch.
#[derive(Debug, Clone)]
pub struct Config {
    /// What a notice must say.
    pub checks: Checks,
    /// When what is done.
    pub limits: Limits,
    /// What it is done to.
    pub targets: Targets,
    /// Whether it is done.
    pub mode: Mode,
}

impl Config {
    /// What the environment sets: `MODE`, `BILLING_ACCOUNT_ID`, `BUDGET_ID`, `MONTHLY_LIMIT`, `DAILY_LIMIT`, `BRAKE_AT`,
    /// `STOP_AT`, `DETACH_AT`, `DETACH`, `DETACH_AFTER`, `PROJECTS`, `SUBSCRIPTIONS`, `BUDGET_SUBSCRIPTION`, `RAW_TOPIC`,
    /// `PUBLISHER_MEMBER`, `MAX_NOTICE_AGE_MS`.
    pub fn read(settings: &Settings) -> Result<Self, SettingError> {
        let mode = settings.required("MODE", "dry-run (only logs what it would do) or armed")?;
        let mode = mode.parse().map_err(|error| fault("MODE", format!("`{mode}`: {error}")))?;
        let billing_account = billing_account(settings)?;
        let (limits, currency) = limits(settings)?;
        let projects = projects(settings)?;
        let max_age = settings.millis("MAX_NOTICE_AGE_MS", MAX_NOTICE_AGE)?;
        let max_age = Micros::try_from(max_age.as_micros()).unwrap_or(Micros::MAX);
        if max_age == 0 {
            return Err(fault("MAX_NOTICE_AGE_MS", "0 refuses every notice; give milliseconds"));
        }
        Ok(Self {
            checks: Checks {
                projects: projects.clone(),
                billing_account: billing_account.clone(),
                budget: budget(settings)?,
                currency,
                max_age,
            },
            limits,
            targets: Targets {
                subscriptions: subscriptions(settings)?,
                publisher: publisher(settings)?,
                projects,
                billing_account,
            },
            mode,
        })
    }
}

fn billing_account(settings: &Settings) -> Result<String, SettingError> {
    let (name, form) = ("BILLING_ACCOUNT_ID", "the billing account as 0X0X0X-0X0X0X-0X0X0X");
    let id = settings.required(name, form)?;
    let is_part = |part: &str| part.len() == 6 && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    let is_id = id.split('-').count() == 3 && id.split('-').all(is_part);
    if is_id { Ok(id.to_string()) } else { Err(fault(name, format!("`{id}`: give {form}"))) }
}

fn budget(settings: &Settings) -> Result<String, SettingError> {
    let (name, form) = ("BUDGET_ID", "the budget's id alone, the last part of its name");
    let id = settings.required(name, form)?;
    let is_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_id { Ok(id.to_string()) } else { Err(fault(name, format!("`{id}`: give {form}"))) }
}

fn limits(settings: &Settings) -> Result<(Limits, String), SettingError> {
    let read = |name: &str| {
        let text = settings.required(name, "an amount and its currency, `100 USD`")?;
        limit(text).map_err(|reason| fault(name, reason))
    };
    let ((month, currency), (day, other)) = (read("MONTHLY_LIMIT")?, read("DAILY_LIMIT")?);
    if currency != other {
        let reason =
            format!("{other}, and MONTHLY_LIMIT is in {currency}; give both in the billing account's currency");
        return Err(fault("DAILY_LIMIT", reason));
    }
    let share = |name: &str, default: u32, at_least: u32| {
        let share = settings.parsed(name, default)?;
        if (at_least..=1_000).contains(&share) {
            return Ok(share);
        }
        let order = "the order is BRAKE_AT, STOP_AT, DETACH_AT";
        Err(fault(name, format!("{share}: give a percentage from {at_least} to 1000; {order}")))
    };
    let brake_at = share("BRAKE_AT", 80, 1)?;
    let stop_at = share("STOP_AT", 100, brake_at)?;
    let detach_at = share("DETACH_AT", 120, stop_at)?;
    Ok((Limits { month, day, brake_at, stop_at, detach_at, detach: detach(settings)? }, currency))
}

/// Whether and when *detach* may happen: `DETACH` (`never`) and `DETACH_AFTER` (`6h`).
fn detach(settings: &Settings) -> Result<Detach, SettingError> {
    let name = "DETACH_AFTER";
    let text = settings.text(name, DETACH_AFTER);
    let after = text.parse::<SignedDuration>().ok().filter(SignedDuration::is_positive);
    let after = after.and_then(|after| Micros::try_from(after.as_micros()).ok());
    let after = after.ok_or_else(|| fault(name, format!("`{text}`: give a time such as 6h or 90m")))?;
    match settings.text("DETACH", "never") {
        "never" => Ok(Detach::Never),
        "monthly" => Ok(Detach::Monthly { after }),
        other => Err(fault("DETACH", format!("`{other}`: give never or monthly"))),
    }
}

/// The projects that may be detached, the kill-switch's own at the end: after it nothing more can be done.
fn projects(settings: &Settings) -> Result<Vec<String>, SettingError> {
    let (name, own) = ("PROJECTS", settings.project()?);
    let mut projects = list(name, settings.text(name, own))?;
    if let Some(wrong) = projects.iter().find(|project| project.contains('/')) {
        return Err(fault(name, format!("`{wrong}`: give ids of projects, separated by commas")));
    }
    let Some(at) = projects.iter().position(|project| project == own) else {
        return Err(fault(
            name,
            format!("{own} (GOOGLE_CLOUD_PROJECT) is not on the list, so nothing would be stopped"),
        ));
    };
    let own = projects.remove(at);
    projects.push(own);
    Ok(projects)
}

fn subscriptions(settings: &Settings) -> Result<Vec<String>, SettingError> {
    let (name, project) = ("SUBSCRIPTIONS", settings.project()?);
    let full = |one: &str| {
        let is_full = one.starts_with("projects/");
        if is_full { one.to_string() } else { format!("projects/{project}/subscriptions/{one}") }
    };
    let budget = full(settings.text("BUDGET_SUBSCRIPTION", BUDGET_SUBSCRIPTION));
    let subscriptions: Vec<_> =
        list(name, settings.text(name, SUBSCRIPTIONS))?.iter().map(|subscription| full(subscription)).collect();
    if subscriptions.contains(&budget) {
        let reason = format!("{budget} brings the budget's notices (BUDGET_SUBSCRIPTION); it may not be braked");
        return Err(fault(name, reason));
    }
    for one in &subscriptions {
        let parts: Vec<_> = one.split('/').collect();
        if !matches!(parts[..], ["projects", project, "subscriptions", id] if !project.is_empty() && !id.is_empty()) {
            return Err(fault(name, format!("`{one}`: give names of subscriptions, separated by commas")));
        }
    }
    Ok(subscriptions)
}

fn publisher(settings: &Settings) -> Result<Grant, SettingError> {
    let (name, form) =
        ("PUBLISHER_MEMBER", "the IAM member that publishes, `serviceAccount:NAME@PROJECT.iam.gserviceaccount.com`");
    let member = settings.required(name, form)?;
    let is_member = ["serviceAccount:", "principal://", "principalSet://"]
        .iter()
        .any(|kind| member.strip_prefix(kind).is_some_and(|rest| !rest.is_empty()));
    if !is_member {
        return Err(fault(name, format!("`{member}`: give {form}")));
    }
    Ok(Grant { topic: settings.topic("RAW_TOPIC", "clickstream-raw-topic")?, member: member.to_string() })
}

/// Names separated by commas: at least one, each once.
fn list(name: &str, text: &str) -> Result<Vec<String>, SettingError> {
    let mut names = Vec::new();
    for one in text.split(',').map(str::trim) {
        if one.is_empty() || names.iter().any(|other| other == one) {
            return Err(fault(name, format!("`{text}`: give each name once, separated by commas")));
        }
        names.push(one.to_string());
    }
    Ok(names)
}

/// What the deployed function works with.
#[cfg(feature = "cloud")]
pub mod cloud {
    use std::sync::Arc;

    use shared::bucket;
    use shared::clock::Clock;
    use shared::metrics::Metrics;
    use shared::serve::Failure;
    use shared::settings::{Settings, fault};

    use crate::controls::rest::Rest;
    use crate::day::BillingDays;
    use crate::handler::Deps;
    use crate::store::Store;

    /// Prepares what the environment names: `STATE_URI`, and the endpoints. Nothing is asked of it yet.
    pub fn deps(settings: &Settings) -> Result<Deps, Failure> {
        let clock = Clock::system();
        let name = "STATE_URI";
        let uri = settings.required(name, "where the state lies, gs://bucket/prefix")?;
        if bucket::local(uri).is_some() {
            return Err(
                fault(name, format!("{uri}: a folder replaces no object on condition; give gs:// or s3://")).into()
            );
        }
        let place = bucket::open_for_requests(uri, settings).map_err(|error| fault(name, error))?;
        Ok(Deps {
            controls: Arc::new(Rest::new(settings)?),
            store: Store::new(&place),
            days: BillingDays::new()?,
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock,
        })
    }
}
