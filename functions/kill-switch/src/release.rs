//! Undoes *brake* and *stop*, by the hand of an operator. *detach* cannot be undone from here.

use std::fmt;

use shared::clock::{Micros, SECOND};
use shared::decode::time::timestamp_text;
use uuid::Uuid;

use crate::controls::{ControlError, Controls};
use crate::state::{Action, State, Status};
use crate::store::{StateError, Store};
use crate::turn::{grant, pushes};

/// How long a release keeps the kill-switch from acting at the same time.
const LEASE: Micros = 120 * SECOND;

/// Why nothing, or not all, is released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The state could not be had or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kill-switch is acting.
    #[error("the kill-switch is at work until {0} at the latest; run this again then")]
    Busy(String),
}

/// What became of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// It pushes as before the brake.
    Restored,
    /// It pushed already, and is left as it is.
    Pushing,
    /// It is there no more.
    Gone,
    /// It would be restored.
    Braked,
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restored => "restored",
            Self::Pushing => "pushing",
            Self::Gone => "gone",
            Self::Braked => "braked",
        })
    }
}

/// What was undone; in a dry run, what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The state before.
    pub before: State,
    /// The subscriptions that were braked, by their full names.
    pub subscriptions: Vec<(String, Subscription)>,
    /// What could not be undone, and why. It stays in the state, for another release.
    pub left: Vec<String>,
}

/// Says what a release would undo.
pub async fn look(store: &Store) -> Result<Released, ReleaseError> {
    let before = store.read().await?;
    let subscriptions = before.saved.keys().map(|name| (name.clone(), Subscription::Braked)).collect();
    Ok(Released { before, subscriptions, left: Vec::new() })
}

/// Undoes *brake* and *stop*: push settings as they were saved, the publisher's right. Then nothing is in force any more.
///
/// What this interval has called for counts as released, also where it was still due: it is done again in this interval once its
/// share of a limit is crossed anew, be it that of a raised limit or the next day's. What it has not called for yet comes at its
/// own share. Where something cannot be undone it stays in the state with the projects that are to be linked again, and the rest
/// is undone.
pub async fn release(store: &Store, controls: &dyn Controls, now: Micros) -> Result<Released, ReleaseError> {
    let me = Uuid::new_v4().to_string();
    let begin = |state: &mut State| {
        let before = state.clone();
        state.claim(&me, now, now + LEASE)?;
        for action in Action::ALL {
            let record = state.interval.as_ref().and_then(|interval| interval.actions.get(&action));
            if record.is_some_and(|record| record.status != Status::Rehearsed) {
                state.set(action, Status::Released);
            }
        }
        Ok(before)
    };
    let before = store.update(begin).await?.map_err(|until| ReleaseError::Busy(timestamp_text(until)))?;
    let (mut subscriptions, mut left) = (Vec::new(), Vec::new());
    for (name, settings) in &before.saved {
        let restored = async {
            match controls.push_settings(name).await {
                Err(ControlError::NotFound(_)) => return Ok(Subscription::Gone),
                Ok(found) if pushes(&found) => return Ok(Subscription::Pushing),
                found => found?,
            };
            controls.set_push_settings(name, settings).await.map(|()| Subscription::Restored)
        };
        match restored.await {
            Ok(outcome) => {
                store.update(|state| state.saved.remove(name)).await?;
                subscriptions.push((name.clone(), outcome));
            }
            Err(error) => left.push(error.to_string()),
        }
    }
    if let Some(right) = &before.removed {
        match grant(right, controls).await {
            // A topic that is gone gives nobody a right.
            Ok(()) | Err(ControlError::NotFound(_)) => store.update(|state| state.removed = None).await?,
            Err(error) => left.push(error.to_string()),
        }
    }
    let end = |state: &mut State| {
        state.unclaim(&me);
        if left.is_empty() {
            state.active.remove(&Action::Detach);
            state.detached.clear();
        }
        if state.saved.is_empty() {
            state.active.remove(&Action::Brake);
        }
        if state.removed.is_none() {
            state.active.remove(&Action::Stop);
        }
    };
    store.update(end).await?;
    Ok(Released { before, subscriptions, left })
}
