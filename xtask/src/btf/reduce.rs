//! Which types and members of a kernel stay.
//!
//! Of a struct only the members on the way to a field of `probe_common::fields::FIELDS`, of what is pointed to
//! nothing (void stands for it), of what is only measured its size. Every struct that bears a wanted name stays,
//! with the member or without: that a kernel lacks a field must be seen in the fixture as in the whole file.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use probe_common::fields::{FIELDS, FieldKind};

use super::types::{Btf, Id, Type};

/// Enums that user space reads, or that say what the kernel's bpf(2) knows.
const ENUMS: &[&str] = &["bpf_func_id", "bpf_map_type", "sk_rst_reason", "tcp_ca_state"];
/// Members beside the table of fields: whether maps are charged to RLIMIT_MEMLOCK, whether RCU's readers are preempted.
const FURTHER: &[&str] = &["bpf_map.memory", "task_struct.rcu_read_lock_nesting"];
/// Functions that are there or not: what tracepoints are guarded by, and what stands for iterators.
const FUNCTIONS: &[&str] =
    &["bpf_iter_bpf_map_elem", "bpf_iter_task", "bpf_iter_task_file", "init_srcu_struct_fast"];
/// Raw tracepoints that programs are attached to. A test of probe-user misses those that are forgotten here.
const TRACEPOINTS: &[&str] = &[
    "cgroup_mkdir",
    "cgroup_rmdir",
    "inet_sock_set_state",
    "sched_process_exec",
    "sched_process_exit",
    "sched_switch",
    "sys_enter",
    "sys_exit",
    "tcp_cong_state_set",
    "tcp_destroy_sock",
    "tcp_receive_reset",
    "tcp_retransmit_skb",
    "tcp_retransmit_synack",
    "tcp_send_reset",
];
/// Functions with the parameters of a tracepoint, whose names the tracepoint's own type does not bear.
const NAMESAKES: &[&str] = &["__traceiter_", "__bpf_trace_", "__probestub_"];
/// Limit for chains of typedefs and for structs in structs.
const MAX_DEPTH: u32 = 32;

pub(super) fn reduce(btf: &Btf) -> Result<Btf> {
    let mut keep = Keep { btf, names: names(btf), types: BTreeMap::new() };
    let rows = FIELDS.iter().filter(|field| field.kind != FieldKind::TraceArg).map(|field| field.path);
    for path in rows.chain(FURTHER.iter().copied()) {
        keep.field(path)?;
    }
    for tracepoint in TRACEPOINTS {
        keep.tracepoint(tracepoint)?;
    }
    for name in FUNCTIONS {
        keep.function(name)?;
    }
    for name in ENUMS {
        for id in keep.named(name) {
            if matches!(btf.get(id), Some(Type::Enum { .. } | Type::Enum64 { .. })) {
                keep.types.entry(id).or_default().whole = true;
            }
        }
    }
    keep.build()
}

fn names(btf: &Btf) -> BTreeMap<&str, Vec<Id>> {
    let mut names: BTreeMap<&str, Vec<Id>> = BTreeMap::new();
    for (id, ty) in btf.iter().filter(|(_, ty)| !ty.name().is_empty()) {
        names.entry(ty.name()).or_default().push(id);
    }
    names
}

/// How much of a type stays.
#[derive(Default)]
struct Part {
    /// Of a struct or union: indices of members.
    members: BTreeSet<usize>,
    /// Of a pointer its target, of an enum its variants.
    whole: bool,
}

struct Keep<'a> {
    btf: &'a Btf,
    names: BTreeMap<&'a str, Vec<Id>>,
    types: BTreeMap<Id, Part>,
}

impl<'a> Keep<'a> {
    fn named(&self, name: &str) -> Vec<Id> {
        self.names.get(name).cloned().unwrap_or_default()
    }

