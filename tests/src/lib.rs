//! What the live tests share.

pub mod otlp_receiver;
