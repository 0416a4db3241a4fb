//! What one agent leaves to the next that takes its programs over (`--pin`): what was counted, and up to where its maps were read.
//!
//! One message of protocol buffers, compressed with zstd. Who reads it is told beforehand whether it is meant for it ([`Identity`]), so
//! there is one version of it: whoever changes a message here, or what a signal writes, raises [`FORMAT`].

use std::fmt::Write as _;

use bytemuck::Pod;
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::load::{MapSizes, ObjectSpec};

/// Version of what is left.
const FORMAT: u32 = 1;
/// What is left may take so much when it is unpacked: the limits of all tables together are below that.
const MOST: usize = 256 << 20;
/// zstd's fastest: the end of an agent is waited for.
const LEVEL: i32 = 1;

/// Everything that is left.
#[derive(Clone, PartialEq, Message)]
pub struct Handover {
    /// `service.instance.id`: who takes over goes on as the same instance, since its series do.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// Signals.
    #[prost(message, repeated, tag = "2")]
    pub signals: Vec<SignalState>,
    /// Owners with their series.
    #[prost(message, repeated, tag = "3")]
    pub owners: Vec<OwnerState>,
    /// Paths of cgroups, those of removed ones among them.
    #[prost(message, repeated, tag = "4")]
    pub cgroups: Vec<CgroupState>,
    /// Of the last collection, nanoseconds since 1970.
    #[prost(fixed64, tag = "5")]
    pub collected_unix_ns: u64,
}

/// A signal's.
#[derive(Clone, PartialEq, Message)]
pub struct SignalState {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Counters of its programs as they were read last.
    #[prost(uint64, repeated, tag = "2")]
    pub counters: Vec<u64>,
    /// Runs of its programs that were skipped, as far as told.
    #[prost(uint64, tag = "3")]
    pub skipped: u64,
    /// Runs that a backup made up for.
    #[prost(uint64, tag = "4")]
    pub made_up: u64,
    /// Number of the interval that its programs are in.
    #[prost(uint32, tag = "5")]
    pub interval: u32,
    /// What its maps said when they were read last: only the signal knows what these are.
    #[prost(message, repeated, tag = "6")]
    pub entries: Vec<EntryState>,
}

/// An entry of a map as it was read last.
#[derive(Clone, PartialEq, Message)]
pub struct EntryState {
    /// Which map, in the signal's own numbers.
    #[prost(uint32, tag = "1")]
    pub map: u32,
    /// Key as it is in memory.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// Value, likewise.
    #[prost(bytes = "vec", tag = "3")]
    pub value: Vec<u8>,
    /// What user space has added to it.
    #[prost(uint64, repeated, tag = "4")]
    pub further: Vec<u64>,
}

impl EntryState {
    /// Of a key and value of the contract.
    #[must_use]
    pub fn new<K: Pod, V: Pod>(map: u32, key: &K, value: &V) -> Self {
        let (key, value) = (bytemuck::bytes_of(key).to_vec(), bytemuck::bytes_of(value).to_vec());
        Self { map, key, value, further: Vec::new() }
    }

    /// Key and value, if they have these types' sizes.
    #[must_use]
    pub fn read<K: Pod, V: Pod>(&self) -> Option<(K, V)> {
        let key = bytemuck::try_pod_read_unaligned(&self.key).ok()?;
        Some((key, bytemuck::try_pod_read_unaligned(&self.value).ok()?))
    }
}

