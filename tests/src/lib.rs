//! What the live tests share.

pub mod dns_server;
pub mod netns;
pub mod otlp_receiver;
pub mod probe;
pub mod workload;
