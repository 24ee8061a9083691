//! The right to be the only one at work on a place in a bucket: an object that names its holder and until when.
//!
//! It is created only where there is none, and replaced only as the version that was read, so of two writers one gets
//! it. The holder renews it by age before it writes; nothing runs between requests. Whoever finds it expired may take
//! it over, and the former holder, back from its sleep, finds that out before it writes again. What slips through
//! between the look and the write (clocks apart, a process stopped just there) is for the holder's writes to refuse:
//! those of a Delta log are created only where there is none.

use std::fmt;
use std::io;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::{info, warn};
use uuid::Uuid;

use crate::bucket::Location;
use crate::clock::{Clock, Micros};
use crate::decode::time;

/// How often the taking is tried when others change the lease at the same time.
const ATTEMPTS: usize = 3;

/// What the object says; times in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    owner: String,
    since: String,
    expires: String,
}

/// Why a lease cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another holds it.
    #[error("{owner} holds it since {since} and until {expires}, unless it is renewed")]
    Held {
        /// Name and id of the other.
        owner: String,
        /// When it took it.
        since: String,
        /// When others may take it.
        expires: String,
    },
    /// Others change it all the time.
    #[error("others take it all the time")]
    Contended,
    /// The bucket.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// A lease that was taken.
pub struct Lease {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// The address of what it is about.
    place: String,
    clock: Clock,
    /// How long it holds without a renewal.
    term: Micros,
    owner: String,
    since: String,
    held: Mutex<Held>,
}

/// What is known of the object.
struct Held {
    version: UpdateVersion,
    renewed_at: Micros,
    /// Why it is held no more.
    lost: Option<String>,
}

impl Lease {
    /// Takes the place that the object `file` in it stands for, for a process called `name`, unless another holds it.
    /// Without a renewal it is free after `term`.
    pub async fn take(
        location: &Location,
        file: &str,
        name: &str,
        clock: Clock,
        term: Micros,
    ) -> Result<Self, LeaseError> {
        let path = location.path.clone().join(file);
        let owner = format!("{name} ({})", Uuid::new_v4());
        for _ in 0..ATTEMPTS {
            let now = clock.now();
            let since = time::timestamp_text(now);
            let record =
                Record { owner: owner.clone(), since: since.clone(), expires: time::timestamp_text(now + term) };
            let mode = match read(&*location.store, &path).await? {
                None => PutMode::Create,
                // An answer that was lost: the put was made.
                Some((found, version)) if found.owner == owner => PutMode::Update(version),
                Some((found, _)) if time::timestamp(&found.expires).is_ok_and(|expires| now < expires) => {
                    let Record { owner, since, expires } = found;
                    return Err(LeaseError::Held { owner, since, expires });
                }
                Some((found, version)) => {
                    info!(former = found.owner, expired = found.expires, "taking over an expired lease");
                    PutMode::Update(version)
                }
            };
            if let Some(version) = put(&*location.store, &path, &record, mode).await? {
                let held = Mutex::new(Held { version, renewed_at: now, lost: None });
                let (store, place) = (Arc::clone(&location.store), location.uri.clone());
                return Ok(Self { store, path, place, clock, term, owner, since, held });
            }
        }
        Err(LeaseError::Contended)
    }

    /// Makes sure that the lease is held, and renews it when a third of its term is over; the error says who has it.
    pub async fn hold(&self) -> io::Result<()> {
        let mut held = self.held.lock().await;
        held.check()?;
        let now = self.clock.now();
        if now - held.renewed_at < self.term / 3 {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let mode = PutMode::Update(held.version.clone());
            if let Some(version) = put(&*self.store, &self.path, &self.record(now + self.term), mode).await? {
                (held.version, held.renewed_at) = (version, now);
                return Ok(());
            }
            self.look(&mut held).await?;
        }
        Err(io::Error::other(format!("{}: the lease changes all the time", self.place)))
    }

    /// Looks whether the bucket can be reached and still names this writer.
    pub async fn verify(&self) -> io::Result<()> {
        let mut held = self.held.lock().await;
        held.check()?;
        self.look(&mut held).await
    }

    /// Hands the place to whoever comes next.
    pub async fn release(&self) -> io::Result<()> {
        let mut held = self.held.lock().await;
        held.check()?;
        held.lost = Some(format!("{}: this writer has closed it", self.place));
        let mode = PutMode::Update(held.version.clone());
        // Where it is another's already, there is nothing to hand over.
        put(&*self.store, &self.path, &self.record(self.clock.now()), mode).await?;
        Ok(())
    }

    /// Learns the object's newest version if it is this writer's, and else that the lease is lost, for good.
    async fn look(&self, held: &mut Held) -> io::Result<()> {
        let found = read(&*self.store, &self.path).await?;
        match found {
            Some((found, version)) if found.owner == self.owner => held.version = version,
            other => {
                let has_it = match other {
                    Some((found, _)) => format!("{} has taken it over at {}", found.owner, found.since),
                    None => format!("{} was removed", self.path),
                };
                let lost = format!(
                    "{}: this writer's lease is lost, {has_it}; it writes no more: keep one writer and restart it",
                    self.place
                );
                warn!(owner = self.owner, reason = lost, "lease lost");
                held.lost = Some(lost);
            }
        }
        held.check()
    }

    fn record(&self, expires: Micros) -> Record {
        Record { owner: self.owner.clone(), since: self.since.clone(), expires: time::timestamp_text(expires) }
    }
}

impl Held {
    fn check(&self) -> io::Result<()> {
        self.lost.as_ref().map_or(Ok(()), |lost| Err(io::Error::new(io::ErrorKind::PermissionDenied, lost.clone())))
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} by {})", self.place, self.owner)
    }
}

/// The lease as it stands; `None` where there is none. One that cannot be read has no term and may be taken over.
async fn read(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Option<(Record, UpdateVersion)>> {
    let found = match store.get(path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
    let unreadable = |_| Record { owner: "nobody".into(), since: String::new(), expires: String::new() };
    let record = serde_json::from_slice(&found.bytes().await?).unwrap_or_else(unreadable);
    Ok(Some((record, version)))
}

/// Writes the lease; `None` where another was faster.
async fn put(
    store: &dyn ObjectStore,
    path: &Path,
    record: &Record,
    mode: PutMode,
) -> object_store::Result<Option<UpdateVersion>> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| object_store::Error::Generic { store: "lease", source: error.into() })?;
    match store.put_opts(path, bytes.into(), mode.into()).await {
        Ok(put) => Ok(Some(put.into())),
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
