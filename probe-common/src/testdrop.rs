//! Not shipped: what tests tell the program that loses TCP segments for them, and what it tells back.

/// Rules at a time (`RULES`); the first that drops a packet has it.
pub const RULE_COUNT: u32 = 4;

/// [`Rule::what`]: a SYN without ACK.
pub const SYN: u16 = 1 << 0;
/// [`Rule::what`]: a SYN with ACK.
pub const SYN_ACK: u16 = 1 << 1;
/// [`Rule::what`]: a packet with payload.
pub const DATA: u16 = 1 << 2;
/// [`Rule::what`]: what is left: a bare ACK, FIN or RST.
pub const BARE: u16 = 1 << 3;

/// [`Rule::what`]: where a socket receives. The sender never hears of it: that is what loss is.
pub const INGRESS: u16 = 1 << 4;
/// [`Rule::what`]: where a socket sends. The sender is told that its transmission failed.
pub const EGRESS: u16 = 1 << 5;

/// [`Rule::per_million`]: always.
pub const ALWAYS: u32 = 1_000_000;
/// [`Rule::drop`]: more than any test sends.
pub const ENDLESS: u32 = u32::MAX;

/// Which packets to drop. All zero: none. Made for few branches: the verifier walks them for each rule.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `SYN`, `SYN_ACK`, `DATA`, `BARE`, and `INGRESS`, `EGRESS`, or-ed.
    pub what: u16,
    /// Source port, and which bits of it count: `u16::MAX`, or 0 for any port.
    pub from_port: [u16; 2],
    /// Destination port, and which bits of it count.
    pub to_port: [u16; 2],
    /// Zero.
    pub _pad: u16,
    /// So many of the packets that match pass first.
    pub skip: u32,
    /// Of so many after them, those that chance picks are dropped; [`ENDLESS`].
    pub drop: u32,
    /// Chance of each; [`ALWAYS`].
    pub per_million: u32,
}
const _: () = assert!(size_of::<Rule>() == 24);

/// What a rule did (`COUNTS`, per CPU).
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that matched.
    pub matched: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// Segments that they stood for: a packet here may be one of many segments (GSO).
    pub dropped_segments: u64,
}
const _: () = assert!(size_of::<Counts>() == 24);
