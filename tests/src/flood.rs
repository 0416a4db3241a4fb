//! `testflood`: records made by the programs' own code and read by the agent's own reader, as fast as both go.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use aya::{Ebpf, EbpfLoader};
use probe_common::loss::Counter;
use probe_common::settings::Settings;
use probe_common::testflood::{BURST, FloodRecord, KIND_FLOOD};
use probe_user::collect::{Ring, header, record, woken};
use probe_user::load::Plain;

static ELF: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../probe-ebpf/prebuilt/testflood.bpf.o"
));
/// As in the agent's pipeline: records taken before anything else has its turn, and how often the ring is looked into
/// without a wake-up.
const BATCH: usize = 4096;
const DRAIN_PERIOD: Duration = Duration::from_millis(100);

/// What became of the records.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Records that the program tried to make: its own word.
    pub offered: u64,
    /// Records that the reader got, each whole and in order.
    pub delivered: u64,
    /// Records that went into the ring, and those that found no room: the counters' word.
    pub produced: u64,
    /// See above.
    pub lost: u64,
    /// How long it took to make them.
    pub took: Duration,
}

impl Outcome {
    /// Records a second that were offered, and delivered.
    #[must_use]
    pub fn rates(&self) -> (f64, f64) {
        let seconds = self.took.as_secs_f64();
        (self.offered as f64 / seconds, self.delivered as f64 / seconds)
    }
}

/// Makes records for a while, on all CPUs but one, and reads them on another thread.
///
/// # Errors
///
/// The kernel refuses something, or a record is torn, out of order, or there twice.
pub fn flood(ring_bytes: u32, duration: Duration) -> Result<Outcome> {
    let mut loader = EbpfLoader::new();
    loader.btf(None).map_max_entries("RING", ring_bytes);
    let mut ebpf = loader.load(ELF).context("cannot load testflood")?;
    let mut settings: Array<MapData, Plain<Settings>> =
        ebpf.take_map("SETTINGS").context("SETTINGS")?.try_into()?;
    settings.set(0, Plain(Settings { wake_bytes: ring_bytes / 4, ..Settings::DEFAULT }), 0)?;
    let counters: PerCpuArray<MapData, u64> = ebpf.take_map("COUNTERS").context("COUNTERS")?.try_into()?;
    let tried: PerCpuArray<MapData, u64> = ebpf.take_map("TRIED").context("TRIED")?.try_into()?;
    let ring = RingBuf::try_from(ebpf.take_map("RING").context("RING")?)?;
    let producers = std::thread::available_parallelism().map_or(1, NonZero::get).saturating_sub(1).max(1);
    let program = load(&mut ebpf)?;

    let made = AtomicBool::new(false);
    let (asked, took, delivered) = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| read(ring, producers, &made));
        let begun = Instant::now();
        let all: Vec<_> =
            (0..producers).map(|producer| scope.spawn(move || make(program, producer, duration))).collect();
        let asked: Result<u64> =
            all.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).sum();
        let took = begun.elapsed();
        made.store(true, Ordering::Release);
        Ok((asked?, took, reader.join().ok().context("the reader panicked")??))
    })?;
    let offered: u64 = tried.get(&0, 0)?.iter().sum();
    ensure!(offered == asked, "the program tried {offered} times instead of {asked}");
    let count = |counter: Counter| -> Result<u64> { Ok(counters.get(&(counter as u32), 0)?.iter().sum()) };
    Ok(Outcome {
        offered,
        delivered,
        produced: count(Counter::Produced)?,
        lost: count(Counter::RingFull)?,
        took,
    })
}

fn load(ebpf: &mut Ebpf) -> Result<&RawTracePoint> {
    let program: &mut RawTracePoint = ebpf.program_mut("flood").context("flood")?.try_into()?;
    program.load().context("cannot load flood")?;
    Ok(program)
}

fn make(program: &RawTracePoint, producer: usize, duration: Duration) -> Result<u64> {
    let end = Instant::now() + duration;
    let producer = u64::try_from(producer)?;
    let mut tried = 0;
    while Instant::now() < end {
        let mut options = RawTracePointRunOptions::new();
        for (slot, argument) in options.args.iter_mut().zip([BURST, producer, tried]) {
            *slot = argument;
        }
        program.test_run(options)?;
        tried += BURST;
    }
    Ok(tried)
}

/// Reads until all is made and the ring is empty.
fn read(ring: RingBuf<MapData>, producers: usize, made: &AtomicBool) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ring = Ring::new(ring);
        ring.listen()?;
        let mut next = vec![0; producers];
        let mut delivered = 0;
        let mut wrong = None;
        let mut drain = tokio::time::interval(DRAIN_PERIOD);
        loop {
            // Looked at before the ring: what is in it then is all there is.
            let last = made.load(Ordering::Acquire);
            let taken = ring.drain(BATCH, |bytes| {
                if let Err(error) = check(bytes, &mut next) {
                    wrong.get_or_insert(error);
                }
            });
            delivered += u64::try_from(taken)?;
            if taken == BATCH {
                continue;
            }
            if last {
                break;
            }
            let rings = [&ring];
            tokio::select! {
                ready = woken(&rings) => ready?,
                _ = drain.tick() => {}
            }
        }
        wrong.map_or(Ok(delivered), Err)
    })
}

/// Whether a record is whole and comes after those before it.
fn check(bytes: &[u8], next: &mut [u64]) -> Result<()> {
    let kind = header(bytes)?.kind;
    let FloodRecord { header: _, producer, number, echoes } = record(bytes)?;
    ensure!(kind == KIND_FLOOD && echoes.iter().all(|echo| *echo == number), "a torn record: {bytes:x?}");
    let next = next.get_mut(usize::try_from(producer)?).context("nobody's record")?;
    ensure!(number >= *next, "record {number} comes when {next} is due");
    *next = number + 1;
    Ok(())
}
