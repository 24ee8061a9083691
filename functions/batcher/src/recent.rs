//! Which rows are under way and which have landed of late: a duplicate is dropped, or waits for its twin's outcome.
//!
//! An id counts as landed only after its append stands. The memory is bounded; past it a duplicate lands twice and the
//! table's deduplicated view drops it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::sink::Outcome;
use tokio::sync::oneshot;

/// 128 bits of a keyed hash of table and id.
type Key = u128;

/// The window of ids.
pub struct Recent {
    hashers: [RandomState; 2],
    state: Mutex<State>,
    capacity: usize,
}

#[derive(Default)]
struct State {
    rows: HashMap<Key, Row>,
    landed: VecDeque<Key>,
}

enum Row {
    InFlight(Vec<oneshot::Sender<Outcome>>),
    Landed,
}

/// What a row's id says.
pub enum Claim {
    /// Nobody has it: the caller appends it and must [`Recent::settle`] the key.
    Mine(Key),
    /// It landed before.
    Landed,
    /// Somebody else is appending it; their outcome comes here.
    Theirs(oneshot::Receiver<Outcome>),
}

impl Recent {
    /// Remembers at most `capacity` landed ids.
    pub fn new(capacity: usize) -> Self {
        Self { hashers: [RandomState::new(), RandomState::new()], state: Mutex::default(), capacity }
    }

    /// Claims the row `id` of `table`.
    pub fn claim(&self, table: &str, id: &str) -> Claim {
        let key = self.key(table, id);
        let mut state = self.lock();
        match state.rows.get_mut(&key) {
            None => {
                state.rows.insert(key, Row::InFlight(Vec::new()));
                Claim::Mine(key)
            }
            Some(Row::Landed) => Claim::Landed,
            Some(Row::InFlight(waiting)) => {
                let (sender, receiver) = oneshot::channel();
                waiting.push(sender);
                Claim::Theirs(receiver)
            }
        }
    }

    /// Says what became of claimed rows and tells those who wait for them.
    pub fn settle(&self, keys: &[Key], outcomes: &[Outcome]) {
        let mut state = self.lock();
        for (key, outcome) in keys.iter().zip(outcomes) {
            let was = if *outcome == Outcome::Done {
                state.landed.push_back(*key);
                state.rows.insert(*key, Row::Landed)
            } else {
                state.rows.remove(key)
            };
            if let Some(Row::InFlight(waiting)) = was {
                for waiter in waiting {
                    let _ = waiter.send(outcome.clone());
                }
            }
        }
        while state.landed.len() > self.capacity {
            if let Some(oldest) = state.landed.pop_front() {
                state.rows.remove(&oldest);
            }
        }
    }

    fn key(&self, table: &str, id: &str) -> Key {
        let [high, low] = &self.hashers;
        u128::from(high.hash_one((table, id))) << 64 | u128::from(low.hash_one((table, id)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mine(recent: &Recent, id: &str) -> Key {
        match recent.claim("t", id) {
            Claim::Mine(key) => key,
            _ => panic!("{id} is not free"),
        }
    }

    #[test]
    fn an_id_lands_only_after_its_append() {
        let recent = Recent::new(10);
        let key = mine(&recent, "a");
        recent.settle(&[key], &[Outcome::Retry("down".into())]);
        let key = mine(&recent, "a");
        recent.settle(&[key], &[Outcome::Done]);
        assert!(matches!(recent.claim("t", "a"), Claim::Landed));
        assert!(matches!(recent.claim("other", "a"), Claim::Mine(_)), "ids are of one table");
    }

    #[test]
    fn a_duplicate_of_one_in_flight_shares_its_outcome() {
        let recent = Recent::new(10);
        let key = mine(&recent, "a");
        let Claim::Theirs(mut twin) = recent.claim("t", "a") else { panic!("not in flight") };
        assert!(twin.try_recv().is_err());
        recent.settle(&[key], &[Outcome::Retry("down".into())]);
        assert_eq!(twin.try_recv(), Ok(Outcome::Retry("down".into())));
    }

    #[test]
    fn memory_is_bounded() {
        let recent = Recent::new(2);
        for id in ["a", "b", "c"] {
            let key = mine(&recent, id);
            recent.settle(&[key], &[Outcome::Done]);
        }
        assert!(matches!(recent.claim("t", "c"), Claim::Landed));
        assert!(matches!(recent.claim("t", "a"), Claim::Mine(_)), "the oldest is forgotten");
        assert_eq!(recent.lock().landed.len(), 2);
    }
}
