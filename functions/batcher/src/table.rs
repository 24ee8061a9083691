//! Rows to their table: deduplicated, appended in micro-batches, tried again within a budget.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join;
use shared::clock::Clock;
use shared::metrics::Metrics;
use shared::schema::{DEAD_LETTER, Plan};
use shared::sink::{Batch, Outcome, Sink};
use shared::window::{Limits, Window};
use tokio::time::Instant;

use crate::Deps;
use crate::config::{Config, MAX_PAUSE};
use crate::recent::{Claim, Key, Recent};

/// A row on its way, with what tells it from others of its table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Identity.
    pub id: String,
    /// Hash of its content; a dead letter has none, its id alone tells it.
    pub fingerprint: Option<i64>,
    /// The enriched row.
    pub json: Bytes,
}

/// Claimed rows of one push: the keys under which they are claimed, and their bytes. Claims that are dropped before
/// they are settled (a sink that panics, a window that is gone) are given back, so that no duplicate waits for ever.
struct Claimed {
    recent: Arc<Recent>,
    keys: Vec<Key>,
    rows: Vec<Bytes>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.recent.settle(&self.keys, &vec![Outcome::Retry("the append was given up".into()); self.keys.len()]);
    }
}

/// The rows of one table that wait to be appended together.
type TableWindow = Window<(), Claimed, Vec<Outcome>>;
/// Windows by event type, each with the plan that it appends by.
type Windows = HashMap<String, (Arc<Plan>, Arc<TableWindow>)>;

/// The way into the warehouse: each table gathers for itself, so that one that is slow holds up no other.
pub struct Tables {
    recent: Arc<Recent>,
    windows: Mutex<Windows>,
    limits: Limits,
    sink: Arc<dyn Sink>,
    clock: Clock,
    budget: Duration,
    pause: Duration,
    metrics: Arc<Metrics>,
    ending: AtomicBool,
}

impl Tables {
    /// Windows are opened by the first rows of their tables.
    pub fn new(config: &Config, deps: &Deps) -> Self {
        Self {
            recent: Arc::new(Recent::new(config.remembered_ids)),
            windows: Mutex::default(),
            limits: config.table,
            sink: Arc::clone(&deps.sink),
            clock: deps.clock.clone(),
            budget: config.budget,
            pause: config.pause,
            metrics: Arc::clone(&deps.metrics),
            ending: AtomicBool::new(false),
        }
    }