    fn type_of(&self, id: Id) -> Result<&'a Type> {
        self.btf.get(id).with_context(|| format!("there is no type {id}"))
    }

    /// Every struct of the name, and of each the members on the path, as far as it has them.
    fn field(&mut self, path: &str) -> Result<()> {
        let (outer, rest) = path.split_once('.').with_context(|| format!("{path} is no path"))?;
        for id in self.named(outer) {
            if !matches!(self.type_of(id)?, Type::Record { .. }) {
                continue;
            }
            self.types.entry(id).or_default();
            let mut within = Some(id);
            for name in rest.split('.') {
                let Some(record) = within else { break };
                within = match self.member(record, name, MAX_DEPTH)? {
                    Some(ty) => self.record_behind(ty)?,
                    None => None,
                };
            }
        }
        Ok(())
    }

    /// Keeps a member, looking into anonymous ones, and returns its type.
    fn member(&mut self, record: Id, name: &str, depth: u32) -> Result<Option<Id>> {
        let Type::Record { members, .. } = self.type_of(record)? else { return Ok(None) };
        ensure!(depth > 0, "structs of type {record} are nested too deep");
        for (index, member) in members.iter().enumerate() {
            let found = if member.name.is_empty() {
                match self.record_behind(member.ty)? {
                    Some(anonymous) => self.member(anonymous, name, depth - 1)?,
                    None => None,
                }
            } else {
                (member.name == name).then_some(member.ty)
            };
            if found.is_some() {
                self.types.entry(record).or_default().members.insert(index);
                self.value(member.ty)?;
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The struct or union behind typedefs and qualifiers.
    fn record_behind(&self, id: Id) -> Result<Option<Id>> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            match self.btf.get(id) {
                Some(Type::Modifier { to, .. }) => id = *to,
                Some(Type::Record { .. }) => return Ok(Some(id)),
                _ => return Ok(None),
            }
        }
        anyhow::bail!("type {id} is in an endless chain of typedefs")
    }

    /// Keeps what is needed to know a type's size and kind.
    fn value(&mut self, id: Id) -> Result<()> {
        // Void, or kept with all that it needs.
        if id == 0 || self.types.contains_key(&id) {
            return Ok(());
        }
        self.types.entry(id).or_default();
        match self.type_of(id)? {
            Type::Modifier { to, .. } => self.value(*to),
            Type::Array { element, index, .. } => {
                self.value(*element)?;
                self.value(*index)
            }
            _ => Ok(()),
        }
    }

    fn tracepoint(&mut self, name: &str) -> Result<()> {
        for id in self.named(&format!("btf_trace_{name}")) {
            let Type::Modifier { to: pointer, .. } = self.type_of(id)? else { continue };
            let Type::Pointer { to: prototype } = self.type_of(*pointer)? else { continue };
            ensure!(self.type_of(id)?.is_typedef(), "btf_trace_{name} is no typedef");
            self.types.entry(id).or_default();
            self.types.entry(*pointer).or_default().whole = true;
            self.prototype(*prototype)?;
        }
        NAMESAKES.iter().try_for_each(|namesake| self.function(&format!("{namesake}{name}")))
    }

    fn function(&mut self, name: &str) -> Result<()> {
        for id in self.named(name) {
            let Type::Function { prototype, .. } = self.type_of(id)? else { continue };
            self.types.entry(id).or_default();
            self.prototype(*prototype)?;
        }
        Ok(())
    }

    fn prototype(&mut self, id: Id) -> Result<()> {
        let Type::Prototype { result, parameters } = self.type_of(id)? else { return Ok(()) };
        self.types.entry(id).or_default();
        self.value(*result)?;
        parameters.iter().try_for_each(|(_, ty)| self.value(*ty))
    }

    /// The types that stay, in their order, with new ids.
    fn build(&self) -> Result<Btf> {
        let ids: BTreeMap<Id, Id> = self.types.keys().copied().zip(1..).chain([(0, 0)]).collect();
        let new = |id: &Id| ids.get(id).copied().with_context(|| format!("type {id} was left behind"));
        let mut reduced = Btf::default();
        for (id, part) in &self.types {
            let mut ty = self.type_of(*id)?.clone();
            match &mut ty {
                Type::Pointer { to } => *to = if part.whole { new(to)? } else { 0 },
                Type::Array { element, index, .. } => (*element, *index) = (new(element)?, new(index)?),
                Type::Record { members, .. } => {
                    let kept = std::mem::take(members).into_iter().enumerate();
                    *members = kept
                        .filter(|(index, _)| part.members.contains(index))
                        .map(|(_, member)| Ok(super::types::Member { ty: new(&member.ty)?, ..member }))
                        .collect::<Result<_>>()?;
                }
                Type::Enum { variants, .. } if !part.whole => variants.clear(),
                Type::Enum64 { variants, .. } if !part.whole => variants.clear(),
                Type::Modifier { to, .. } => *to = new(to)?,
                Type::Function { prototype, .. } => *prototype = new(prototype)?,
                Type::Prototype { result, parameters } => {
                    *result = new(result)?;
                    for (_, ty) in parameters {
                        *ty = new(ty)?;
                    }
                }
                Type::Int { .. }
                | Type::Enum { .. }
                | Type::Enum64 { .. }
                | Type::Forward { .. }
                | Type::Float { .. }
                | Type::Other => {}
            }
            reduced.push(ty);
        }
        Ok(reduced)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::types::Member;
    use super::*;

    /// There is nothing left to cut from a fixture. One that was made before a row was added or taken away is not
    /// found here but by the tests of probe-user, which miss the field.
    #[test]
    fn a_fixture_stays_as_it_is() {
        let dir = crate::process::repo_root().unwrap().join("tests/fixtures/btf");
        let mut fixtures = 0;
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "btf") {
                let bytes = fs::read(&path).unwrap();
                let again = reduce(&Btf::parse(&bytes).unwrap()).unwrap().to_bytes().unwrap();
                assert!(again == bytes, "{} would be written otherwise", path.display());
                fixtures += 1;
            }
        }
        assert!(fixtures >= 5, "{fixtures} fixtures");
    }

    fn record(name: &str, members: &[(&str, Id)]) -> Type {
        let members = members.iter().map(|(name, ty)| Member { name: (*name).into(), ty: *ty, place: 0 });
        Type::Record { union: false, name: name.into(), size: 8, widths: false, members: members.collect() }
    }

    #[test]
    fn what_is_not_asked_for_goes() {
        let mut btf = Btf::default();
        for ty in [
            record("net", &[("count", 2)]),                                              // 1
            Type::Int { name: "int".into(), size: 4, encoding: 32 },                     // 2
            Type::Pointer { to: 1 },                                                     // 3
            record("", &[("skc_hash", 2)]),                                              // 4
            record("", &[("skc_daddr", 2), ("skc_cookie", 2)]),                          // 5
            record("", &[("net", 3), ("unrelated", 2)]),                                 // 6
            Type::Modifier { kind: 8, name: "possible_net_t".into(), to: 6 },            // 7
            record("sock_common", &[("", 4), ("", 5), ("skc_net", 7), ("skc_prot", 3)]), // 8
            record("sock_common", &[("namesake", 2)]),                                   // 9
            record("unrelated", &[("skc_daddr", 2)]),                                    // 10
        ] {
            btf.push(ty);
        }
        let reduced = reduce(&btf).unwrap();
        let types: Vec<&Type> = reduced.iter().map(|(_, ty)| ty).collect();
        assert_eq!(
            types,
            [
                &record("net", &[]), // asked for by name: its own field is absent
                &Type::Int { name: "int".into(), size: 4, encoding: 32 },
                &Type::Pointer { to: 0 },
                &record("", &[("skc_daddr", 2), ("skc_cookie", 2)]),
                &record("", &[("net", 3)]),
                &Type::Modifier { kind: 8, name: "possible_net_t".into(), to: 5 },
                &record("sock_common", &[("", 4), ("skc_net", 6)]),
                &record("sock_common", &[]),
            ]
        );
    }
}
