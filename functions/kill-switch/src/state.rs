//! What the kill-switch remembers: one small JSON object in a bucket, which is changed only as the version that was read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::clock::{Micros, SECOND};

use crate::amount::Amount;
use crate::notice::Notice;

/// The form of the object. One of a newer form is left alone.
pub const VERSION: u32 = 1;

/// Six times the longest pause before Pub/Sub delivers a notice again.
const BROUGHT_AGAIN: Micros = 3_600 * SECOND;

/// Push settings of a subscription (`pushConfig`), as Pub/Sub has them; without a `pushEndpoint` it is pulled from.
pub type PushSettings = Map<String, Value>;

/// What the kill-switch does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The pipeline's subscriptions push no more; Pub/Sub keeps the events.
    Brake,
    /// The publisher may publish no more.
    Stop,
    /// The projects have no billing account any more.
    Detach,
}

impl Action {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Brake, Self::Stop, Self::Detach];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Brake => "brake",
            Self::Stop => "stop",
            Self::Detach => "detach",
        })
    }
}

/// Whether anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What would be done is logged; nothing is changed but the state.
    DryRun,
    /// It is done.
    Armed,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "dry-run" => Ok(Self::DryRun),
            "armed" => Ok(Self::Armed),
            _ => Err("neither dry-run nor armed"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DryRun => "dry-run",
            Self::Armed => "armed",
        })
    }
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// That of the budget's interval.
    Month,
    /// That of a billing day.
    Day,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Month => "month",
            Self::Day => "day",
        })
    }
}

/// How far an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Called for in a dry run.
    Rehearsed,
    /// Called for and not, or not wholly, done.
    Due,
    /// Done.
    Done,
    /// Undone by `contextflow release`; called for again once its share of a limit is crossed anew.
    Released,
}

/// One action of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How far it is.
    pub status: Status,
    /// The limit that was reached.
    pub limit: Kind,
    /// When the notice that called for it was published.
    #[serde(with = "text")]
    pub since: Micros,
    /// When it was done; none where it is not, and where an earlier version did it.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Micros>,
}

/// What is known of an interval of the budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its start.
    #[serde(with = "text")]
    pub start: Micros,
    /// The highest sum seen in it.
    pub highest: Amount,
    /// When the newest notice was published.
    #[serde(with = "text")]
    pub newest: Micros,
    /// The billing day of the newest notice, `2026-11-27`.
    pub day: String,
    /// The highest sum seen before that day.
    pub baseline: Amount,
    /// The billing day of the newest notice before that day; at the interval's beginning the day before it.
    #[serde(default)]
    pub baseline_day: String,
    /// What it has called for.
    pub actions: BTreeMap<Action, Record>,
}

impl Interval {
    /// One that a notice begins, with what had been spent by the end of which day.
    pub(crate) fn begin(notice: &Notice, baseline: Amount, baseline_day: &str) -> Self {
        Self {
            start: notice.interval,
            highest: notice.cost,
            newest: notice.published_at,
            day: notice.day.clone(),
            baseline,
            baseline_day: baseline_day.to_string(),
            actions: BTreeMap::new(),
        }
    }
}

/// A right that *stop* has taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Full name of the topic.
    pub topic: String,
    /// Who had it.
    pub member: String,
}

/// The right of one process to carry out what is due, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// An id of the one at work.
    pub by: String,
    /// From here on another may take over.
    #[serde(with = "text")]
    pub until: Micros,
}

/// The state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// The actions in force, wholly or in part. They stay so over the end of an interval, until they are released.
    pub active: BTreeSet<Action>,
    /// As the switch was set when it last started or heard a notice.
    pub mode: Option<Mode>,
    /// None before the first notice.
    pub interval: Option<Interval>,
    /// Push settings of the subscriptions that were braked, by their full names, as they were before.
    pub saved: BTreeMap<String, PushSettings>,
    /// What *stop* has taken away.
    pub removed: Option<Grant>,
    /// The projects that *detach* has taken from their billing account, with the account's id.
    pub detached: BTreeMap<String, String>,
    /// Who is at work.
    pub claim: Option<Claim>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            active: BTreeSet::new(),
            mode: None,
            interval: None,
            saved: BTreeMap::new(),
            removed: None,
            detached: BTreeMap::new(),
            claim: None,
        }
    }
}

impl State {
    /// What is due, in its order.
    pub fn due(&self) -> Vec<Action> {
        let records = self.interval.iter().flat_map(|interval| &interval.actions);
        records.filter(|(_, record)| record.status == Status::Due).map(|(action, _)| *action).collect()
    }

    /// Marks an action of this interval as done.
    pub(crate) fn finish(&mut self, action: Action, now: Micros) {
        self.set(action, Status::Done);
        let record = self.interval.as_mut().and_then(|interval| interval.actions.get_mut(&action));
        if let Some(record) = record {
            record.done_at = Some(now);
        }
    }

    /// Sets how far an action of this interval is.
    pub(crate) fn set(&mut self, action: Action, status: Status) {
        let record = self.interval.as_mut().and_then(|interval| interval.actions.get_mut(&action));
        if let Some(record) = record {
            record.status = status;
        }
    }

    /// Whether *detach* was broken off so long ago that Pub/Sub would have brought its notice again: then it was done, and with
    /// the project went the state's bucket, so that nobody could write so. Whoever linked the project again since meant it.
    pub(crate) fn was_linked_again(&self, now: Micros) -> bool {
        let broken_off = self.claim.as_ref().is_some_and(|claim| now.saturating_sub(claim.until) > BROUGHT_AGAIN);
        broken_off && !self.detached.is_empty() && self.due().contains(&Action::Detach)
    }

    /// Takes the right to work until `until`; the error is when another's ends.
    pub(crate) fn claim(&mut self, me: &str, now: Micros, until: Micros) -> Result<(), Micros> {
        if let Some(other) = self.claim.as_ref().filter(|claim| claim.by != me && now < claim.until) {
            return Err(other.until);
        }
        self.claim = Some(Claim { by: me.to_string(), until });
        Ok(())
    }

    /// Gives the right back.
    pub(crate) fn unclaim(&mut self, me: &str) {
        self.claim.take_if(|claim| claim.by == me);
    }
}

/// Times that may be missing, as RFC 3339.
mod optional_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use shared::clock::Micros;

    #[derive(Deserialize)]
    struct Text(#[serde(with = "super::text")] Micros);

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(time: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::text::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Micros>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|Text(time)| time))
    }
}

/// Times as RFC 3339.
mod text {
    use serde::{Deserialize, Deserializer, Serializer};
    use shared::clock::Micros;
    use shared::decode::time::{timestamp, timestamp_text};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
    pub(super) fn serialize<S: Serializer>(time: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&timestamp_text(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
        let text = String::deserialize(deserializer)?;
        timestamp(&text).map_err(|(_, expected)| serde::de::Error::custom(expected))
    }
}
