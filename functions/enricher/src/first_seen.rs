//! The time of an event that comes without one, under an id that tells none either: that of its first attempt.
//!
//! The publisher fills the time of receipt in, which is another one at each attempt; then one event would be several rows. So
//! an object of the bucket keeps the first time that was filled in, and every later attempt gets that one. It is created only
//! where there is none, so of attempts at the same moment one decides for all.
//!
//! Each object costs money, so a message causes at most [`MAX_OBJECTS`]: the events of a message that has more share one,
//! named by all of their ids. They keep their time when they are sent again together, as a client does that had no answer.

use std::sync::Arc;

use futures::future::try_join_all;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use shared::bucket::Location;
use shared::clock::{DAY, Micros};
use shared::decode::time;
use shared::event;
use shared::row::{Row, Value};
use shared::schema::Plan;

/// How far from the first attempt a later one may be received. The bucket may remove older objects.
const LOOK_BACK: Micros = 7 * DAY;
/// The most events of a push that have an object each.
const MAX_OBJECTS: usize = 10;
/// How often one event is tried while others change its object.
const ATTEMPTS: usize = 3;

/// An event whose time the publisher filled in.
pub struct Undated<'p> {
    /// Its schema.
    pub plan: &'p Arc<Plan>,
    /// Its line in the push.
    pub number: usize,
    /// Its text.
    pub line: &'p [u8],
    event_id: String,
    filled_in: Micros,
}

impl<'p> Undated<'p> {
    /// `None` for an event that brought its time, or whose id tells it. `received_at` is the publisher's.
    pub fn of(
        plan: &'p Arc<Plan>,
        number: usize,
        line: &'p [u8],
        row: &Row<'_>,
        received_at: Option<Micros>,
    ) -> Option<Self> {
        let event_id = row.text(plan.system?.event_id)?;
        let filled_in = received_at.filter(|_| event::minted_at(event_id).is_none())?;
        let value = row.values.get(plan.table.partition?.column)?;
        let is_filled_in = *value == in_form_of(value, filled_in);
        is_filled_in.then(|| Self { plan, number, line, event_id: event_id.to_string(), filled_in })
    }

    /// The id under which the event is sent again.
    pub fn id(&self) -> &str {
        &self.event_id
    }

    /// Gives its row another time.
    pub fn set_time(&self, time: Micros, row: &mut Row<'_>) {
        if let Some(value) = self.plan.table.partition.and_then(|partition| row.values.get_mut(partition.column)) {
            *value = in_form_of(value, time);
        }
    }
}

/// A time as a value of the same type as another one.
fn in_form_of(value: &Value<'_>, time: Micros) -> Value<'static> {
    match value {
        Value::Date(_) => i32::try_from(time.div_euclid(DAY)).map_or(Value::Null, Value::Date),
        Value::DateTime(_) => Value::DateTime(time),
        _ => Value::Timestamp(time),
    }
}

/// The times at which the events were first seen; the error is a bucket that gives no answer.
pub async fn times(bucket: &Location, events: &[Undated<'_>]) -> Result<Vec<Micros>, String> {
    let group = if events.len() > MAX_OBJECTS { events.len() } else { 1 };
    let lookups = events.chunks(group).map(|events| {
        let event_type = events.first().map_or("", |event| event.plan.event_type.as_str());
        let ids: Vec<_> = events.iter().map(|event| event.event_id.as_bytes()).collect();
        let path = bucket.path.clone().join("first-seen").join(event_type).join(event::derived_id(&ids));
        // The time of receipt is that of their message.
        let filled_in = events.first().map_or(0, |event| event.filled_in);
        let time = first_seen(Arc::clone(&bucket.store), path, filled_in);
        async move { Ok(vec![time.await?; events.len()]) }
    });
    let times = try_join_all(lookups).await;
    times.map(|times| times.concat()).map_err(|error: Error| format!("{}: first-seen record: {error}", bucket.uri))
}

/// The time that the object holds; it is `now` where there is none yet, or one that is too old.
async fn first_seen(store: Arc<dyn ObjectStore>, path: Path, now: Micros) -> object_store::Result<Micros> {
    let text = time::timestamp_text(now);
    let mut mode = PutMode::Create;
    for _ in 0..ATTEMPTS {
        let put = match store.put_opts(&path, text.clone().into(), mode.into()).await {
            // A folder cannot compare versions; it belongs to one process.
            Err(Error::NotImplemented { .. }) => store.put(&path, text.clone().into()).await,
            put => put,
        };
        match put {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            put => return put.map(|_| now),
        }
        let found = match store.get(&path).await {
            Err(Error::NotFound { .. }) => {
                mode = PutMode::Create;
                continue;
            }
            found => found?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let known = found.bytes().await?;
        let known = std::str::from_utf8(&known).ok().and_then(|text| time::timestamp(text).ok());
        match known.filter(|first| (now - first).abs() <= LOOK_BACK) {
            Some(first) => return Ok(first),
            None => mode = PutMode::Update(version),
        }
    }
    Err(Error::Generic {
        store: "first-seen",
        source: format!("the record changed during each of {ATTEMPTS} attempts").into(),
    })
}

#[cfg(test)]
mod tests {
    use object_store::local::LocalFileSystem;
    use object_store::memory::InMemory;

    use super::*;

    const T: Micros = 1_795_000_000_123_456;

    #[tokio::test]
    async fn the_first_attempt_decides_until_it_is_too_old() {
        let folder = tempfile::tempdir().unwrap();
        let stores: [Arc<dyn ObjectStore>; 2] =
            [Arc::new(InMemory::new()), Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap())];
        for store in stores {
            let path = Path::from("first-seen/clickstream/x");
            for (now, expected) in [
                (T, T),
                (T + 2 * DAY, T),
                (T - DAY, T),
                (T + 7 * DAY, T),
                (T + 7 * DAY + 1, T + 7 * DAY + 1),
                (T + 8 * DAY, T + 7 * DAY + 1),
            ] {
                assert_eq!(first_seen(Arc::clone(&store), path.clone(), now).await.unwrap(), expected);
            }
        }
    }

    #[tokio::test]
    async fn attempts_at_the_same_moment_get_one_time() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = Path::from("x");
        let attempts = (0..50).map(|attempt| first_seen(Arc::clone(&store), path.clone(), T + attempt));
        let times = futures::future::try_join_all(attempts).await.unwrap();
        assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
    }
}
