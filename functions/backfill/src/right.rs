//! The right to be the one run at work on a target: on this machine a locked file, in a bucket a lease with a heartbeat.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use shared::bucket::{self, Location};
use shared::clock::{Clock, Micros, SECOND};
use shared::decode::time::timestamp_text;
use shared::lease::Lease;

use crate::Error;

const LOCK_FILE: &str = "backfill.lock";
const LEASE_FILE: &str = "backfill.lease";
/// How long a killed run keeps others out of a bucket.
const TERM: Micros = 60 * SECOND;

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
