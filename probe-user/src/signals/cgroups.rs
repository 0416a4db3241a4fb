//! Names of cgroups, learned as they are made: for owners that are gone before anybody looks. Runs beside every signal; no signal of
//! its own to anybody.

use probe_common::cgroups::{KIND_MADE, KIND_REMOVED, MadeRecord, PATH_ROOM, RemovedRecord};
use probe_common::fields;
use probe_common::settings::Settings;

use super::{Context, Signal, SignalKind};
use crate::collect::{self, DecodeError};
use crate::config::Config;
use crate::kernel::fields::Resolved;
use crate::load::{LoadError, Loaded, ObjectSpec, ProgramSpec};

/// What it is called where records and losses are told.
pub const NAME: &str = "cgroups";

/// The signal.
#[derive(Debug)]
pub struct Cgroups;

static OBJECT: ObjectSpec = ObjectSpec {
    name: NAME,
    bit: fields::CGROUPS,
    elf: aya::include_bytes_aligned!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../probe-ebpf/prebuilt/cgroups.bpf.o"
    )),
    programs: &[ProgramSpec::raw("cgroup_rmdir"), ProgramSpec::raw("cgroup_mkdir")],
    older: None,
    walk: None,
};

impl SignalKind for Cgroups {
    fn object(&self) -> &'static ObjectSpec {
        &OBJECT
    }

    fn about(&self) -> &'static str {
        "names of cgroups, as they are made"
    }

    fn sizes(&self, config: &Config) -> Vec<(&'static str, u32)> {
        vec![("RING", config.sizes.ring_bytes())]
    }

    fn settings(&self, _config: &Config, settings: &mut Settings) {
        // Whoever makes them.
        settings.filters = 0;
    }

    fn start(
        &self,
        _config: &Config,
        _kernel: &Resolved,
        _loaded: &mut Loaded,
    ) -> Result<Box<dyn Signal>, LoadError> {
        Ok(Box::new(Running))
    }
}

struct Running;

impl Signal for Running {
    fn record(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
        record(bytes, context)
    }
}

/// Takes a record in, as [`Signal::record`].
///
/// # Errors
///
/// When it is none of this signal's.
pub fn record(bytes: &[u8], context: &mut Context<'_>) -> Result<(), DecodeError> {
    match collect::header(bytes)?.kind {
        KIND_MADE => {
            let record: MadeRecord = collect::record(bytes)?;
            let path = record.path.get(..record.len as usize).ok_or(DecodeError::Value("length"))?;
            // One that may be cut is nobody's: a walk over the tree finds it.
            if path.first() == Some(&b'/') && path.len() < PATH_ROOM - 1 {
                context.owners.cgroup_made(record.id, &String::from_utf8_lossy(path));
            }
        }
        KIND_REMOVED => context.owners.cgroup_removed(collect::record::<RemovedRecord>(bytes)?.id),
        kind => return Err(DecodeError::Kind(kind)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytemuck::Zeroable as _;
    use probe_common::wire::RecordHeader;

    use super::*;
    use crate::entity::{Entities, ProcessLimits, Processes};
    use crate::kernel::cgroup::TreeLimits;
    use crate::kernel::clock::Clock;
    use crate::series::{Limits, Store};
    use crate::signals::Owners;

    fn made(id: u64, path: &str, len: u32) -> Vec<u8> {
        let mut record = MadeRecord::zeroed();
        record.header = RecordHeader::of::<MadeRecord>(KIND_MADE, 1);
        (record.id, record.len) = (id, len);
        record.path[..path.len()].copy_from_slice(path.as_bytes());
        bytemuck::bytes_of(&record).to_vec()
    }

    #[test]
    fn owners_have_the_paths_that_the_kernel_told() {
        let id = "3f37e9702f3961bba773444f8be29ad8c0ffee00c0ffee00c0ffee00c0ffee00";
        let docker = format!("/docker/{id}");
        let longest = format!("{docker}/{}", "x".repeat(PATH_ROOM - 3 - docker.len()));
        let cut = format!("{longest}x");
        let cases = [
            ("a container's", made(1 << 40, &docker, docker.len() as u32), Ok(()), Some(docker.as_str())),
            ("the longest", made(1 << 40, &longest, longest.len() as u32), Ok(()), Some(longest.as_str())),
            ("one that may be cut", made(1 << 40, &cut, cut.len() as u32), Ok(()), None),
            ("none", made(1 << 40, "", 0), Ok(()), None),
            ("no path", made(1 << 40, "docker", 6), Ok(()), None),
            ("longer than it is", made(1 << 40, "/a", 1_025), Err(DecodeError::Value("length")), None),
            ("half of one", made(1 << 40, "/a", 2)[..500].to_vec(), Err(DecodeError::Length(500)), None),
        ];
        for (what, bytes, result, path) in cases {
            let nowhere = Path::new("/dev/null/nowhere");
            let entities = Entities::at(None, Some(nowhere), TreeLimits::default());
            let mut owners = Owners::new(entities, Processes::at(nowhere, ProcessLimits::default()));
            let (clock, mut store) = (Clock::new(), Store::new(Limits::default(), 1));
            let context =
                &mut Context { clock: &clock, owners: &mut owners, store: &mut store, events: None };
            assert_eq!(record(&bytes, context), result, "{what}");
            let who = owners.who(&probe_common::wire::Owner::UNKNOWN, 1 << 40, 0);
            assert_eq!(who.cgroup.as_deref(), path, "{what}");
            assert_eq!(who.entity.container().is_some(), path.is_some(), "{what}");
        }
    }
}
