//! From one notice to what is done.
//!
//! # Two at once, and one that dies
//!
//! Pub/Sub delivers a notice at least once, to any of several instances. What it calls for is written into the state as
//! *due* first, by the condition that the state is still the one that was read; so every instance sees the same. In the same
//! write one instance takes a *claim*, for [`LEASE`]: only it carries out what is due. Another one that finds something due
//! under a claim answers "try again", and does not settle a notice whose work is not done. One that dies leaves its claim to
//! run out and its notice unsettled: at the next delivery another goes on, with all that is due and not yet done. Each action
//! looks at the cloud before it changes anything, so going on repeats nothing. The work ends well before its claim does; a
//! process that is stopped in between and wakes after its claim could only do again what was done, which changes nothing.
//!
//! What is done is marked so at once. Should that mark not be written after *detach* (the bucket may be in the project that has
//! just lost its billing), the claim is not given back either. A *detach* that is found so an hour later was done, and somebody
//! has linked the project again: it is left to them.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use shared::clock::{Clock, Micros};
use shared::metrics::Metrics;
use shared::push::Answer;
use tokio::time::timeout;
use uuid::Uuid;

use crate::config::Config;
use crate::controls::Controls;
use crate::day::BillingDays;
use crate::notice::{self, Notice, Refused};
use crate::policy::judge;
use crate::state::{Action, Kind, Mode, State, Status};
use crate::store::Store;
use crate::turn::{self, Fault};

/// How long what is due belongs to the one at work on it.
pub const LEASE: Duration = Duration::from_mins(1);
/// How long the claim may take, and how long one action with its mark: together less than [`LEASE`], and than the 60 s in
/// which a push must be answered.
const CLAIM: Duration = Duration::from_secs(10);
const ACTION: Duration = Duration::from_secs(15);

/// What the kill-switch works with.
pub struct Deps {
    /// The clouds.
    pub controls: Arc<dyn Controls>,
    /// The state.
    pub store: Store,
    /// The billing day.
    pub days: BillingDays,
    /// Time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The function.
pub struct KillSwitch {
    deps: Deps,
    config: Config,
}

/// Whose it is to carry out what is due.
enum Turn {
    /// Nothing is due, or nothing may be done.
    Nobodys,
    Mine(Vec<Action>),
    Anothers,
}

impl KillSwitch {
    /// Puts it together.
    pub fn new(deps: Deps, config: Config) -> Self {
        Self { deps, config }
    }

    /// Writes down how the switch is set, so that `contextflow status` can tell before the first notice comes.
    pub async fn announce(&self) {
        let mode = self.config.mode;
        let written = timeout(CLAIM, self.deps.store.update(|state| state.mode = Some(mode))).await;
        let reason = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the bucket does not answer".to_string(),
        };
        tracing::warn!(reason, "how the switch is set cannot be written down yet");
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.deps.metrics
    }

    /// Whether the state can be read: without it nothing could be done.
    pub async fn is_ready(&self) -> bool {
        let state = self.deps.store.read().await;
        state.inspect_err(|error| tracing::warn!(reason = %error, "not ready")).is_ok()
    }

    /// Handles the body of one push.
    pub async fn push(&self, body: &[u8]) -> Answer {
        let now = self.deps.clock.now();
        self.deps.metrics.received.inc();
        match notice::read(body, &self.config.checks, &self.deps.days, now) {
            Ok(notice) => self.handle(&notice).await,
            Err(refused) => self.refuse(refused),
        }
    }

    /// What is refused once is refused always, so it is settled.
    fn refuse(&self, refused: Refused) -> Answer {
        self.deps.metrics.refused(refused.as_str());
        let reason = refused.as_str();
        if refused.is_a_fault_of_settings() {
            tracing::error!(reason, "notice refused: the kill-switch is not set as the budget is, and acts on none");
        } else {
            tracing::warn!(reason, "notice refused; nothing is done");
        }
        Answer::Settled
    }

    async fn handle(&self, notice: &Notice) -> Answer {
        let (limits, mode) = (&self.config.limits, self.config.mode);
        let me = Uuid::new_v4().to_string();
        let mut called_for = Vec::new();
        let taken = self.deps.store.update(|state| {
            let judged = judge(state, notice, limits, mode)?;
            *state = judged.state;
            // A write whose answer was lost is found done in the next round, which calls for nothing more.
            if called_for.is_empty() {
                called_for = judged.called_for;
            }
            Ok(self.turn(state, &me))
        });
        let turn = match within(CLAIM, taken).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(refused)) => return self.refuse(refused),
            Err(reason) => return Answer::TryAgain(self.failed("state", &reason)),
        };
        tracing::info!(cost = %notice.cost, day = notice.day, "notice");
        for (action, limit) in called_for {
            self.tell(action, limit, notice);
        }
        match turn {
            Turn::Nobodys => Answer::Settled,
            Turn::Anothers => Answer::TryAgain("another instance is at work on what is due".into()),
            Turn::Mine(due) => self.carry_out(due, &me).await,
        }
    }

    fn turn(&self, state: &mut State, me: &str) -> Turn {
        let now = self.deps.clock.now();
        if state.was_linked_again(now) {
            state.set(Action::Detach, Status::Done);
            tracing::error!(severity = "CRITICAL", "detach: done before, and linked again since; it is left so");
        }
        let due = state.due();
        if due.is_empty() || self.config.mode == Mode::DryRun {
            return Turn::Nobodys;
        }
        let lease = Micros::try_from(LEASE.as_micros()).unwrap_or(Micros::MAX);
        state.claim(me, now, now.saturating_add(lease)).map_or(Turn::Anothers, |()| Turn::Mine(due))
    }

    fn tell(&self, action: Action, limit: Kind, notice: &Notice) {
        let targets = &self.config.targets;
        let on = match action {
            Action::Brake => targets.subscriptions.join(" "),
            Action::Stop => targets.publisher.topic.clone(),
            Action::Detach => targets.projects.join(" "),
        };
        let cost = notice.cost;
        match self.config.mode {
            Mode::Armed => tracing::error!(severity = "CRITICAL", %action, %limit, %cost, on, "limit reached"),
            Mode::DryRun => {
                tracing::error!(severity = "CRITICAL", %action, %limit, %cost, on, "MODE=dry-run: would act, does nothing");
            }
        }
    }

    /// Does what is due, in its order; one that fails does not keep the next from being tried.
    async fn carry_out(&self, due: Vec<Action>, me: &str) -> Answer {
        let Deps { controls, store, clock, .. } = &self.deps;
        let mut left = Vec::new();
        for action in due {
            let acting = async {
                turn::act(action, &self.config.targets, controls.as_ref(), store).await?;
                let now = clock.now();
                store.update(|state| state.finish(action, now)).await?;
                Ok::<(), Fault>(())
            };
            if let Err(reason) = within(ACTION, acting).await {
                left.push(self.failed(&action.to_string(), &reason));
            }
        }
        if let Err(reason) = within(CLAIM, store.update(|state| state.unclaim(me))).await {
            tracing::warn!(reason, "the claim is not given back; it runs out by itself");
        }
        if left.is_empty() { Answer::Settled } else { Answer::TryAgain(left.join("; ")) }
    }

    fn failed(&self, what: &str, reason: &str) -> String {
        self.deps.metrics.retries.inc();
        tracing::error!(severity = "CRITICAL", what, reason, "the kill-switch could not act; to be tried again");
        format!("{what}: {reason}")
    }
}

/// What comes of `work`, unless it takes longer.
async fn within<T, E: Display>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not done within {} s", limit.as_secs())),
    }
}