/// A cgroup.
#[derive(Clone, PartialEq, Message)]
pub struct CgroupState {
    /// Its id.
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    /// Its path below the root.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// An owner: the host where it is neither of the others.
#[derive(Clone, PartialEq, Message)]
pub struct OwnerState {
    /// A systemd unit.
    #[prost(string, optional, tag = "1")]
    pub unit: Option<String>,
    /// A container.
    #[prost(message, optional, tag = "2")]
    pub container: Option<ContainerState>,
    /// Its series.
    #[prost(message, repeated, tag = "3")]
    pub series: Vec<SeriesState>,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerState {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `container.runtime.name`.
    #[prost(string, optional, tag = "2")]
    pub runtime: Option<String>,
    /// Uid of its pod.
    #[prost(string, optional, tag = "3")]
    pub pod_uid: Option<String>,
    /// What Kubernetes calls it, as far as known.
    #[prost(message, optional, tag = "4")]
    pub names: Option<NamesState>,
}

/// What Kubernetes calls a container.
#[derive(Clone, PartialEq, Message)]
pub struct NamesState {
    /// Namespace of the pod.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Pod.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// Container in its pod.
    #[prost(string, optional, tag = "3")]
    pub container: Option<String>,
    /// Node.
    #[prost(string, optional, tag = "4")]
    pub node: Option<String>,
    /// What made the pod: attribute and name.
    #[prost(message, optional, tag = "5")]
    pub workload: Option<PairState>,
    /// Image.
    #[prost(string, optional, tag = "6")]
    pub image: Option<String>,
    /// Its tag.
    #[prost(string, optional, tag = "7")]
    pub tag: Option<String>,
    /// Labels of the pod that were asked for.
    #[prost(message, repeated, tag = "8")]
    pub labels: Vec<PairState>,
}

/// A name and a text.
#[derive(Clone, PartialEq, Message)]
pub struct PairState {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A series. It has one of the values, by its metric's kind.
#[derive(Clone, PartialEq, Message)]
pub struct SeriesState {
    /// Its metric.
    #[prost(string, tag = "1")]
    pub metric: String,
    /// Attributes.
    #[prost(message, repeated, tag = "2")]
    pub attributes: Vec<AttributeState>,
    /// Since when it counts, nanoseconds since 1970.
    #[prost(fixed64, tag = "3")]
    pub start_unix_ns: u64,
    /// Of a counter.
    #[prost(uint64, optional, tag = "4")]
    pub count: Option<u64>,
    /// Of a gauge.
    #[prost(sint64, optional, tag = "5")]
    pub level: Option<i64>,
    /// Of a histogram.
    #[prost(message, optional, tag = "6")]
    pub times: Option<HistogramState>,
}

/// An attribute of a series. It has one of the values.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeState {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Text.
    #[prost(string, optional, tag = "2")]
    pub text: Option<String>,
    /// Number.
    #[prost(sint64, optional, tag = "3")]
    pub number: Option<i64>,
    /// Yes or no.
    #[prost(bool, optional, tag = "4")]
    pub yes: Option<bool>,
}

/// A histogram.
#[derive(Clone, PartialEq, Message)]
pub struct HistogramState {
    /// Index of the first bucket.
    #[prost(uint32, tag = "1")]
    pub first: u32,
    /// Counts of the buckets.
    #[prost(uint64, repeated, tag = "2")]
    pub counts: Vec<u64>,
    /// Nanoseconds of all values: the lower and the upper half.
    #[prost(uint64, tag = "3")]
    pub sum_low: u64,
    /// The upper half.
    #[prost(uint64, tag = "4")]
    pub sum_high: u64,
    /// Nanoseconds: the longest value that came as such.
    #[prost(uint64, optional, tag = "5")]
    pub max_ns: Option<u64>,
}

impl Handover {
    /// As octets.
    ///
    /// # Errors
    ///
    /// zstd's.
    pub fn pack(&self) -> std::io::Result<Vec<u8>> {
        zstd::bulk::compress(&self.encode_to_vec(), LEVEL)
    }

    /// Out of octets. `None`: they are none.
    #[must_use]
    pub fn unpack(octets: &[u8]) -> Option<Self> {
        use std::io::Read as _;
        let mut message = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(octets).ok()?;
        decoder.take(MOST as u64).read_to_end(&mut message).ok()?;
        Self::read(&message)
    }

    /// Out of octets that are not compressed. `None`: they are none.
    #[must_use]
    pub fn read(message: &[u8]) -> Option<Self> {
        Self::decode(message).ok()
    }

