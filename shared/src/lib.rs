//! What every function of `ContextFlow` shares: schemas and their plans, decoding, enrichment, the ports to topics and
//! warehouses, the push envelope, dead letters and logs. No web server, no cloud SDK.
//!
//! The hot path is [`decode`] → [`enrich`] → [`encode`], driven by a [`schema::Plan`].

pub mod clock;
pub mod dead_letter;
pub mod decode;
pub mod encode;
pub mod enrich;
pub mod event;
pub mod problem;
pub mod publish;
pub mod push;
pub mod row;
pub mod schema;
pub mod sink;
pub mod telemetry;
pub mod window;
