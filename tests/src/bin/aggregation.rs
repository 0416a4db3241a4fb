//! For benches: what one collection costs at so many series, and how many records one core takes in. Prints one line of figures.
//!
//! `aggregation series COUNT`: milliseconds of a collection with its encoding, MiB before, MiB added meanwhile, requests, MiB encoded.
//! `aggregation records dns|tcp`: records a second, decoded, attributed and added to their series.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytemuck::Zeroable as _;
use probe_common::dns::{KIND_ANSWERED, LookupRecord};
use probe_common::tcp::{KIND_RETRANSMIT, RetransmitRecord};
use probe_common::wire::{FAMILY_IPV4, RecordHeader};
use probe_user::config::DnsOptions;
use probe_user::entity::{Entities, Entity, ProcessLimits, Processes, container_of};
use probe_user::event::key;
use probe_user::kernel::cgroup::TreeLimits;
use probe_user::kernel::clock::Clock;
use probe_user::series::{Limits, Store, attr, metrics};
use probe_user::signals::{Context, Owners, dns, tcp};
use probe_user::sink::otlp::{Preferences, RequestLimits, Resources, encode_metrics};

/// Containers that have them.
const CONTAINERS: usize = 100;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["series", count] => series(count.parse().context("a number of series")?),
        ["records", "dns"] => records(true),
        ["records", "tcp"] => records(false),
        _ => bail!("aggregation series COUNT, or aggregation records dns|tcp"),
    }
}

fn path(number: usize) -> String {
    format!("/docker/{number:064x}")
}

fn entity(number: usize) -> Result<Entity> {
    let container = container_of(path(number).as_bytes()).context("a container's path")?;
    Ok(Entity::Container(Arc::new(container)))
}

/// As a node has them: half of them histograms of some dozen buckets, the rest counters.
fn series(count: usize) -> Result<()> {
    const ROUNDS: usize = 11;
    let limits =
        Limits { per_metric: count, per_entity: count, entities: CONTAINERS * 2, idle: u32::MAX / 2 };
    let mut store = Store::new(limits, 1);
    for number in 0..count {
        let entity = entity(number % CONTAINERS)?;
        let of_container = number / CONTAINERS;
        let name = attr(key::SYSCALL_NAME, of_container as i64);
        if of_container.is_multiple_of(2) {
            for power in 0..12 {
                let duration = Duration::from_nanos(700 << power);
                store.record(&entity, metrics::SYSCALL_DURATION, std::slice::from_ref(&name), duration);
            }
        } else {
            let attrs = [attr(key::ERROR_TYPE, "ENOENT"), name];
            store.add(&entity, metrics::SYSCALL_ERRORS, &attrs, 7);
        }
    }
    ensure!(store.peek().len() == count, "{} series and not {count}", store.peek().len());
    let resources = Resources::resolve(&|_| None, "node", "1")?;
    let before = memory("VmRSS")?;
    // The highest from now on.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (mut times, mut requests, mut bytes) = (Vec::new(), 0, 0);
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let snapshot = store.snapshot(round as u64 + 2);
        let encoded = encode_metrics(&snapshot, &resources, Preferences::default(), RequestLimits::default());
        times.push(begun.elapsed());
        requests = encoded.len();
        let points: u64 = encoded.iter().map(|request| request.items).sum();
        ensure!(points == count as u64, "{points} points of {count} series");
        bytes = encoded.iter().map(|request| request.body.len()).sum();
    }
    times.sort_unstable();
    let middle = times.get(ROUNDS / 2).context("rounds")?.as_secs_f64() * 1e3;
    let added = memory("VmHWM")? - before;
    println!("{middle:.1} {before:.1} {added:.1} {requests} {:.1}", bytes as f64 / f64::from(1 << 20));
    Ok(())
}

/// A line of /proc/self/status, MiB.
fn memory(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: f64 = line.with_context(|| format!("no {name}"))?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// On the way that they take behind the ring, in the agent that exports metrics.
fn records(of_dns: bool) -> Result<()> {
    const COUNT: u32 = 3_000_000;
    let nowhere = Path::new("/dev/null/nowhere");
    let mut entities = Entities::at(None, Some(nowhere), TreeLimits::default());
    for number in 0..CONTAINERS {
        entities.cgroup_made(number as u64 + 2, &path(number), Instant::now());
    }
    let mut owners = Owners::new(entities, Processes::at(nowhere, ProcessLimits::default()));
    let (clock, mut store) = (Clock::new(), Store::new(Limits::default(), 1));
    let tcp = tcp::Records::new([(1, "no_socket".into())].into());
    let mut lookups = dns::Lookups::new(DnsOptions::default());
    let prepared: Vec<Vec<u8>> =
        (0..CONTAINERS).map(|number| if of_dns { lookup(number) } else { retransmit(number) }).collect();
    let begun = Instant::now();
    for bytes in prepared.iter().cycle().take(COUNT as usize) {
        let context = &mut Context { clock: &clock, owners: &mut owners, store: &mut store, events: None };
        if of_dns { lookups.record(bytes, context) } else { tcp.record(bytes, context) }?;
    }
    println!("{:.0}", f64::from(COUNT) / begun.elapsed().as_secs_f64());
    Ok(())
}

fn lookup(number: usize) -> Vec<u8> {
    const NAME: &[u8] = b"\x03www\x07example\x03org\0";
    // An answer (RFC 1035, 4.1.1): recursion desired and available, one question, which is repeated.
    let message = [&[0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0][..], NAME, &[0, 1, 0, 1][..]].concat();
    let mut record = LookupRecord::zeroed();
    record.lookup.header = RecordHeader::of::<LookupRecord>(KIND_ANSWERED, 2_000_000);
    record.lookup.asked.cgroup_id = number as u64 + 2;
    record.lookup.asked.qtype = 1;
    record.lookup.asked.attempt = 1;
    record.lookup.asked.family = FAMILY_IPV4;
    record.lookup.asked.sent_ns = 1_000_000;
    record.lookup.asked.name_len = NAME.len() as u8;
    record.lookup.key.port = 53;
    record.lookup.message_len = message.len() as u32;
    record.lookup.len = message.len() as u16;
    for (place, octet) in record.octets.iter_mut().zip(&message) {
        *place = *octet;
    }
    bytemuck::bytes_of(&record).to_vec()
}

fn retransmit(number: usize) -> Vec<u8> {
    let mut record = RetransmitRecord::zeroed();
    record.header = RecordHeader::of::<RetransmitRecord>(KIND_RETRANSMIT, 2_000_000);
    record.socket.family = FAMILY_IPV4;
    record.socket.cgroup_id = number as u64 + 2;
    record.segments = 1;
    bytemuck::bytes_of(&record).to_vec()
}
