//! Which rows are under way and which have landed of late: a duplicate is dropped, or waits for its twin's outcome.
//!
//! An id counts as landed only after its append stands. The memory is bounded; past it a duplicate lands twice and the
//! table's deduplicated view drops it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher, RandomState};
use std::mem;
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

/// Landed ids are forgotten a whole generation at a time: to look one up touches little memory, to forget one none.
#[derive(Default)]
struct State {
    in_flight: HashMap<Key, Vec<oneshot::Sender<Outcome>>, ByKey>,
    landed: HashSet<Key, ByKey>,
    landed_before: HashSet<Key, ByKey>,
}

/// A key is a hash already.
type ByKey = BuildHasherDefault<KeyHasher>;

#[derive(Default)]
struct KeyHasher(u64);

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
    /// Remembers at least the last `capacity` landed ids, at most twice as many.
    pub fn new(capacity: usize) -> Self {
        Self { hashers: [RandomState::new(), RandomState::new()], state: Mutex::default(), capacity }
    }

    /// Claims the rows `ids` of `table`, one claim an id.
    pub fn claim<'a>(&self, table: &str, ids: impl IntoIterator<Item = &'a str>) -> Vec<Claim> {
        // What all ids have before them is hashed once.
        let of_table = self.hashers.each_ref().map(|hasher| {
            let mut hash = hasher.build_hasher();
            table.hash(&mut hash);
            hash
        });
        let keys: Vec<Key> = ids.into_iter().map(|id| key(&of_table, id)).collect();
        let mut state = self.lock();
        keys.into_iter().map(|key| state.claim(key)).collect()
    }

    /// Says what became of claimed rows and tells those who wait for them.
    pub fn settle(&self, keys: &[Key], outcomes: &[Outcome]) {
        let mut state = self.lock();
        for (key, outcome) in keys.iter().zip(outcomes) {
            if *outcome == Outcome::Done {
                state.land(*key, self.capacity);
            }
            for waiter in state.in_flight.remove(key).unwrap_or_default() {
                let _ = waiter.send(outcome.clone());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(of_table: &[DefaultHasher; 2], id: &str) -> Key {
    let [high, low] = of_table.clone().map(|mut hash| {
        id.hash(&mut hash);
        u128::from(hash.finish())
    });
    high << 64 | low
}

impl State {
    fn claim(&mut self, key: Key) -> Claim {
        if self.landed.contains(&key) || self.landed_before.contains(&key) {
            return Claim::Landed;
        }
        if let Some(waiting) = self.in_flight.get_mut(&key) {
            let (sender, receiver) = oneshot::channel();
            waiting.push(sender);
            return Claim::Theirs(receiver);
        }
        self.in_flight.insert(key, Vec::new());
        Claim::Mine(key)
    }

    fn land(&mut self, key: Key, capacity: usize) {
        if self.landed.len() >= capacity {
            mem::swap(&mut self.landed, &mut self.landed_before);
            self.landed.clear();
        }
        self.landed.insert(key);
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of the key's bits tell enough")]
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(recent: &Recent, table: &str, id: &str) -> Claim {
        recent.claim(table, [id]).pop().unwrap()
    }

    fn mine(recent: &Recent, id: &str) -> Key {
        match claim(recent, "t", id) {
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
        assert!(matches!(claim(&recent, "t", "a"), Claim::Landed));
        assert!(matches!(claim(&recent, "other", "a"), Claim::Mine(_)), "ids are of one table");
    }

    #[test]
    fn a_duplicate_of_one_in_flight_shares_its_outcome() {
        let recent = Recent::new(10);
        let [Claim::Mine(key), Claim::Theirs(mut twin)] =
            <[Claim; 2]>::try_from(recent.claim("t", ["a", "a"])).ok().unwrap()
        else {
            panic!("not in flight")
        };
        assert!(twin.try_recv().is_err());
        recent.settle(&[key], &[Outcome::Retry("down".into())]);
        assert_eq!(twin.try_recv(), Ok(Outcome::Retry("down".into())));
    }

    #[test]
    fn memory_is_bounded() {
        let recent = Recent::new(2);
        for id in ["a", "b", "c", "d", "e"] {
            let key = mine(&recent, id);
            recent.settle(&[key], &[Outcome::Done]);
        }
        for id in ["c", "d", "e"] {
            assert!(matches!(claim(&recent, "t", id), Claim::Landed), "{id} is of the last two generations");
        }
        assert!(matches!(claim(&recent, "t", "a"), Claim::Mine(_)), "the oldest is forgotten");
        let state = recent.lock();
        assert_eq!((state.landed.len(), state.landed_before.len(), state.in_flight.len()), (1, 2, 1));
    }
}
