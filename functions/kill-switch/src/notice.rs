//! A budget notice: what Google Billing publishes several times a day, and which of it is believed.
//!
//! <https://docs.cloud.google.com/billing/docs/how-to/budgets-programmatic-notifications>

use std::borrow::Cow;

use serde::Deserialize;
use shared::clock::{DAY, Micros, SECOND};
use shared::decode::time::timestamp;
use shared::push::Push;

use crate::amount::Amount;
use crate::day::BillingDays;

/// The form of notices that is understood.
const SCHEMA_VERSION: &str = "1.0";
/// How far Google's clock may be ahead of ours.
const SKEW: Micros = 60 * SECOND;
/// The longest month with an hour of winter time, and a day for notices that come late.
const LONGEST_INTERVAL: Micros = 32 * DAY + 3_600 * SECOND;

/// What a notice says that counts. Not the budget's amount, which anyone who may edit the budget can raise, nor what it
/// says of thresholds and forecasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What was spent since the interval's start.
    pub cost: Amount,
    /// The interval's start.
    pub interval: Micros,
    /// When it was published.
    pub published_at: Micros,
    /// The billing day of its publishing.
    pub day: String,
}

/// What a notice must say.
#[derive(Debug, Clone)]
pub struct Checks {
    /// Projects from whose subscriptions notices are taken: those that may be stopped.
    pub projects: Vec<String>,
    /// The billing account, `0X0X0X-0X0X0X-0X0X0X`.
    pub billing_account: String,
    /// The budget's id.
    pub budget: String,
    /// The currency of the limits.
    pub currency: String,
    /// How old a notice may be.
    pub max_age: Micros,
}

/// Why a notice is not acted upon. It is settled all the same: delivered again it would be no better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The push is not Pub/Sub's.
    BadEnvelope,
    /// A subscription of a project that is not on the list.
    OtherProject,
    /// A form that is not understood.
    OtherSchemaVersion,
    /// Another billing account.
    OtherBillingAccount,
    /// Another budget.
    OtherBudget,
    /// Not the JSON of a notice.
    BadNotice,
    /// An amount that is no sum of money.
    BadAmount,
    /// A currency in which no limit is set.
    OtherCurrency,
    /// No time of publishing.
    NoPublishTime,
    /// Published too long ago.
    Stale,
    /// Published in the future.
    InTheFuture,
    /// An interval that has ended.
    OldInterval,
    /// An interval that has not begun.
    FutureInterval,
}

impl Refused {
    /// The stable code, for logs and counts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadEnvelope => "bad_envelope",
            Self::OtherProject => "other_project",
            Self::OtherSchemaVersion => "other_schema_version",
            Self::OtherBillingAccount => "other_billing_account",
            Self::OtherBudget => "other_budget",
            Self::BadNotice => "bad_notice",
            Self::BadAmount => "bad_amount",
            Self::OtherCurrency => "other_currency",
            Self::NoPublishTime => "no_publish_time",
            Self::Stale => "stale",
            Self::InTheFuture => "in_the_future",
            Self::OldInterval => "old_interval",
            Self::FutureInterval => "future_interval",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    cost_amount: f64,
    #[serde(borrow)]
    cost_interval_start: Cow<'a, str>,
    budget_amount: f64,
    #[serde(borrow)]
    currency_code: Cow<'a, str>,
}

/// The notice that the body of a push delivers, if everything about it is as it must be.
///
/// A cost of 0 is what a month begins with; it is taken, and reaches no limit.
pub fn read(body: &[u8], checks: &Checks, days: &BillingDays, now: Micros) -> Result<Notice, Refused> {
    let push = Push::parse(body).map_err(|_| Refused::BadEnvelope)?;
    let project = push.subscription.strip_prefix("projects/").and_then(|name| name.split('/').next());
    let says = |name: &str, value: &str| push.attributes.get(name).is_some_and(|said| said == value);
    let must = [
        (project.is_some_and(|project| checks.projects.iter().any(|one| one == project)), Refused::OtherProject),
        (says("schemaVersion", SCHEMA_VERSION), Refused::OtherSchemaVersion),
        (says("billingAccountId", &checks.billing_account), Refused::OtherBillingAccount),
        (says("budgetId", &checks.budget), Refused::OtherBudget),
    ];
    first_fault(&must)?;
    let body: Body<'_> = serde_json::from_slice(&push.data).map_err(|_| Refused::BadNotice)?;
    let amount = |units| Amount::try_from(units).map_err(|_| Refused::BadAmount);
    let (cost, budget) = (amount(body.cost_amount)?, amount(body.budget_amount)?);
    let published_at = push.published_at.ok_or(Refused::NoPublishTime)?;
    let interval = timestamp(&body.cost_interval_start).map_err(|_| Refused::BadNotice)?;
    let must = [
        (budget > Amount::ZERO, Refused::BadAmount),
        (body.currency_code == checks.currency, Refused::OtherCurrency),
        (now - published_at <= checks.max_age, Refused::Stale),
        (published_at - now <= SKEW, Refused::InTheFuture),
        (interval - published_at <= SKEW, Refused::FutureInterval),
        (published_at - interval <= LONGEST_INTERVAL, Refused::OldInterval),
    ];
    first_fault(&must)?;
    Ok(Notice { cost, interval, published_at, day: days.of(published_at) })
}

fn first_fault(must: &[(bool, Refused)]) -> Result<(), Refused> {
    must.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, refused)| Err(*refused))
}