    /// The window of a table; a new one where there is none yet, or the schema has changed since. What the one before
    /// holds is appended by the plan that it was decoded with.
    fn window(&self, plan: &Arc<Plan>) -> Arc<TableWindow> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, window)) = windows.get_mut(&plan.event_type)
            && (Arc::ptr_eq(known, plan) || known == plan)
        {
            // Schemas that were reloaded and are the same are compared once.
            *known = Arc::clone(plan);
            return Arc::clone(window);
        }
        let flush = Flush {
            plan: Arc::clone(plan),
            sink: Arc::clone(&self.sink),
            clock: self.clock.clone(),
            recent: Arc::clone(&self.recent),
            metrics: Arc::clone(&self.metrics),
        };
        let window = Arc::new(Window::spawn(self.limits, move |(), pushes: Vec<Claimed>| {
            let flush = flush.clone();
            async move { flush.append(pushes).await }
        }));
        if self.ending.load(Ordering::Relaxed) {
            window.hurry();
        }
        windows.insert(plan.event_type.clone(), (Arc::clone(plan), Arc::clone(&window)));
        window
    }

    /// What is held is appended at once, and later rows wait no longer.
    pub fn hurry(&self) {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        self.ending.store(true, Ordering::Relaxed);
        for (_, window) in windows.values() {
            window.hurry();
        }
    }

    /// Appends the rows of one push, `Retry` ones again and again until the budget is spent. One outcome a row.
    pub async fn append(&self, plan: &Arc<Plan>, rows: &[Row]) -> Vec<Outcome> {
        let until = Instant::now() + self.budget;
        let mut outcomes = self.append_once(plan, rows, &(0..rows.len()).collect::<Vec<_>>()).await;
        let mut pause = self.pause;
        loop {
            let open: Vec<usize> = outcomes
                .iter()
                .enumerate()
                .filter(|(_, outcome)| matches!(outcome, Outcome::Retry(_)))
                .map(|(i, _)| i)
                .collect();
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            if open.is_empty() || Instant::now() + jittered >= until {
                return outcomes;
            }
            self.metrics.retries.inc_by(open.len() as u64);
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(MAX_PAUSE);
            let again = self.append_once(plan, rows, &open).await;
            for (index, outcome) in open.into_iter().zip(again) {
                outcomes[index] = outcome;
            }
        }
    }

    /// One try of the rows that `wanted` picks.
    async fn append_once(&self, plan: &Arc<Plan>, rows: &[Row], wanted: &[usize]) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Done; wanted.len()];
        let mut mine = Vec::new();
        let mut claimed = Claimed { recent: Arc::clone(&self.recent), keys: Vec::new(), rows: Vec::new() };
        let mut theirs = Vec::new();
        let mut duplicates = 0;
        let wanted: Vec<&Row> = wanted.iter().filter_map(|&index| rows.get(index)).collect();
        let claims = self.recent.claim(&plan.event_type, wanted.iter().map(|row| (row.id.as_str(), row.fingerprint)));
        for (at, (row, claim)) in wanted.into_iter().zip(claims).enumerate() {
            match claim {
                Claim::Landed => duplicates += 1,
                Claim::Theirs(outcome) => theirs.push((at, outcome)),
                Claim::Mine(key) => {
                    mine.push(at);
                    claimed.keys.push(key);
                    claimed.rows.push(row.json.clone());
                }
            }
        }
        let wait_for_theirs = async {
            let mut shared = Vec::with_capacity(theirs.len());
            for (at, outcome) in theirs {
                shared
                    .push((at, outcome.await.unwrap_or_else(|_| Outcome::Retry("the first copy was given up".into()))));
            }
            shared
        };
        let (appended, shared) = join(self.submit(plan, claimed), wait_for_theirs).await;
        for (at, outcome) in mine.into_iter().zip(appended) {
            outcomes[at] = outcome;
        }
        for (at, outcome) in shared {
            duplicates += u64::from(outcome == Outcome::Done);
            outcomes[at] = outcome;
        }
        self.metrics.duplicates.inc_by(duplicates);
        outcomes
    }

    async fn submit(&self, plan: &Arc<Plan>, claimed: Claimed) -> Vec<Outcome> {
        let rows = claimed.rows.len();
        if rows == 0 {
            return Vec::new();
        }
        let bytes = claimed.rows.iter().map(Bytes::len).sum();
        let answer = self.window(plan).submit((), rows, bytes, claimed).await;
        answer.unwrap_or_else(|closed| vec![Outcome::Retry(closed.to_string()); rows])
    }
}

/// What becomes of a table's window.
#[derive(Clone)]
struct Flush {
    plan: Arc<Plan>,
    sink: Arc<dyn Sink>,
    clock: Clock,
    recent: Arc<Recent>,
    metrics: Arc<Metrics>,
}

impl Flush {
    /// Appends what a window has gathered. Ids are settled here, whether or not anybody still waits for the answer.
    async fn append(&self, mut pushes: Vec<Claimed>) -> Vec<Vec<Outcome>> {
        let rows: Vec<Bytes> = pushes.iter().flat_map(|push| push.rows.iter().cloned()).collect();
        let keys: Vec<Key> = pushes.iter().flat_map(|push| push.keys.iter().copied()).collect();
        let batch = Batch { plan: Arc::clone(&self.plan), rows, loaded_at: self.clock.now() };
        let started = Instant::now();
        let mut outcomes = self.sink.append(&batch).await;
        // A sink that answers too little has vouched for nothing of the rest.
        outcomes.resize(batch.rows.len(), Outcome::Retry("the warehouse gave no answer for this row".into()));
        self.metrics.conflicts.inc_by(self.recent.settle(&keys, &outcomes));
        for push in &mut pushes {
            push.keys.clear();
        }
        self.metrics.append(batch.rows.len(), started.elapsed());
        let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
        // A dead letter is counted where it is made; in its table it is not an event that has landed.
        if batch.plan.event_type != DEAD_LETTER {
            self.metrics.landed.inc_by(count(|outcome| *outcome == Outcome::Done) as u64);
        }
        let reason = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Retry(reason) => Some(reason),
            _ => None,
        });
        if let Some(reason) = reason {
            let (event_type, rows) = (&batch.plan.event_type, count(|outcome| matches!(outcome, Outcome::Retry(_))));
            tracing::warn!(event_type, rows, reason, "append failed");
        }
        let mut rest = outcomes.into_iter();
        pushes.iter().map(|push| rest.by_ref().take(push.rows.len()).collect()).collect()
    }
}
