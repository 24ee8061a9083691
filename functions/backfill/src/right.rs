//! The right to be the one run at work on a target: on this machine a locked file, in a bucket a lease with a heartbeat.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use shared::bucket::{self, Location};
use shared::clock::{Clock, Micros, SECOND};
use shared::decode::time::timestamp_text;
use shared::lease::Lease;

use crate::Error;

const LOCK_FILE: &str = "backfill.lock";
const LEASE_FILE: &str = "backfill.lease";
/// How long a killed run keeps others out of a bucket.
const TERM: Micros = 60 * SECOND;
/// How often a long piece of work looks whether its right is to be renewed.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A right that was taken.
pub enum Right {
    /// Free when it is closed, by a kill too.
    Lock(#[expect(dead_code, reason = "held, not used")] File),
    Lease(Box<Lease>),
}

impl Right {
    /// Takes the right to the target whose state lies at `state`, unless another run has it.
    pub async fn take(state: &Location, owner: &str, clock: &Clock) -> Result<Self, Error> {
        if let Some(folder) = bucket::local(&state.uri) {
            return lock(folder, owner, clock);
        }
        match Lease::take(state, LEASE_FILE, owner, clock.clone(), TERM).await {
            Ok(lease) => Ok(Self::Lease(Box::new(lease))),
            Err(error) => Err(Error::Work(format!("{}: another run is at work: {error}; wait for it", state.uri))),
        }
    }

    /// Makes sure that it is still held; to be called a few times a minute and before the tables change.
    pub async fn hold(&self) -> Result<(), Error> {
        match self {
            Self::Lock(_) => Ok(()),
            Self::Lease(lease) => lease.hold().await.map_err(|error| Error::Work(error.to_string())),
        }
    }

    /// Does the work with the right held to its end, however long that takes. Where the right is lost the work is dropped;
    /// where the bucket does not answer, nobody else gets the right either.
    pub async fn hold_during<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let Self::Lease(lease) = self else { return Ok(work.await) };
        let lost = async {
            loop {
                match lease.hold().await {
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => return Error::Work(error.to_string()),
                    Err(error) => tracing::warn!(%error, "lease not renewed, to be tried again"),
                    Ok(()) => {}
                }
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        tokio::select! {
            done = work => Ok(done),
            lost = lost => Err(lost),
        }
    }

    /// Lets the next run begin.
    pub async fn release(self) {
        if let Self::Lease(lease) = self
            && let Err(error) = lease.release().await
        {
            tracing::warn!(%error, "the next run has to wait for the lease to end");
        }
    }
}

fn lock(folder: &Path, owner: &str, clock: &Clock) -> Result<Right, Error> {
    let path = folder.join(LOCK_FILE);
    let failed = |error: std::io::Error| Error::Work(format!("{}: {error}", path.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut other = String::new();
            let _ = file.read_to_string(&mut other);
            let other = if other.is_empty() { "another run" } else { other.trim() };
            return Err(Error::Work(format!("{}: {other} is at work; wait for it", path.display())));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let since = timestamp_text(clock.now());
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{owner} (since {since})").map_err(failed)?;
    Ok(Right::Lock(file))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;

    #[tokio::test]
    async fn work_that_outlasts_the_lease_renews_it_and_a_lost_lease_ends_it() {
        let clock = Clock::manual(0);
        let state =
            Location { store: Arc::new(InMemory::new()), path: Path::from("state"), uri: "gs://b/state".into() };
        let right = Right::take(&state, "first", &clock).await.unwrap();
        // Two minutes pass in the middle of the work, the lease being for one.
        let published = right.hold_during(async {
            for now in (0..=120).step_by(40) {
                clock.set(now * SECOND);
                tokio::time::sleep(HEARTBEAT + HEARTBEAT / 4).await;
                assert!(Right::take(&state, "second", &clock).await.is_err(), "after {now} s the lease is held");
            }
        });
        published.await.unwrap();

        clock.set(300 * SECOND);
        Right::take(&state, "second", &clock).await.unwrap();
        let dropped = right.hold_during(std::future::pending::<()>()).await;
        assert!(matches!(dropped, Err(Error::Work(reason)) if reason.contains("second")));
    }
}
