//! Lookups over TCP (RFC 1035, 4.2.2; RFC 7766): segments as they passed, put together to messages, and questions paired with their
//! answers.

use probe_common::dns::{Asked, SegmentRecord};
use probe_common::wire::Address;

use super::message::Answer;
use crate::collect::DecodeError;

/// How a question over TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Answered(Answer),
    /// Without one.
    Unanswered,
    /// With an answer after it was given up.
    Late(Answer),
}

/// A question over TCP that has come to its end.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Of the socket.
    pub cookie: u64,
    /// When it ended, CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The question.
    pub asked: Asked,
    /// Who was asked; at the one who is asked, who asked.
    pub peer: Address,
    /// Port there; 0: not known.
    pub port: u16,
    /// Hash of the question ([`probe_common::question::parse`]).
    pub question: u32,
    /// Name in wire format.
    pub name: Box<[u8]>,
    /// How.
    pub ended: Ended,
}

/// Connections to and from servers.
#[derive(Debug, Default)]
pub struct Connections {
    lost: u64,
}

impl Connections {
    /// Takes a part of a stream in, and hands on what has come to its end with it.
    ///
    /// # Errors
    ///
    /// When the record is out of order.
    pub fn segment(
        &mut self,
        _record: &SegmentRecord,
        _ended: &mut dyn FnMut(Exchange),
    ) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Gives up what has waited longer than `timeout_ns`.
    pub fn expire(&mut self, _now_ns: u64, _timeout_ns: u64, _ended: &mut dyn FnMut(Exchange)) {}

    /// Connections whose messages could no longer be told apart, since the last time.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
