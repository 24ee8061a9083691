//! The file descriptors of `contextflow dev`: what holds them is bounded by how many there are, so that none of its parts
//! takes them from another. A quarter is for connections of clients, half for pushes, whose connections have both ends in
//! this process, and the rest for files.

use std::time::Duration;

use crate::bus::Config;

/// Pushes that `descriptors` allow at once.
pub fn pushes(descriptors: u64) -> usize {
    usize::try_from(descriptors / 4).unwrap_or(usize::MAX).max(1)
}

/// Fits the subscriptions of the bus into so many pushes, each with its share.
pub fn fit(bus: &mut Config, pushes: usize) {
    let wanted: usize = bus.subscriptions.iter().map(|subscription| subscription.max_outstanding).sum();
    if wanted > pushes {
        for subscription in &mut bus.subscriptions {
            subscription.max_outstanding = (subscription.max_outstanding * pushes / wanted).max(1);
        }
    }
}

/// How long an archive push may wait for others, so that fewer at once archive as many in a second: `wait` with all of
/// them.
pub fn archive_wait(wait: Duration, all: usize, outstanding: usize) -> Duration {
    let count = |pushes: usize| u32::try_from(pushes).unwrap_or(u32::MAX).max(1);
    wait.saturating_mul(count(outstanding.min(all))) / count(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::{ARCHIVE, topology};

    fn outstanding(descriptors: u64) -> Vec<(String, usize)> {
        let mut bus = topology();
        fit(&mut bus, pushes(descriptors));
        bus.subscriptions.into_iter().map(|subscription| (subscription.name, subscription.max_outstanding)).collect()
    }

    #[test]
    fn with_few_descriptors_every_subscription_has_its_share_and_with_many_all_it_wants() {
        let all = outstanding(1 << 20);
        assert_eq!(all, topology().subscriptions.into_iter().map(|s| (s.name, s.max_outstanding)).collect::<Vec<_>>());
        for descriptors in [64, 256, 1_024, 4_096] {
            let few = outstanding(descriptors);
            assert!(few.iter().all(|(_, pushes)| *pushes > 0), "{few:?}");
            let held: usize = few.iter().map(|(_, pushes)| 2 * pushes).sum();
            assert!(held as u64 <= descriptors / 2, "{descriptors}: {few:?}");
        }
    }

    #[test]
    fn the_archive_keeps_its_pace() {
        let pace = |descriptors| {
            let (_, outstanding) = outstanding(descriptors).into_iter().find(|(name, _)| name == ARCHIVE).unwrap();
            outstanding as u128 * 1_000 / archive_wait(Duration::from_secs(10), 1_000, outstanding).as_millis()
        };
        assert_eq!([64, 256, 4_096, 1 << 20].map(pace), [100; 4], "pushes a second");
    }
}
