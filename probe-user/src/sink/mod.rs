//! The only places that know an output format. A sink borrows a snapshot of `series`, or an event.

pub mod console;
pub mod json;
pub mod otlp;
pub mod prometheus;
