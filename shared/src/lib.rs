//! What every function of `ContextFlow` shares: schemas and their plans, decoding, enrichment, the ports to topics and
//! warehouses, the push envelope, dead letters and logs. No web server, no cloud SDK.
//!
//! The hot path is [`decode`] → [`enrich`] → [`encode`], driven by a [`schema::Plan`].

pub mod bucket;
#[cfg(feature = "bigquery")]
pub mod catalog;
pub mod clock;
#[cfg(feature = "pubsub")]
pub mod credentials;
pub mod dead_letter;
pub mod decode;
pub mod durable;
pub mod encode;
pub mod enrich;
pub mod event;
pub mod lease;
pub mod load;
pub mod mapping;
pub mod metrics;
pub mod problem;
pub mod publish;
pub mod push;
pub mod row;
pub mod schema;
#[cfg(feature = "serve")]
pub mod serve;
pub mod settings;
pub mod sink;
pub mod telemetry;
pub mod views;
pub mod window;