    /// The state of a signal.
    #[must_use]
    pub fn signal(&self, name: &str) -> Option<&SignalState> {
        self.signals.iter().find(|state| state.name == name)
    }
}

/// What has to be the same for programs and maps to be taken over: lines of a word and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    /// Of objects with the sizes of their maps, and what their programs were told as they were loaded.
    #[must_use]
    pub fn new<'a>(
        objects: impl Iterator<Item = (&'static ObjectSpec, MapSizes<'a>)>,
        fields: &[u8],
        globals: &[u8],
    ) -> Self {
        let (mut names, mut programs, mut sizes) = (Vec::new(), Sha256::new(), Sha256::new());
        for (object, entries) in objects {
            names.push(object.name);
            programs.update(object.elf);
            for (map, entries) in entries {
                sizes.update(format!("{}/{map}={entries} ", object.name));
            }
        }
        let mut kernel = Sha256::new();
        kernel.update(fields);
        kernel.update(globals);
        Self(format!(
            "format {FORMAT}\nprograms {}\nsignals {}\nkernel {}\nsizes {}\n",
            short(programs),
            names.join(","),
            short(kernel),
            short(sizes)
        ))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Why what somebody of that identity has left cannot be taken over; `None`: it can.
    #[must_use]
    pub fn differs(&self, other: &str) -> Option<&'static str> {
        let (own, other): (Vec<&str>, Vec<&str>) = (self.0.lines().collect(), other.lines().collect());
        let first = own.iter().zip(other.iter().map(Some).chain(std::iter::repeat(None)));
        let differs = first.into_iter().find(|(own, other)| Some(*own) != *other)?;
        Some(match differs.0.split(' ').next() {
            Some("programs") => "it has the BPF programs of another version",
            Some("signals") => "other signals run, or names of peers were not wanted",
            Some("kernel") => {
                "its programs were loaded for other fields of the kernel (--btf), or with another -v"
            }
            Some("sizes") => {
                "its maps have other sizes (--ring-kib, --tcp-sockets and alike, or the number of CPUs)"
            }
            Some(_) | None => "another version of probe made it",
        })
    }
}

fn short(hash: Sha256) -> String {
    let mut text = String::new();
    for octet in hash.finalize().iter().take(12) {
        // Into a string nothing fails.
        let _written = write!(text, "{octet:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signals;

    fn identity(fields: &[u8], globals: &[u8], sizes: MapSizes<'_>, objects: usize) -> Identity {
        let specs = signals::every().map(|kind| (kind.object(), sizes)).take(objects);
        Identity::new(specs, fields, globals)
    }

    #[test]
    fn what_differs_is_named() {
        let own = identity(b"f", b"g", &[("RING", 1)], 5);
        assert_eq!(own.differs(own.as_str()), None);
        for (other, words) in [
            (identity(b"x", b"g", &[("RING", 1)], 5), "fields of the kernel"),
            (identity(b"f", b"x", &[("RING", 1)], 5), "-v"),
            (identity(b"f", b"g", &[("RING", 2)], 5), "other sizes"),
        ] {
            assert!(own.differs(other.as_str()).is_some_and(|said| said.contains(words)), "{words}");
        }
        // One object less has other programs altogether.
        let fewer = identity(b"f", b"g", &[("RING", 1)], 4);
        assert!(own.differs(fewer.as_str()).is_some_and(|said| said.contains("BPF programs")));
        for (other, words) in
            [("", "another version"), ("format 0\n", "another version"), ("format 1\n", "BPF programs")]
        {
            assert!(own.differs(other).is_some_and(|said| said.contains(words)), "{other:?}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let entry = EntryState { further: vec![3, 4], ..EntryState::new(1, &7u64, &[9u32, 10]) };
        assert_eq!(entry.read(), Some((7u64, [9u32, 10])));
        assert_eq!(entry.read::<u64, u64>().map(|(key, _)| key), Some(7), "the same size");
        assert_eq!(entry.read::<u32, u64>(), None, "another size");
        let signal = SignalState {
            name: "tcp".into(),
            counters: vec![1, 0, 2],
            entries: vec![entry],
            ..SignalState::default()
        };
        let left = Handover { instance: "me".into(), signals: vec![signal], ..Handover::default() };
        let packed = left.pack().unwrap();
        assert_eq!(Handover::unpack(&packed), Some(left));
        for cut in 0..packed.len() {
            assert_eq!(Handover::unpack(&packed[..cut]), None, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn strangers_octets_do_no_harm(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _unpacked = Handover::unpack(&octets);
            let _unpacked = Handover::unpack(&zstd::bulk::compress(&octets, 1).unwrap());
        }
    }
}
