//! Which rows are under way and which have landed of late: a duplicate is dropped, or waits for its twin's outcome.
//!
//! A duplicate has the id *and* the content of another row: with other content under the same id it is a conflict, which
//! lands beside the other and is counted. A row counts as landed only after its append stands. The memory is bounded;
//! past it a duplicate lands twice and the table's deduplicated view drops it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher, RandomState};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::sink::Outcome;
use tokio::sync::oneshot;

/// 128 bits of a keyed hash.
type Hash128 = u128;

/// What a row is told from others by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Of table and id.
    id: Hash128,
    /// Of table, id and fingerprint.
    row: Hash128,
}

/// The window of rows.
pub struct Recent {
    hashers: [RandomState; 2],
    state: Mutex<State>,
    capacity: usize,
}

/// Landed rows are forgotten a whole generation at a time: to look one up touches little memory, to forget one none. Each
/// leaves both hashes of its key.
#[derive(Default)]
struct State {
    in_flight: HashMap<Hash128, Vec<oneshot::Sender<Outcome>>, ByKey>,
    landed: HashSet<Hash128, ByKey>,
    landed_before: HashSet<Hash128, ByKey>,
}

/// A key is a hash already.
type ByKey = BuildHasherDefault<KeyHasher>;

#[derive(Default)]
struct KeyHasher(u64);

/// What a row's id and fingerprint say.
pub enum Claim {
    /// Nobody has it: the caller appends it and must [`Recent::settle`] the key.
    Mine(Key),
    /// It landed before.
    Landed,
    /// Somebody else is appending it; their outcome comes here.
    Theirs(oneshot::Receiver<Outcome>),
}

impl Recent {
    /// Remembers at least the last `capacity` landed rows, in the memory of at most twice as many ids.
    pub fn new(capacity: usize) -> Self {
        Self { hashers: [RandomState::new(), RandomState::new()], state: Mutex::default(), capacity }
    }

    /// Claims rows of `table` by id and fingerprint, one claim a row.
    pub fn claim<'a>(&self, table: &str, rows: impl IntoIterator<Item = (&'a str, Option<i64>)>) -> Vec<Claim> {
        // What all ids have before them is hashed once.
        let of_table = self.hashers.each_ref().map(|hasher| {
            let mut hash = hasher.build_hasher();
            table.hash(&mut hash);
            hash
        });
        let keys: Vec<Key> = rows.into_iter().map(|(id, fingerprint)| key(&of_table, id, fingerprint)).collect();
        let mut state = self.lock();
        keys.into_iter().map(|key| state.claim(key)).collect()
    }

    /// Says what became of claimed rows and tells those who wait for them. Answers how many are conflicts: rows that
    /// landed after another with their id and other content.
    pub fn settle(&self, keys: &[Key], outcomes: &[Outcome]) -> u64 {
        let mut conflicts = 0;
        let mut state = self.lock();
        for (key, outcome) in keys.iter().zip(outcomes) {
            if *outcome == Outcome::Done {
                conflicts += u64::from(state.has_landed(key.id));
                state.land(*key, self.capacity);
            }
            for waiter in state.in_flight.remove(&key.row).unwrap_or_default() {
                let _ = waiter.send(outcome.clone());
            }
        }
        conflicts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(of_table: &[DefaultHasher; 2], id: &str, fingerprint: Option<i64>) -> Key {
    let joined = |[high, low]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
    let mut hashes = of_table.clone();
    for hash in &mut hashes {
        id.hash(hash);
    }
    let of_id = hashes.each_ref().map(DefaultHasher::finish);
    for hash in &mut hashes {
        fingerprint.hash(hash);
    }
    Key { id: joined(of_id), row: joined(hashes.each_ref().map(DefaultHasher::finish)) }
}

impl State {
    fn claim(&mut self, key: Key) -> Claim {
        if self.has_landed(key.row) {
            return Claim::Landed;
        }
        if let Some(waiting) = self.in_flight.get_mut(&key.row) {
            let (sender, receiver) = oneshot::channel();
            waiting.push(sender);
            return Claim::Theirs(receiver);
        }
        self.in_flight.insert(key.row, Vec::new());
        Claim::Mine(key)
    }

    fn has_landed(&self, hash: Hash128) -> bool {
        self.landed.contains(&hash) || self.landed_before.contains(&hash)
    }

    fn land(&mut self, key: Key, capacity: usize) {
        if self.landed.len() >= 2 * capacity {
            mem::swap(&mut self.landed, &mut self.landed_before);
            self.landed.clear();
        }
        self.landed.extend([key.id, key.row]);
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
        recent.claim(table, [(id, None)]).pop().unwrap()
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
            <[Claim; 2]>::try_from(recent.claim("t", [("a", Some(1)), ("a", Some(1))])).ok().unwrap()
        else {
            panic!("not in flight")
        };
        assert!(twin.try_recv().is_err());
        recent.settle(&[key], &[Outcome::Retry("down".into())]);
        assert_eq!(twin.try_recv(), Ok(Outcome::Retry("down".into())));
    }

    #[test]
    fn other_content_under_the_same_id_waits_for_nobody_and_is_a_conflict() {
        let recent = Recent::new(10);
        let rows = [("a", Some(1)), ("a", Some(2)), ("a", None), ("b", Some(1))];
        let keys: Vec<_> = recent
            .claim("t", rows)
            .into_iter()
            .map(|claim| match claim {
                Claim::Mine(key) => key,
                _ => panic!("not free"),
            })
            .collect();
        let refused = Outcome::Retry("refused".into());
        assert_eq!(recent.settle(&keys[..1], &[refused]), 0);
        assert_eq!(recent.settle(&keys[1..], &[const { Outcome::Done }; 3]), 1, "the one without fingerprint");
        let Some(Claim::Mine(key)) = recent.claim("t", [("a", Some(1))]).pop() else { panic!("it did not land") };
        assert_eq!(recent.settle(&[key], &[Outcome::Done]), 1);
        let landed = recent.claim("t", [("a", Some(1)), ("a", Some(2))]);
        assert!(landed.iter().all(|claim| matches!(claim, Claim::Landed)));
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
        assert_eq!((state.landed.len(), state.landed_before.len(), state.in_flight.len()), (2, 4, 1));
    }
}
