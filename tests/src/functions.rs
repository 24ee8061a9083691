//! The three functions over ports in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use publisher::StreamTypes;
use serde_json::Value;
use shared::bucket::Location;
use shared::clock::{Clock, SECOND};
use shared::enrich::Warm;
use shared::enrich::address::Anonymise;
use shared::metrics::Metrics;
use shared::publish::{MAX_EVENT_BYTES, MemoryTopic};
use shared::schema::{Registry, Schemas};
use shared::sink::Sink;
use shared::window::Limits;

use crate::{Answer, NOW, built_in, call, json_lines, post, post_json};

/// Limits of a window, with a wait in milliseconds.
pub fn limits(rows: usize, millis: u64) -> Limits {
    Limits { rows, bytes: 1 << 20, wait: Duration::from_millis(millis), in_flight: 4 }
}

/// The publisher before a topic in memory.
pub struct PublisherFixture {
    /// `POST /publish`, `GET /health`.
    pub router: Router,
    /// The raw topic.
    pub topic: Arc<MemoryTopic>,
    /// Its clock, at [`NOW`].
    pub clock: Clock,
}

impl PublisherFixture {
    /// With the built-in schemas.
    pub fn start() -> Self {
        Self::with(built_in(), Anonymise::Off)
    }

    /// With other schemas or another treatment of addresses.
    pub fn with(registry: Arc<Registry>, anonymise: Anonymise) -> Self {
        Self::at(registry, anonymise, StreamTypes::All, Clock::manual(NOW))
    }

    /// As a publisher that anyone may call.
    pub fn public() -> Self {
        Self::at(built_in(), Anonymise::Off, StreamTypes::Only(BTreeSet::new()), Clock::manual(NOW))
    }

    /// With a clock of the test's.
    pub fn at(registry: Arc<Registry>, anonymise: Anonymise, stream_types: StreamTypes, clock: Clock) -> Self {
        let deps = publisher::Deps { anonymise, stream_types, ..publisher_deps(registry, clock) };
        Self::of(deps, publisher::Limits::default())
    }

    /// With requests of a limited size.
    pub fn within(registry: Arc<Registry>, anonymise: Anonymise, limits: publisher::Limits) -> Self {
        Self::of(publisher::Deps { anonymise, ..publisher_deps(registry, Clock::manual(NOW)) }, limits)
    }

    /// With everything as given, but for the topic.
    pub fn of(deps: publisher::Deps, limits: publisher::Limits) -> Self {
        let (topic, clock) = (Arc::new(MemoryTopic::default()), deps.clock.clone());
        let deps = publisher::Deps { topic: topic.clone(), ..deps };
        Self { router: publisher::router_within(Arc::new(deps), limits), topic, clock }
    }

    /// `POST /publish` as JSON.
    pub async fn publish(&self, body: impl Into<Body>) -> Answer {
        post_json(&self.router, "/publish", body).await
    }

    /// `POST /publish` as NDJSON.
    pub async fn publish_lines(&self, body: impl Into<Body>) -> Answer {
        post(&self.router, "/publish", Some("application/x-ndjson"), body).await
    }

    /// `POST /publish` as JSON from a client whose address the runtime knows.
    pub async fn publish_from(&self, address: IpAddr, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::post("/publish").header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.extension(publisher::ClientAddress(address)).body(body.to_string().into());
        call(&self.router, request.expect("a request")).await
    }

    /// Every event on the topic.
    pub fn events(&self) -> Vec<Value> {
        self.topic.messages().iter().flat_map(|message| json_lines(&message.data)).collect()
    }

    /// Every event on the topic as its line of text.
    pub fn lines(&self) -> Vec<String> {
        let messages = self.topic.messages();
        let text = |data: &Bytes| String::from_utf8(data.to_vec()).expect("UTF-8");
        messages
            .iter()
            .flat_map(|message| text(&message.data).lines().map(str::to_string).collect::<Vec<_>>())
            .collect()
    }
}

/// What a publisher works with before a topic in memory.
pub fn publisher_deps(registry: Arc<Registry>, clock: Clock) -> publisher::Deps {
    publisher::Deps {
        schemas: Arc::new(Schemas::fixed(registry)),
        topic: Arc::new(MemoryTopic::default()),
        clock,
        anonymise: Anonymise::Off,
        max_event_bytes: MAX_EVENT_BYTES,
        synthetic_events: false,
        stream_types: StreamTypes::All,
    }
}

/// The enricher between topics in memory, with the built-in lookups.
pub struct EnricherFixture {
    /// `POST /`, `GET /health`, `GET /ready`.
    pub router: Router,
    /// The enriched topic.
    pub enriched: Arc<MemoryTopic>,
    /// The dead-letter topic.
    pub dead_letters: Arc<MemoryTopic>,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// Its clock, at [`NOW`].
    pub clock: Clock,
}

impl EnricherFixture {
    /// With the built-in schemas and a window of a millisecond.
    pub async fn start() -> Self {
        Self::with(built_in(), enricher::Config { pack: limits(500, 1), ..enricher::Config::default() }).await
    }

    /// With other schemas or settings.
    pub async fn with(registry: Arc<Registry>, config: enricher::Config) -> Self {
        Self::with_schemas(Schemas::fixed(registry), Clock::manual(NOW), config).await
    }

    /// With schemas that may change.
    pub async fn with_schemas(schemas: Schemas, clock: Clock, config: enricher::Config) -> Self {
        Self::before(schemas, config, Some(Arc::new(InMemory::new())), clock).await
    }

    /// With a bucket, or none, and a clock of the test's.
    pub async fn at(
        registry: Arc<Registry>,
        config: enricher::Config,
        store: Option<Arc<dyn ObjectStore>>,
        clock: Clock,
    ) -> Self {
        Self::before(Schemas::fixed(registry), config, store, clock).await
    }

