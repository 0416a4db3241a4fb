//! OTLP over gRPC or HTTP: metrics and events of what probe observes.
//!
//! The messages are assembled here and not recorded through an SDK, which cannot take histograms that were
//! counted elsewhere, a start time per series, or a resource per container. The agent's own metrics do go
//! through the SDK: see [`crate::telemetry`].
//!
//! Metrics are cumulative, so the newest snapshot replaces any that still waits and no total is lost while
//! the collector is away. For collectors that want deltas, what was not delivered becomes part of the next one. Events wait in a bounded queue; the oldest are dropped
//! first, and counted. With a [`spool`] they go to disk instead.

mod client;
mod config;
mod deltas;
mod encode;
mod export;
mod logs;
mod parts;
mod resource;
pub mod spool;

pub use self::client::ClientError;
pub(crate) use self::client::{Connection, endpoint};
pub use self::config::{
    Compression, ConfigError, Header, Histograms, OTLP_STANDARD, OtlpConfig, OtlpFlags, PemFile, Preferences,
    Protocol, Target, Temporality,
};
pub use self::encode::{EncodedRequest, RequestLimits, encode_metrics};
pub use self::export::{Exporter, Flushed, Options, SharedDeltas, phase};
pub use self::resource::{Resources, SCHEMA_URL, new_instance_id};
pub use self::spool::Spool;
