//! What the live tests share.

pub mod blind;
pub mod counters;
pub mod dns_server;
pub mod drop;
pub mod netns;
pub mod otlp_receiver;
pub mod privileges;
pub mod probe;
pub mod workload;
