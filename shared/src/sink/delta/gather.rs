//! Appends of one table that wait for the next commit: taken together, and answered once it stands.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Turns, oneshot};

use super::table::Table;
use super::{Batch, Outcome};

/// Appends in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    waiting: Mutex<VecDeque<Waiting>>,
    /// Held by the task that appends.
    turn: Turns<()>,
}

#[derive(Debug)]
struct Waiting {
    batch: Batch,
    answer: oneshot::Sender<Vec<Outcome>>,
}

impl Table {
    /// Appends a batch, by itself or with others, and answers once a version holds it.
    pub(super) async fn append(self: &Arc<Self>, batch: &Batch) -> Vec<Outcome> {
        if self.options.commit_interval <= 0 {
            return match self.append_all(vec![batch.clone()]).await {
                Ok(mut outcomes) => outcomes.pop().unwrap_or_default(),
                Err(error) => retry(batch, &error.to_string()),
            };
        }
        let (answer, outcomes) = oneshot::channel();
        self.gathered.push(Waiting { batch: batch.clone(), answer });
        // A task of its own, as it works for others too and must not end with this caller.
        let table = Arc::clone(self);
        tokio::spawn(async move { table.append_gathered().await });
        outcomes.await.unwrap_or_else(|_| retry(batch, &format!("table {}: interrupted", self.name)))
    }

    /// Waits for its turn and appends what has come until then, which may be nothing any more.
    async fn append_gathered(&self) {
        let _turn = self.gathered.turn.lock().await;
        if self.gathered.is_empty() {
            return;
        }
        self.wait().await;
        let (batches, answers): (Vec<_>, Vec<_>) =
            self.gathered.take().into_iter().map(|waiting| (waiting.batch, waiting.answer)).unzip();
        // Whoever gave up needs no answer.
        match self.append_all(batches.clone()).await {
            Ok(outcomes) => answers.into_iter().zip(outcomes).for_each(|(answer, outcomes)| {
                let _ = answer.send(outcomes);
            }),
            Err(error) => answers.into_iter().zip(&batches).for_each(|(answer, batch)| {
                let _ = answer.send(retry(batch, &error.to_string()));
            }),
        }
    }
}

impl Gathered {
    fn push(&self, append: Waiting) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(append);
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What waits, as far as it has the plan of the first; what has another plan has its own turn.
    fn take(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = waiting.front().map(|first| Arc::clone(&first.batch.plan)) else { return Vec::new() };
        let same = |append: &&Waiting| Arc::ptr_eq(&append.batch.plan, &plan) || append.batch.plan == plan;
        let count = waiting.iter().take_while(same).count();
        waiting.drain(..count).collect()
    }
}

fn retry(batch: &Batch, reason: &str) -> Vec<Outcome> {
    vec![Outcome::Retry(reason.to_string()); batch.rows.len()]
}