    async fn before(
        schemas: Schemas,
        config: enricher::Config,
        store: Option<Arc<dyn ObjectStore>>,
        clock: Clock,
    ) -> Self {
        let (enriched, dead_letters) = (Arc::new(MemoryTopic::default()), Arc::new(MemoryTopic::default()));
        let bucket =
            store.clone().map(|store| Location { store, path: Path::from("archive"), uri: "memory:///archive".into() });
        let lookups = Warm::load(Vec::new(), clock.clone(), 60 * SECOND).await.expect("the built-in lookups load");
        let deps = enricher::Deps {
            schemas: Arc::new(schemas),
            bucket,
            lookups: Arc::new(lookups),
            enriched: enriched.clone(),
            dead_letters: dead_letters.clone(),
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock: clock.clone(),
        };
        let router = enricher::router(Arc::new(enricher::Enricher::new(deps, config)));
        let store = store.unwrap_or_else(|| Arc::new(InMemory::new()));
        Self { router, enriched, dead_letters, store, clock }
    }

    /// `POST /` with the body of a push.
    pub async fn push(&self, body: Vec<u8>) -> Answer {
        post_json(&self.router, "/", body).await
    }

    /// Every row on the enriched topic.
    pub fn rows(&self) -> Vec<Value> {
        self.enriched.messages().iter().flat_map(|message| json_lines(&message.data)).collect()
    }

    /// Every dead letter on its topic.
    pub fn letters(&self) -> Vec<Value> {
        self.dead_letters.messages().iter().flat_map(|message| json_lines(&message.data)).collect()
    }
}

/// Settings of a batcher that a test does not wait for: windows of a millisecond, a budget of 200.
pub fn quick_batcher() -> batcher::Config {
    batcher::Config {
        table: limits(500, 1),
        archive: limits(usize::MAX, 1),
        dead_letters: limits(usize::MAX, 1),
        published_dead_letters: limits(500, 1),
        budget: Duration::from_millis(200),
        pause: Duration::from_millis(2),
        remembered_ids: 10_000,
    }
}

/// [`quick_batcher`] with a budget that no busy machine spends: for what is to succeed at a later try.
pub fn patient_batcher() -> batcher::Config {
    batcher::Config { budget: Duration::from_secs(30), ..quick_batcher() }
}

/// The batcher before a warehouse, a bucket and topics in memory.
pub struct BatcherFixture<S> {
    /// `POST /`, `/archive`, `/dead-letter`, `GET /health`, `/ready`.
    pub router: Router,
    /// The function itself.
    pub batcher: Arc<batcher::Batcher>,
    /// The warehouse.
    pub sink: Arc<S>,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The enriched topic.
    pub enriched: Arc<MemoryTopic>,
    /// The dead-letter topic.
    pub dead_letters: Arc<MemoryTopic>,
    /// Its clock, at [`NOW`].
    pub clock: Clock,
}

impl<S: Sink + Default + 'static> BatcherFixture<S> {
    /// With the built-in schemas, [`quick_batcher`] and a bucket in memory.
    pub fn start() -> Self {
        Self::with(built_in(), &quick_batcher())
    }

    /// With other schemas or settings.
    pub fn with(registry: Arc<Registry>, config: &batcher::Config) -> Self {
        Self::before(registry, config, Some(Arc::new(InMemory::new())))
    }

    /// Before another bucket or none.
    pub fn before(registry: Arc<Registry>, config: &batcher::Config, store: Option<Arc<dyn ObjectStore>>) -> Self {
        let sink = Arc::new(S::default());
        let (enriched, dead_letters) = (Arc::new(MemoryTopic::default()), Arc::new(MemoryTopic::default()));
        let clock = Clock::manual(NOW);
        let bucket =
            store.clone().map(|store| Location { store, path: Path::from("archive"), uri: "memory:///archive".into() });
        let deps = batcher::Deps {
            schemas: Arc::new(Schemas::fixed(registry)),
            sink: sink.clone(),
            bucket,
            enriched: enriched.clone(),
            dead_letters: dead_letters.clone(),
            metrics: Arc::new(Metrics::new(clock.clone())),
            clock: clock.clone(),
        };
        let batcher = Arc::new(batcher::Batcher::new(deps, config));
        let store = store.unwrap_or_else(|| Arc::new(InMemory::new()));
        let router = batcher::router(Arc::clone(&batcher));
        Self { router, batcher, sink, store, enriched, dead_letters, clock }
    }

    /// `POST path` with the body of a push.
    pub async fn push(&self, path: &str, body: impl Into<Body>) -> Answer {
        post_json(&self.router, path, body).await
    }

    /// Every dead letter on its topic.
    pub fn letters(&self) -> Vec<Value> {
        self.dead_letters.messages().iter().flat_map(|message| json_lines(&message.data)).collect()
    }
}

/// Everything in a bucket, by name; what is compressed is unpacked.
pub async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Vec<u8>> {
    let found: Vec<_> = store.list(None).try_collect().await.expect("the bucket lists");
    let mut objects = BTreeMap::new();
    for meta in found {
        let object = store.get(&meta.location).await.expect("the object is there");
        let bytes = object.bytes().await.expect("the object can be read").to_vec();
        let is_packed = meta.location.extension() == Some("gz");
        objects.insert(meta.location.to_string(), if is_packed { gunzip(&bytes) } else { bytes });
    }
    objects
}

fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    let mut decoder = flate2::read::MultiGzDecoder::new(packed);
    std::io::Read::read_to_end(&mut decoder, &mut unpacked).expect("the object is gzip");
    unpacked
}
