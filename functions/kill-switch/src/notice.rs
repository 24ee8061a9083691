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
    /// The billing day before the interval's first.
    pub eve: String,
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
    /// Whether the settings and the budget disagree: no notice counts until that is mended. Only Google publishes notices,
    /// so it is nobody's forgery.
    pub fn is_a_fault_of_settings(self) -> bool {
        use Refused::{
            BadEnvelope, BadNotice, OtherBillingAccount, OtherBudget, OtherCurrency, OtherProject, OtherSchemaVersion,
        };
        matches!(
            self,
            BadEnvelope
                | BadNotice
                | OtherBillingAccount
                | OtherBudget
                | OtherCurrency
                | OtherProject
                | OtherSchemaVersion
        )
    }

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
    Ok(Notice { cost, interval, published_at, day: days.of(published_at), eve: days.of(interval - 1) })
}

fn first_fault(must: &[(bool, Refused)]) -> Result<(), Refused> {
    must.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, refused)| Err(*refused))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-27T12:00:00Z";

    fn notice() -> Value {
        json!({
            "subscription": "projects/p/subscriptions/budget-sub",
            "message": {
                "messageId": "1",
                "publishTime": "2026-11-27T11:59:00Z",
                "attributes": {"billingAccountId": "0A1B2C-3D4E5F-678901", "budgetId": "b-1", "schemaVersion": "1.0"},
            },
            "data": {
                "budgetDisplayName": "ContextFlow", "costAmount": 81.5, "costIntervalStart": "2026-11-01T07:00:00Z",
                "budgetAmount": 100.0, "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD",
                "alertThresholdExceeded": 0.8, "forecastThresholdExceeded": 9.0,
            },
        })
    }

    fn read_text(mut push: Value, data: &str) -> Result<Notice, Refused> {
        push["message"]["data"] = shared_base64(data).into();
        let checks = Checks {
            projects: vec!["q".into(), "p".into()],
            billing_account: "0A1B2C-3D4E5F-678901".into(),
            budget: "b-1".into(),
            currency: "USD".into(),
            max_age: DAY,
        };
        read(push.to_string().as_bytes(), &checks, &BillingDays::new().unwrap(), timestamp(NOW).unwrap())
    }

    /// The envelope's base64, by the one that writes envelopes.
    fn shared_base64(data: &str) -> String {
        let push = Push {
            subscription: String::new(),
            message_id: String::new(),
            published_at: None,
            attributes: shared::publish::Attributes::new(),
            data: data.as_bytes().to_vec().into(),
            attempt: 1,
        };
        let json: Value = serde_json::from_slice(&push.to_json()).unwrap();
        json["message"]["data"].as_str().unwrap().to_string()
    }

    fn read_with(pointer: &str, value: Value) -> Result<Notice, Refused> {
        let mut push = notice();
        *push.pointer_mut(pointer).unwrap() = value;
        let data = push["data"].to_string();
        read_text(push, &data)
    }

    #[test]
    fn a_notice_says_what_was_spent_since_when() {
        let read = read_text(notice(), &notice()["data"].to_string()).unwrap();
        let expected = Notice {
            cost: Amount::try_from(81.5).unwrap(),
            interval: timestamp("2026-11-01T07:00:00Z").unwrap(),
            published_at: timestamp("2026-11-27T11:59:00Z").unwrap(),
            day: "2026-11-27".into(),
            eve: "2026-10-31".into(),
        };
        assert_eq!(read, expected);
        assert_eq!(
            read_with("/data/budgetAmount", json!(1)).unwrap(),
            expected,
            "the amount in the message is not used"
        );
        assert_eq!(read_with("/data/forecastThresholdExceeded", json!("x")).unwrap(), expected);
        assert_eq!(read_with("/data/costAmount", json!(0)).unwrap().cost, Amount::ZERO, "so a month begins");
        assert!(
            read_with("/message/publishTime", json!("2026-11-26T12:00:00Z")).is_ok(),
            "exactly as old as it may be"
        );
    }

    #[test]
    fn whatever_is_not_as_it_must_be_is_refused() {
        let attribute = |name: &str| format!("/message/attributes/{name}");
        for (pointer, value, refused) in [
            ("/subscription".into(), json!("projects/r/subscriptions/budget-sub"), Refused::OtherProject),
            ("/subscription".into(), json!(""), Refused::OtherProject),
            ("/message/attributes".into(), json!({}), Refused::OtherSchemaVersion),
            (attribute("schemaVersion"), json!("1.1"), Refused::OtherSchemaVersion),
            (attribute("billingAccountId"), json!("0A1B2C-3D4E5F-678902"), Refused::OtherBillingAccount),
            (attribute("budgetId"), json!("b-2"), Refused::OtherBudget),
            ("/message/publishTime".into(), json!(""), Refused::NoPublishTime),
            ("/message/publishTime".into(), json!("2026-11-26T11:59:59Z"), Refused::Stale),
            ("/message/publishTime".into(), json!("2026-11-27T12:01:01Z"), Refused::InTheFuture),
            ("/data/currencyCode".into(), json!("EUR"), Refused::OtherCurrency),
            ("/data/currencyCode".into(), json!("usd"), Refused::OtherCurrency),
            ("/data/costAmount".into(), json!(-0.01), Refused::BadAmount),
            ("/data/costAmount".into(), json!(1e300), Refused::BadAmount),
            ("/data/costAmount".into(), json!("81.5"), Refused::BadNotice),
            ("/data/costAmount".into(), json!(null), Refused::BadNotice),
            ("/data/budgetAmount".into(), json!(0), Refused::BadAmount),
            ("/data/budgetAmount".into(), json!(-100), Refused::BadAmount),
            ("/data/costIntervalStart".into(), json!("yesterday"), Refused::BadNotice),
            ("/data/costIntervalStart".into(), json!("2026-12-01T08:00:00Z"), Refused::FutureInterval),
            ("/data/costIntervalStart".into(), json!("2026-10-01T07:00:00Z"), Refused::OldInterval),
            ("/data".into(), json!([]), Refused::BadNotice),
        ] {
            let told = format!("{pointer} {value}");
            assert_eq!(read_with(&pointer, value), Err(refused), "{told}");
        }
    }

    #[test]
    fn what_only_comes_at_the_wrong_time_is_no_fault_of_settings() {
        let of_time = [
            Refused::NoPublishTime,
            Refused::Stale,
            Refused::InTheFuture,
            Refused::OldInterval,
            Refused::FutureInterval,
        ];
        assert!(!of_time.iter().any(|refused| refused.is_a_fault_of_settings()));
        assert!([Refused::OtherCurrency, Refused::OtherBudget].iter().all(|refused| refused.is_a_fault_of_settings()));
    }

    #[test]
    fn numbers_that_json_does_not_have_are_refused() {
        for number in ["NaN", "Infinity", "-Infinity", "1e999", "81.5, \"costAmount\": 1"] {
            let data = notice()["data"].to_string().replace("81.5", number);
            assert_eq!(read_text(notice(), &data), Err(Refused::BadNotice), "{number}");
        }
        assert_eq!(read_text(notice(), "not JSON"), Err(Refused::BadNotice));
        let (checks, days) = (
            Checks {
                projects: vec![],
                billing_account: String::new(),
                budget: String::new(),
                currency: String::new(),
                max_age: 1,
            },
            BillingDays::new().unwrap(),
        );
        assert_eq!(read(b"{}", &checks, &days, 0), Err(Refused::BadEnvelope));
    }
}
