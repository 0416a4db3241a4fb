//! `cargo xtask btf`: cuts a kernel's BTF down to what probe asks of it, as a fixture for tests that run anywhere.
//!
//! The encoder is our own (`btf/types.rs`). The libraries read only (`btf`, `btfparse`, `btfdump`) or keep structs
//! without a public constructor (`aya-obj`); `btf-rs` is LGPL; `libbpf-sys` writes BTF, but brings a C library and
//! libelf into a build that otherwise needs no C at all. What is left to write is a few words for each kind of type.
//!
//! This crate must build when probe-user does not (it is what builds the objects that probe-user includes), so it does
//! not link probe-user's reader. That reader judges the result instead, in a process of its own: whatever probe-user
//! takes from the fixture must be, to the letter, what it takes from the whole file.

mod reduce;
mod types;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::process::{self, repo_root, say};

use self::types::Btf;

const MANIFEST: &str = "manifest.toml";
const HEADER: &str = "\
# Written by `cargo xtask btf`; not to be edited. `full` is the BTF of the whole kernel that a fixture was cut from.

";
/// Fixtures are in the repository for good.
const MAX_BYTES: usize = 20 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Raw BTF of a whole kernel, such as /sys/kernel/btf/vmlinux
    file: PathBuf,
    /// The kernel's release, for the manifest
    #[arg(long, value_name = "RELEASE")]
    kernel: String,
    /// Where to write the fixture; manifest.toml beside it gets an entry
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kernel: String,
    full_size: usize,
    full_sha256: String,
    size: usize,
    sha256: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { file, kernel, out } = args;
    let name = out.file_name().and_then(|name| name.to_str()).context("--out names no file")?;
    let whole = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let kept = reduce::reduce(&Btf::parse(&whole).with_context(|| format!("in {}", file.display()))?)?;
    let bytes = kept.to_bytes()?;
    ensure!(bytes.len() <= MAX_BYTES, "{} bytes are left, more than {MAX_BYTES}", bytes.len());
    fs::write(out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    if let Err(error) = same_facts(file, out) {
        // What does not stand for its kernel must not be committed by accident.
        fs::remove_file(out).with_context(|| format!("cannot remove {}", out.display()))?;
        return Err(error);
    }
    let entry = Entry {
        kernel: kernel.clone(),
        full_size: whole.len(),
        full_sha256: sha256(&whole),
        size: bytes.len(),
        sha256: sha256(&bytes),
    };
    add_to_manifest(&out.with_file_name(MANIFEST), name, entry)?;
    say(format_args!("{}: {} types, {} bytes of {}", out.display(), kept.len(), bytes.len(), whole.len()));
    Ok(())
}

/// Has probe-user say what it takes from both files.
fn same_facts(whole: &Path, reduced: &Path) -> Result<()> {
    let (of_whole, of_reduced) = (facts(whole)?, facts(reduced)?);
    ensure!(!of_whole.is_empty(), "probe-user takes nothing at all from {}", whole.display());
    if of_whole == of_reduced {
        return Ok(());
    }
    let differing = of_whole.lines().zip(of_reduced.lines()).find(|(whole, reduced)| whole != reduced);
    let (whole, reduced) = differing.unwrap_or(("one has more lines", "the other has fewer"));
    bail!("the reduced types do not say what the whole file says:\n  whole:   {whole}\n  reduced: {reduced}");
}

fn facts(btf: &Path) -> Result<String> {
    let btf = btf.canonicalize().with_context(|| format!("cannot find {}", btf.display()))?;
    process::output(
        process::cargo()
            .current_dir(repo_root()?)
            .args(["run", "--quiet", "--locked", "--package", "probe-user", "--example", "btf_facts", "--"])
            .arg(btf),
    )
}

fn add_to_manifest(path: &Path, name: &str, entry: Entry) -> Result<()> {
    let mut manifest: BTreeMap<String, Entry> = match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    manifest.insert(name.to_owned(), entry);
    let text = toml::to_string(&manifest).context("cannot write the manifest as TOML")?;
    fs::write(path, format!("{HEADER}{text}")).with_context(|| format!("cannot write {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
