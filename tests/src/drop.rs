//! Loss on demand: a cgroup of the test's own, and the program `testdrop` on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};
use aya::{Ebpf, EbpfLoader};
use probe_common::testdrop::{ALWAYS, Counts, ENDLESS, INGRESS, RULE_COUNT, Rule};
use probe_user::kernel::cgroup::CgroupRoot;
use probe_user::load::Plain;

use crate::probe::{DEADLINE, poll};

static ELF: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../probe-ebpf/prebuilt/testdrop.bpf.o"
));

/// A cgroup (v2) of the test's own. It is removed when dropped: end its processes first.
#[derive(Debug)]
pub struct Cgroup {
    /// Keeps a private mount alive.
    _root: CgroupRoot,
    directory: PathBuf,
    path: String,
}

impl Cgroup {
    /// Makes one below the root.
    ///
    /// # Errors
    ///
    /// No hierarchy, or no right to write to it.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::at(format!("/probe-test-{}-{number}", std::process::id()))
    }

    /// Makes one below the root that looks like a slice of systemd's.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn slice() -> Result<Self> {
        Self::at(format!("/probetest{}.slice", std::process::id()))
    }

    /// Makes one below this.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn below(&self, name: &str) -> Result<Self> {
        Self::at(format!("{}/{name}", self.path))
    }

    fn at(path: String) -> Result<Self> {
        let root = CgroupRoot::find()?;
        let directory = root.path.join(path.trim_start_matches('/'));
        std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { _root: root, directory, path })
    }

    /// Path below the root: attribute `linux.cgroup.path`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves a process in: sockets that it makes from now on belong to the cgroup.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        std::fs::write(self.directory.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move process {pid} to {}", self.path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed take a moment to leave; a failed test may leave some behind, and the directory
        // with them.
        let _left = poll("an empty cgroup", Duration::from_secs(2), || {
            Ok(std::fs::remove_dir(&self.directory).is_ok().then_some(()))
        });
    }
}

/// A rule that drops every packet of the kinds `what` where it is received; the methods of [`RuleExt`] narrow it.
#[must_use]
pub const fn lose(what: u16) -> Rule {
    Rule {
        what: what | INGRESS,
        from_port: [0; 2],
        to_port: [0; 2],
        _pad: 0,
        skip: 0,
        drop: ENDLESS,
        per_million: ALWAYS,
    }
}

/// Narrows a rule.
pub trait RuleExt {
    /// Packets from this port only.
    #[must_use]
    fn sent_from(self, port: u16) -> Self;
    /// Packets to this port only.
    #[must_use]
    fn sent_to(self, port: u16) -> Self;
    /// Lets so many pass and then drops so many.
    #[must_use]
    fn after(self, skip: u32, drop: u32) -> Self;
    /// Drops each with this chance.
    #[must_use]
    fn percent(self, percent: u32) -> Self;
}

impl RuleExt for Rule {
    fn sent_from(self, port: u16) -> Self {
        Self { from_port: [port, u16::MAX], ..self }
    }
    fn sent_to(self, port: u16) -> Self {
        Self { to_port: [port, u16::MAX], ..self }
    }
    fn after(self, skip: u32, drop: u32) -> Self {
        Self { skip, drop, ..self }
    }
    fn percent(self, percent: u32) -> Self {
        Self { per_million: percent * (ALWAYS / 100), ..self }
    }
}

/// The program on a cgroup; it goes when this is dropped.
pub struct Loss {
    rules: Array<MapData, Plain<Rule>>,
    seen: Array<MapData, u64>,
    counts: PerCpuArray<MapData, Plain<Counts>>,
    /// Links live as long as this.
    _ebpf: Ebpf,
}

impl std::fmt::Debug for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loss").finish_non_exhaustive()
    }
}

impl Loss {
    /// Attaches it. It drops nothing yet.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn attach(cgroup: &Cgroup) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(ELF).context("cannot load testdrop")?;
        let directory = File::open(cgroup.directory())?;
        let hooks =
            [("drop_ingress", CgroupSkbAttachType::Ingress), ("drop_egress", CgroupSkbAttachType::Egress)];
        for (name, hook) in hooks {
            let program: &mut CgroupSkb = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("cannot load {name}"))?;
            program
                .attach(&directory, hook, CgroupAttachMode::Single)
                .with_context(|| format!("cannot attach {name}"))?;
        }
        Ok(Self {
            rules: ebpf.take_map("RULES").context("RULES")?.try_into()?,
            seen: ebpf.take_map("SEEN").context("SEEN")?.try_into()?,
            counts: ebpf.take_map("COUNTS").context("COUNTS")?.try_into()?,
            _ebpf: ebpf,
        })
    }

    /// Sets the rules, in place of all before. What they count goes on.
    ///
    /// # Errors
    ///
    /// More than there is room for.
    pub fn set(&mut self, rules: &[Rule]) -> Result<()> {
        if rules.len() > RULE_COUNT as usize {
            bail!("there is room for {RULE_COUNT} rules");
        }
        for (index, rule) in
            (0..RULE_COUNT).zip(rules.iter().copied().chain(std::iter::repeat(Rule::default())))
        {
            // Off while its counter goes back.
            self.rules.set(index, Plain(Rule::default()), 0)?;
            self.seen.set(index, 0, 0)?;
            self.rules.set(index, Plain(rule), 0)?;
        }
        Ok(())
    }

    /// Drops nothing any more.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn heal(&mut self) -> Result<()> {
        self.set(&[])
    }

    /// What the rules at this index have done so far.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn counts(&self, index: u32) -> Result<Counts> {
        let mut sum = Counts::default();
        for Plain(counts) in self.counts.get(&index, 0)?.iter() {
            sum.matched += counts.matched;
            sum.dropped += counts.dropped;
            sum.dropped_segments += counts.dropped_segments;
        }
        Ok(sum)
    }

    /// Waits until the rules at this index have dropped so many packets in all.
    ///
    /// # Errors
    ///
    /// They did not in time.
    pub fn wait_for_drops(&self, index: u32, packets: u64) -> Result<()> {
        poll("dropped packets", DEADLINE, || Ok((self.counts(index)?.dropped >= packets).then_some(())))
    }
}
