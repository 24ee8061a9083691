//! Micro-batching: items of many requests are gathered by key until a window is full or old enough, then handed on
//! together; each request gets the answer to its own item.
//!
//! A window is opened by its first item, so its timer runs only while a request waits for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// How many items are taken in before the windows' time is looked at.
const AT_ONCE: usize = 64;

/// The most windows under way that can be set.
pub const MAX_IN_FLIGHT: usize = 1_000;

/// When a window is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At most this many rows, unless one item alone has more.
    pub rows: usize,
    /// At most this many bytes, unless one item alone has more.
    pub bytes: usize,
    /// At most this long after its first item.
    pub wait: Duration,
    /// At most this many windows under way at once; past it, new items wait (back-pressure).
    pub in_flight: usize,
}

/// Gathers items of type `T` by key `K`; an item's answer is an `R`.
pub struct Window<K, T, R> {
    sender: mpsc::Sender<Item<K, T, R>>,
    hurry: watch::Sender<bool>,
}

struct Item<K, T, R> {
    key: K,
    rows: usize,
    bytes: usize,
    value: T,
    reply: oneshot::Sender<R>,
}

struct Open<T, R> {
    rows: usize,
    bytes: usize,
    due: Instant,
    values: Vec<T>,
    replies: Vec<oneshot::Sender<R>>,
}

impl<T, R> Open<T, R> {
    fn until(due: Instant) -> Self {
        Self { rows: 0, bytes: 0, due, values: Vec::new(), replies: Vec::new() }
    }
}

/// The window is gone: the process is ending. Nothing was done with the item, or its answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process is ending")]
pub struct Closed;

impl<K, T, R> Window<K, T, R>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
{
    /// Starts gathering. `flush` answers one `R` an item, aligned by position.
    pub fn spawn<F, Fut>(limits: Limits, flush: F) -> Self
    where
        F: Fn(K, Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(1_024);
        let (hurry, in_hurry) = watch::channel(false);
        tokio::spawn(gather(limits, receiver, in_hurry, Arc::new(flush)));
        Self { sender, hurry }
    }

    /// The process is to end: what is held is handed on at once, and later items wait no longer.
    pub fn hurry(&self) {
        self.hurry.send_replace(true);
    }

    /// Puts an item into the window of `key` and waits for its answer.
    pub async fn submit(&self, key: K, rows: usize, bytes: usize, value: T) -> Result<R, Closed> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(Item { key, rows, bytes, value, reply }).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }
}

