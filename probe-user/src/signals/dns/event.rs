//! A lookup as an event.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use crate::event::{AttrValue, Attributes, key, name};
use crate::signals::Who;

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// Without one, by the timeout or because the question was sent again.
    Unanswered,
    /// With an answer after it was reported as unanswered.
    Late,
}

impl Outcome {
    /// As attribute `dns.outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unanswered => "unanswered",
            Self::Late => "late",
        }
    }
}

/// What carried a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A message a packet.
    Udp,
    /// Messages with their length before them (RFC 1035, 4.2.2).
    Tcp,
}

impl Transport {
    /// As attribute `network.transport`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// From which end a lookup was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Where it was asked.
    Client,
    /// Where it was answered.
    Server,
}

/// A lookup came to its end.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// When the answer came, or the lookup was given up.
    pub time_unix_ns: u64,
    /// Who asked; seen from the server, who answers.
    pub who: Who,
    /// Name in presentation format (RFC 1035, 5.1), lower case, without the closing dot.
    pub name: String,
    /// Type, `TYPE65` style where it has no name.
    pub qtype: Cow<'static, str>,
    /// Response code, extended (RFC 6891, 6.1.3) where the answer says so; `RCODE17` style where it has no name.
    pub rcode: Option<Cow<'static, str>>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the question to the answer; without an answer, to when it was given up.
    pub duration: Duration,
    /// From which end it was seen.
    pub role: Role,
    /// Who was asked, as the process addressed it; seen from the server, who asked.
    pub peer: Option<SocketAddr>,
    /// What carried it.
    pub transport: Transport,
    /// The answer was cut.
    pub truncated: bool,
    /// Asked over TCP because the answer over UDP had been cut.
    pub fallback: bool,
    /// 1: first try.
    pub attempt: u16,
    /// Records in the answer section.
    pub answers: Option<u16>,
    /// The smallest time to live in the answer section.
    pub ttl: Option<Duration>,
    /// Unanswered, while the question for the other kind of address (A, AAAA), asked beside it, was answered.
    pub lost_twin: bool,
    /// Lookups of names that do not exist that went before this one for the sake of a search list.
    pub search_misses: u32,
}

impl Lookup {
    /// Whether somebody who reads logs wants to know: no answer, a late one, or one that says that the server failed. That
    /// a name does not exist is everyday (search lists).
    #[must_use]
    pub fn is_notable(&self) -> bool {
        self.outcome != Outcome::Answered || !matches!(self.rcode.as_deref(), Some("NOERROR" | "NXDOMAIN"))
    }
}

impl Attributes for Lookup {
    fn event_name(&self) -> &'static str {
        name::DNS_LOOKUP
    }
    fn time_unix_ns(&self) -> u64 {
        self.time_unix_ns
    }
    fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
        visitor(key::DNS_QUESTION_NAME, AttrValue::Str(&self.name));
        visitor(key::DNS_QUESTION_TYPE, AttrValue::Str(&self.qtype));
        visitor(key::DNS_OUTCOME, AttrValue::Str(self.outcome.as_str()));
        if let Some(rcode) = &self.rcode {
            visitor(key::DNS_RESPONSE_CODE, AttrValue::Str(rcode));
        }
        visitor(key::DURATION, AttrValue::Float(self.duration.as_secs_f64()));
        visitor(key::NETWORK_TRANSPORT, AttrValue::Str(self.transport.as_str()));
        let (address, port) = match self.role {
            Role::Client => (key::SERVER_ADDRESS, key::SERVER_PORT),
            Role::Server => (key::CLIENT_ADDRESS, key::CLIENT_PORT),
        };
        if let Some(peer) = self.peer {
            visitor(address, AttrValue::Str(&peer.ip().to_string()));
            visitor(port, AttrValue::Int(i64::from(peer.port())));
        }
        if self.role == Role::Server {
            visitor(key::DNS_ROLE, AttrValue::Str("server"));
        }
        if self.rcode.is_some() {
            visitor(key::DNS_TRUNCATED, AttrValue::Bool(self.truncated));
        }
        visitor(key::DNS_ATTEMPT, AttrValue::Int(i64::from(self.attempt)));
        if let Some(answers) = self.answers {
            visitor(key::DNS_ANSWERS, AttrValue::Int(i64::from(answers)));
        }
        if let Some(ttl) = self.ttl {
            visitor(key::DNS_TTL, AttrValue::Float(ttl.as_secs_f64()));
        }
        for (key, holds) in [(key::DNS_FALLBACK, self.fallback), (key::DNS_LOST_TWIN, self.lost_twin)] {
            if holds {
                visitor(key, AttrValue::Bool(true));
            }
        }
        if self.search_misses != 0 {
            visitor(key::DNS_SEARCH_MISSES, AttrValue::Int(i64::from(self.search_misses)));
        }
        self.who.visit(visitor);
    }
}