async fn gather<K, T, R, F, Fut>(
    limits: Limits,
    mut items: mpsc::Receiver<Item<K, T, R>>,
    mut in_hurry: watch::Receiver<bool>,
    flush: Arc<F>,
) where
    K: Eq + Hash + Clone + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(K, Vec<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<R>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits.in_flight));
    let mut open: HashMap<K, Open<T, R>> = HashMap::new();
    let mut wait = limits.wait;
    let mut arrived = Vec::new();
    loop {
        let due = open.values().map(|window| window.due).min();
        // Many at once: a timer is looked at once for all of them.
        let received = tokio::select! {
            received = items.recv_many(&mut arrived, AT_ONCE) => received,
            Ok(()) = in_hurry.changed() => {
                wait = Duration::ZERO;
                for window in open.values_mut() {
                    window.due = Instant::now();
                }
                continue;
            }
            () = sleep_until(due) => {
                let now = Instant::now();
                let is_due = |(key, window): (&K, &Open<T, R>)| (window.due <= now).then(|| key.clone());
                let keys: Vec<K> = open.iter().filter_map(is_due).collect();
                for key in keys {
                    hand_on(&mut open, key, &permits, &flush).await;
                }
                continue;
            }
        };
        if received == 0 {
            break;
        }
        for item in arrived.drain(..) {
            let fits = |window: &Open<T, R>| {
                window.rows + item.rows <= limits.rows && window.bytes + item.bytes <= limits.bytes
            };
            if !open.get(&item.key).is_none_or(fits) {
                hand_on(&mut open, item.key.clone(), &permits, &flush).await;
            }
            let window = match open.get_mut(&item.key) {
                Some(window) => window,
                None => open.entry(item.key.clone()).or_insert_with(|| Open::until(Instant::now() + wait)),
            };
            window.rows += item.rows;
            window.bytes += item.bytes;
            window.values.push(item.value);
            window.replies.push(item.reply);
            if window.rows >= limits.rows || window.bytes >= limits.bytes {
                hand_on(&mut open, item.key, &permits, &flush).await;
            }
        }
    }
    let keys: Vec<K> = open.keys().cloned().collect();
    for key in keys {
        hand_on(&mut open, key, &permits, &flush).await;
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn hand_on<K, T, R, F, Fut>(open: &mut HashMap<K, Open<T, R>>, key: K, permits: &Arc<Semaphore>, flush: &Arc<F>)
where
    K: Eq + Hash + Send + 'static,
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(K, Vec<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<R>> + Send + 'static,
{
    let Some(window) = open.remove(&key) else { return };
    let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return };
    let flush = Arc::clone(flush);
    tokio::spawn(async move {
        let answers = flush(key, window.values).await;
        drop(permit);
        for (reply, answer) in window.replies.into_iter().zip(answers) {
            // Whoever asked may have gone; the work is done all the same.
            let _ = reply.send(answer);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::join_all;
    use proptest::prelude::*;

    use super::*;

    type Flushed = Arc<Mutex<Vec<(u8, Vec<usize>)>>>;

    fn window(limits: Limits) -> (Window<u8, usize, usize>, Flushed) {
        let flushed = Flushed::default();
        let log = Arc::clone(&flushed);
        let window = Window::spawn(limits, move |key, values: Vec<usize>| {
            log.lock().unwrap().push((key, values.clone()));
            async move { values.into_iter().map(|value| value * 10).collect() }
        });
        (window, flushed)
    }

    fn limits(rows: usize, bytes: usize) -> Limits {
        Limits { rows, bytes, wait: Duration::from_millis(5), in_flight: 4 }
    }

    #[tokio::test]
    async fn a_lone_item_is_handed_on_after_the_wait() {
        let (window, flushed) = window(limits(100, 100));
        assert_eq!(window.submit(1, 1, 1, 7).await, Ok(70));
        assert_eq!(*flushed.lock().unwrap(), [(1, vec![7])]);
    }

    #[tokio::test]
    async fn keys_do_not_mix() {
        let (window, flushed) = window(limits(2, 100));
        let submit = |key, value| window.submit(key, 1, 1, value);
        let answers = join_all([submit(1, 1), submit(2, 2), submit(1, 3), submit(2, 4)]).await;
        assert_eq!(answers, [Ok(10), Ok(20), Ok(30), Ok(40)]);
        assert_eq!(*flushed.lock().unwrap(), [(1, vec![1, 3]), (2, vec![2, 4])]);
    }

    #[tokio::test]
    async fn in_a_hurry_nothing_waits() {
        let (window, _) = window(Limits { wait: Duration::from_hours(1), ..limits(100, 100) });
        let (first, ()) = futures::join!(window.submit(1, 1, 1, 1), async { window.hurry() });
        assert_eq!((first, window.submit(1, 1, 1, 2).await), (Ok(10), Ok(20)));
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_window_in_order_and_within_its_limits(
            items in proptest::collection::vec((0..3_u8, 1..5_usize, 1..40_usize), 1..60)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (answers, flushed) = runtime.block_on(async {
                let (window, flushed) = window(limits(7, 64));
                let submits = items.iter().enumerate().map(|(index, (key, rows, bytes))| window.submit(*key, *rows, *bytes, index));
                (join_all(submits).await, flushed)
            });
            let expected: Vec<_> = (0..items.len()).map(|index| Ok(index * 10)).collect();
            prop_assert_eq!(answers, expected);
            let windows = flushed.lock().unwrap().clone();
            for key in 0..3 {
                let seen: Vec<_> = windows.iter().filter(|(of, _)| *of == key).flat_map(|(_, values)| values.clone()).collect();
                let sent: Vec<_> = (0..items.len()).filter(|&index| items[index].0 == key).collect();
                prop_assert_eq!(seen, sent);
            }
            for (_, values) in windows {
                let rows: usize = values.iter().map(|&index| items[index].1).sum();
                let bytes: usize = values.iter().map(|&index| items[index].2).sum();
                prop_assert!(values.len() == 1 || (rows <= 7 && bytes <= 64));
            }
        }
    }
}
