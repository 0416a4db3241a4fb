//! What `probe run` is told, layer by layer: flag, environment variable, file, default. There is one list of keys, clap's: what a file or
//! a variable says becomes arguments, which clap reads as it does what was typed.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _};

use super::{Cli, Failure};
use crate::config::file::{self, Contents, Fault, Place, Value};

/// Flags that say what is to be done with the configuration, and are no part of it.
const NO_KEYS: [&str; 5] = ["config", "check-config", "print-config", "help", "version"];
/// Keys whose values nobody should read in a log.
const SECRETS: [&str; 1] = ["otlp-headers"];
/// Characters of a value that a message repeats.
const SHOWN: usize = 100;
/// What stands in a secret's place.
pub(super) const HIDDEN: &str = "(hidden)";

/// Where a value comes from; the first beats those after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The command line.
    Flag,
    /// An environment variable of this name.
    Variable(String),
    /// `FILE:LINE:COLUMN`.
    File(String),
    /// Nobody has said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File(place) => f.write_str(place),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What a key is set to, as text, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// `None`: not at all.
    pub(super) text: Option<String>,
    pub(super) origin: Origin,
}

/// All layers, one upon the other.
#[derive(Debug)]
pub(super) struct Layers {
    /// As if all had been typed.
    pub(super) matches: ArgMatches,
    /// By key.
    pub(super) settings: BTreeMap<String, Setting>,
    /// The file, if there is one.
    pub(super) file: Option<PathBuf>,
}

/// `probe run` as clap knows it.
pub(super) fn run_command() -> Command {
    let cli = Cli::command();
    let run = cli.find_subcommand("run").cloned().unwrap_or_else(|| Command::new("run"));
    // It is not for reading help.
    run.no_binary_name(true).disable_help_flag(true).disable_version_flag(true)
}

/// The arguments that are keys, each with its key.
pub(super) fn keys(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let named = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    named.filter(|(key, _)| !NO_KEYS.contains(key))
}

/// Whether a key's value must not be shown, or not this one: URLs may carry a password.
pub(super) fn is_secret(key: &str, text: &str) -> bool {
    SECRETS.contains(&key) || key == "otlp-endpoint" && text.contains('@')
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("PROBE_{}", key.to_ascii_uppercase().replace('-', "_"))
}

/// Says what is wrong with something that stands alone; the text begins with the key or does not.
pub(super) type Check<'a> = &'a dyn Fn(&ArgMatches) -> Vec<String>;

/// What a variable or a file says.
struct Given {
    key: String,
    value: Value,
    /// In the file.
    place: Option<Place>,
    origin: Origin,
}

/// Reads all layers. `arguments` are those behind `run`.
///
/// # Errors
///
/// Everything that is wrong, a line each.
pub(super) fn read(
    arguments: &[OsString],
    lookup: &dyn Fn(&str) -> Option<String>,
    check: Check<'_>,
) -> Result<Layers, Failure> {
    let mut command = run_command();
    let parse = |command: &mut Command, arguments: &[OsString]| {
        let matches = command.try_get_matches_from_mut(arguments);
        matches.map_err(|error| Failure::usage(reason(&error)))
    };
    let flags = parse(&mut command, arguments)?;
    // As the OpenTelemetry specification has it: an empty variable is an unset one.
    let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
    let file = flags.get_one::<PathBuf>("config").cloned();
    let file = file.or_else(|| lookup(&variable("config")).map(PathBuf::from));
    let Contents { entries, faults } = file.as_deref().map(file::read_file).unwrap_or_default();
    let name = file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut wrong: Vec<(Option<Place>, String)> = faults
        .into_iter()
        .map(|Fault { place, message }| {
            let at = place.map_or_else(|| name.clone(), |place| format!("{name}:{place}"));
            (place, format!("{at}: {}", printable(&message)))
        })
        .collect();

    let mut given: Vec<Given> = Vec::new();
    for (key, _) in keys(&command) {
        let name = variable(key);
        if let Some(text) = lookup(&name) {
            let (key, value) = (key.to_owned(), Value::One(text.trim().to_owned()));
            given.push(Given { key, value, place: None, origin: Origin::Variable(name) });
        }
    }
    given.extend(entries.into_iter().map(|entry| Given {
        key: entry.key,
        value: entry.value,
        place: Some(entry.place),
        origin: Origin::File(format!("{name}:{}", entry.place)),
    }));

    // Each by itself: so that all are told, and each where it stands.
    let mut layered: BTreeMap<String, (Origin, Vec<OsString>)> = BTreeMap::new();
    for Given { key, value, place, origin } in given {
        let arguments = match understand(&mut command, &key, &value, check) {
            Ok(arguments) => arguments,
            Err(faults) => {
                wrong.extend(faults.into_iter().map(|fault| (place, format!("{origin}: {fault}"))));
                Vec::new()
            }
        };
        // Variables came first.
        layered.entry(key).or_insert((origin, arguments));
    }
    for (key, arg) in keys(&command) {
        if flags.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            layered.insert(key.to_owned(), (Origin::Flag, vec![OsString::new()]));
        }
    }
    wrong.sort_by_key(|(place, _)| *place);
    let mut wrong: Vec<String> = wrong.into_iter().map(|(_, fault)| fault).collect();
    wrong.extend(conflicts(&command, &layered));
    if !wrong.is_empty() {
        wrong.truncate(file::MOST_FAULTS);
        return Err(Failure::usage(wrong.join("\nerror: ")));
    }

    let below = layered.values().filter(|(origin, _)| *origin != Origin::Flag);
    let mut all: Vec<OsString> = below.flat_map(|(_, arguments)| arguments.clone()).collect();
    all.extend_from_slice(arguments);
    let matches = parse(&mut command, &all)?;
    let settings = keys(&command)
        .map(|(key, arg)| {
            let origin = layered.get(key).map_or(Origin::Default, |(origin, _)| origin.clone());
            (key.to_owned(), Setting { text: text(&matches, arg), origin })
        })
        .collect();
    Ok(Layers { matches, settings, file })
}

/// What a key and its value are as arguments, if clap and `check` have nothing against them.
fn understand(
    command: &mut Command,
    key: &str,
    value: &Value,
    check: Check<'_>,
) -> Result<Vec<OsString>, Vec<String>> {
    let Some(arg) = keys(command).find_map(|(known, arg)| (known == key).then(|| arg.clone())) else {
        return Err(vec![unknown(command, key)]);
    };
    let hides = match value {
        Value::One(text) => is_secret(key, text),
        Value::Many(texts) => texts.iter().any(|text| is_secret(key, text)),
    };
    let shown = || match value {
        Value::One(_) | Value::Many(_) if hides => HIDDEN.to_owned(),
        Value::One(text) => printable(&format!("{text:?}")),
        Value::Many(texts) => printable(&format!("{texts:?}")),
    };
    let arguments = arguments(key, &arg, value)
        .map_err(|allowed| vec![format!("{key}: {} cannot be used; allowed: {allowed}", shown())])?;
    match command.try_get_matches_from_mut(&arguments) {
        Ok(matches) => match check(&matches) {
            faults if faults.is_empty() => Ok(arguments),
            faults => Err(faults.into_iter().map(|fault| with_key(key, &fault)).collect()),
        },
        Err(error) => {
            let part = match error.get(ContextKind::InvalidValue) {
                Some(ContextValue::String(part)) if !hides => printable(&format!("{part:?}")),
                _ => shown(),
            };
            let reason = if hides { "it is no text".to_owned() } else { reason(&error) };
            Err(vec![format!("{key}: {part} cannot be used: {reason}")])
        }
    }
}

/// The arguments that say the same; else what would be allowed.
fn arguments(key: &str, arg: &Arg, value: &Value) -> Result<Vec<OsString>, &'static str> {
    let one = match value {
        Value::One(text) => Ok(text.as_str()),
        Value::Many(_) => Err("one value, and no list"),
    };
    let with = |text: &str| OsString::from(format!("--{key}={text}"));
    match arg.get_action() {
        ArgAction::SetTrue => match one {
            Ok("true") => Ok(vec![format!("--{key}").into()]),
            Ok("false") => Ok(Vec::new()),
            Ok(_) | Err(_) => Err("true, false"),
        },
        ArgAction::Count => match one.ok().and_then(|text| text.parse::<u8>().ok()) {
            Some(times @ 0..=2) => Ok(vec![format!("--{key}").into(); usize::from(times)]),
            Some(_) | None => Err("0, 1, 2"),
        },
        ArgAction::Append => match value {
            Value::One(text) => Ok(vec![with(text)]),
            Value::Many(texts) if texts.is_empty() => Err("a value or more"),
            Value::Many(texts) => Ok(texts.iter().map(|text| with(text)).collect()),
        },
        _ => Ok(vec![with(one?)]),
    }
}

/// A key that nobody knows, and the nearest that somebody does.
fn unknown(command: &mut Command, key: &str) -> String {
    let shown = printable(&format!("{key:?}"));
    match nearest(command, key) {
        Some(near) => format!("{shown} is no key; did you mean {near}?"),
        None => format!("{shown} is no key; keys are the long flags of `probe run --help`, without --"),
    }
}

/// What to say of variables that nobody reads, and that look like one that somebody does. Others are not ours: Kubernetes gives
/// PROBE_SERVICE_HOST to whoever runs beside a service of that name.
pub(super) fn misspelt(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut command = run_command();
    let known: Vec<String> = keys(&command).map(|(key, _)| variable(key)).collect();
    let strange = names.filter(|name| !known.contains(name));
    let said = strange.filter_map(|name| {
        let word = name.strip_prefix("PROBE_")?.to_ascii_lowercase();
        let near = variable(&nearest(&mut command, &word).filter(|_| word.len() > 4)?);
        // Two letters at most are others, or in another order: PROBE_PORT_9464_TCP is somebody else's.
        let same = |pair: &(u8, u8)| pair.0 == pair.1;
        let before = name.bytes().zip(near.bytes()).take_while(same).count();
        let behind = name.bytes().rev().zip(near.bytes().rev()).take_while(same).count();
        if before + behind + 2 < name.len().max(near.len()) {
            return None;
        }
        Some(format!("{} is no variable of probe's; did you mean {near}?", printable(&name)))
    });
    said.collect()
}

fn nearest(command: &mut Command, key: &str) -> Option<String> {
    let is_word =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let word = key.to_ascii_lowercase().replace('_', "-");
    let is_known = |word: &str| keys(command).any(|(known, _)| known == word);
    let near = if is_known(&word) {
        Some(word)
    } else if is_word {
        let error = command.try_get_matches_from_mut([format!("--{word}")]).err();
        error.and_then(|error| match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').to_owned()),
            _ => None,
        })
    } else {
        None
    };
    near.filter(|near| keys(command).any(|(known, _)| known == near))
}

/// Keys that are set and exclude each other, as flags do.
fn conflicts(command: &Command, layered: &BTreeMap<String, (Origin, Vec<OsString>)>) -> Vec<String> {
    let is_set = |key: &str| layered.get(key).filter(|(_, arguments)| !arguments.is_empty());
    let mut found = Vec::new();
    for (key, arg) in keys(command) {
        let Some((origin, _)) = is_set(key) else { continue };
        for other in command.get_arg_conflicts_with(arg) {
            let Some((of_other, other)) = other.get_long().and_then(|other| Some((&is_set(other)?.0, other)))
            else {
                continue;
            };
            // Among flags, clap has said so.
            if (origin, of_other) != (&Origin::Flag, &Origin::Flag) {
                found.push(format!(
                    "{key} ({origin}) and {other} ({of_other}) exclude each other; one of them is allowed"
                ));
            }
        }
    }
    found
}

/// Why clap refuses something, without its frame.
fn reason(error: &clap::Error) -> String {
    match error.kind() {
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => {
                format!("allowed: {}", values.join(", "))
            }
            _ => "a value is missing".to_owned(),
        },
        ErrorKind::ValueValidation if error.source().is_some() => {
            error.source().map(|source| printable(&source.to_string())).unwrap_or_default()
        }
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            printable(first.strip_prefix("error: ").unwrap_or(first))
        }
    }
}

/// A message that names its key once, as files do.
fn with_key(key: &str, message: &str) -> String {
    let message = message.trim_start_matches("--");
    if message.starts_with(key) { message.to_owned() } else { format!("{key}: {message}") }
}

/// Text that does no harm on a terminal, and does not fill it.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (n, character) in text.chars().enumerate() {
        if n == 4 * SHOWN {
            shown.push('…');
            break;
        }
        match character {
            // Debug's escapes, without those of what is harmless.
            '"' | '\'' | '\\' => shown.push(character),
            character => shown.extend(character.escape_debug()),
        }
    }
    shown
}

/// What a key has come to, as it would be typed.
fn text(matches: &ArgMatches, arg: &Arg) -> Option<String> {
    let id = arg.get_id().as_str();
    match arg.get_action() {
        ArgAction::SetTrue => Some(matches.get_flag(id).to_string()),
        ArgAction::Count => Some(matches.get_count(id).to_string()),
        _ => {
            let values: Vec<_> = matches.get_raw(id)?.map(|value| value.to_string_lossy()).collect();
            Some(values.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A file that goes when the test does.
    struct File(PathBuf);

    impl File {
        fn new(extension: &str, text: &str) -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("probe-layers-{}-{number}.{extension}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    fn layers(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Layers, Vec<String>> {
        let file = File::new("yaml", text);
        let mut arguments = vec![OsString::from("--config"), file.0.clone().into()];
        arguments.extend(flags.iter().map(OsString::from));
        let lookup = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        let name = format!("{}:", file.0.display());
        read(&arguments, &lookup, &crate::cli::run::check).map_err(|failure| {
            failure.message.split("\nerror: ").map(|line| line.replace(&name, "")).collect()
        })
    }

    #[test]
    fn variables_that_look_like_ours_are_told() {
        let names = ["PROBE_INTERVALL", "PROBE_INTERVAL", "PROBE_SERVICE_HOST", "PROBE_CONFIG", "INTERVALL"];
        let strange = ["PROBE_PORT", "PROBE_BIN", "PROBE_PORT_9464_TCP", "PROBE_NODE_IP", "PROBE_DNS_PROT"];
        let said = misspelt(names.iter().chain(&strange).map(ToString::to_string));
        let want = [("INTERVALL", "INTERVAL"), ("DNS_PROT", "DNS_PORT")];
        let want = want.map(|(name, near)| {
            format!("PROBE_{name} is no variable of probe's; did you mean PROBE_{near}?")
        });
        assert_eq!(said, want);
    }

    #[test]
    fn keys_are_flags() {
        let command = run_command();
        let keys: Vec<&str> = keys(&command).map(|(key, _)| key).collect();
        for key in
            ["interval", "prometheus-listen", "otlp-endpoint", "dns-names", "ring-kib", "verbose", "output"]
        {
            assert!(keys.contains(&key), "{key}");
        }
        assert!(NO_KEYS.iter().all(|key| !keys.contains(key)));
        assert!(SECRETS.iter().all(|key| keys.contains(key)));
    }

    #[test]
    fn flag_before_variable_before_file_before_default() {
        let file = "interval: 30s\nring-kib: 512\nnat: true\ndns-port: [53, 5353]\nverbose: 2\n";
        let env = [
            ("PROBE_INTERVAL", "20s"),
            ("PROBE_RING_KIB", " 1024 "),
            ("PROBE_NAT", "false"),
            ("PROBE_DNS_TIMEOUT", " "),
            ("PROBE_SERVICE_HOST", "10.0.0.1"),
        ];
        let layers = layers(file, &env, &["--interval", "10s"]).unwrap();
        for (key, text, origin) in [
            ("interval", Some("10s"), "flag"),
            ("ring-kib", Some("1024"), "PROBE_RING_KIB"),
            ("nat", Some("false"), "PROBE_NAT"),
            ("dns-port", Some("53,5353"), ":4:1"),
            ("verbose", Some("2"), ":5:1"),
            ("dns-timeout", Some("5s"), "default"),
            ("no-names", Some("false"), "default"),
            ("otlp-endpoint", None, "default"),
        ] {
            let setting = &layers.settings[key];
            assert_eq!(setting.text.as_deref(), text, "{key}");
            assert!(setting.origin.to_string().ends_with(origin), "{key}: {}", setting.origin);
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once_with_place_and_what_is_allowed() {
        let file = "interval: 10\ninterva1: 10s\nring-kib: 100\nring_kib: 256\nnat: yes\notlp-headers: s3cret\n\
                    dns-names: [off]\ndns-names-max: 0\noutput: xml\ndns-port: [1, 2, 3, 4, 5]\npid:\n\
                    syscall-slower-than: 100ms,fsnyc=1s\nverbose: 3\notlp-protocol: http\nhelp: true\n\
                    otlp-events: \"a\\e[31m\"\nzzz: 1\nprometheus-listen: \"9464\"\n";
        let env = [("PROBE_DNS_TIMEOUT", "5"), ("PROBE_CGROUP", "/x"), ("PROBE_CONTAINER", "abc")];
        let found = layers(file, &env, &[]).unwrap_err();
        let text = found.join("\n");
        for (place, words) in [
            ("1:1: interval: \"10\" cannot be used: ", "10s"),
            ("2:1: \"interva1\" is no key", "did you mean interval?"),
            ("3:1: ring-kib: \"100\" cannot be used: ", "a power of two from 4 to 65536"),
            ("4:1: \"ring_kib\" is no key", "did you mean ring-kib?"),
            ("5:1: nat: \"yes\" cannot be used", "allowed: true, false"),
            ("6:1: otlp-headers: \"(hidden)\" cannot be used", "key=value"),
            ("7:1: dns-names: [\"off\"] cannot be used", "one value"),
            ("8:1: dns-names-max: \"0\" cannot be used: ", "2500"),
            ("9:1: output: \"xml\" cannot be used: ", "allowed: table, json"),
            ("10:1: dns-port: 5 ports given", "at most 4"),
            ("11:1: pid: has no value", ""),
            ("12:1: syscall-slower-than: \"fsnyc=1s\" cannot be used: ", "no such system call"),
            ("13:1: verbose: \"3\" cannot be used", "0, 1, 2"),
            ("14:1: otlp-protocol: \"http\" cannot be used", "http/protobuf"),
            ("15:1: \"help\" is no key", ""),
            ("16:1: otlp-events: \"a\\u{1b}[31m\" cannot be used: ", "none, notable, all"),
            ("17:1: \"zzz\" is no key", "probe run --help"),
            ("18:1: prometheus-listen: \"9464\" cannot be used: ", "127.0.0.1:9464"),
            ("PROBE_DNS_TIMEOUT: dns-timeout: \"5\" cannot be used: ", "5m"),
            ("cgroup (PROBE_CGROUP) and container (PROBE_CONTAINER)", "one of them"),
        ] {
            let line = found.iter().find(|line| line.starts_with(place));
            assert!(line.is_some_and(|line| line.contains(words)), "{place}{words}: not in\n{text}");
        }
        assert_eq!(found.len(), 20, "{text}");
        assert!(!text.contains("s3cret") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn conflicts_are_those_of_flags() {
        for (file, env, flags, words) in [
            ("cgroup: /a\ncontainer: abc\n", &[][..], &[][..], "cgroup (1:1) and container (2:1)"),
            ("cgroup: /a\n", &[], &["--container", "abc"], "cgroup (1:1) and container (flag)"),
            (
                "syscall-no-latency: true\n",
                &[("PROBE_SYSCALL_LATENCY_SAMPLE", "16")],
                &[],
                "syscall-latency-sample (PROBE_SYSCALL_LATENCY_SAMPLE) and syscall-no-latency (1:1)",
            ),
        ] {
            let found = layers(file, env, flags).unwrap_err();
            assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        }
        layers("syscall-no-latency: false\nsyscall-latency-sample: 16\n", &[], &[]).unwrap();
    }

    #[test]
    fn what_is_overridden_has_to_be_right_too() {
        let found = layers("interval: soon\n", &[], &["--interval", "10s"]).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with("1:1: interval: \"soon\""), "{found:?}");
    }

    #[test]
    fn a_file_can_be_named_by_the_environment() {
        let file = File::new("toml", "interval = '7s'\ndns-port = [5353]\n");
        let path = file.0.display().to_string();
        let lookup = |key: &str| (key == "PROBE_CONFIG").then(|| path.clone());
        let layers = read(&[], &lookup, &crate::cli::run::check).unwrap();
        assert_eq!(layers.file.as_ref(), Some(&file.0));
        assert_eq!(layers.settings["interval"].text.as_deref(), Some("7s"));
        assert_eq!(layers.settings["dns-port"].text.as_deref(), Some("5353"));
        let arguments = ["--config", "/nonexistent/probe.yaml"].map(OsString::from);
        let failure = read(&arguments, &lookup, &crate::cli::run::check).unwrap_err();
        assert!(failure.message.starts_with("/nonexistent/probe.yaml: cannot be read: "), "{failure:?}");
        assert_eq!(failure.code, 2);
    }

    /// Keys of the example file, with whether they are marked as taking effect on SIGHUP, and the file with one line in force.
    fn examples() -> Vec<(String, bool, String)> {
        let text = include_str!("../../../deploy/config/probe.yaml");
        let lines: Vec<&str> = text.lines().collect();
        let is_key =
            |line: &str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(char::is_alphabetic));
        let keys = (0..lines.len()).filter(|at| is_key(lines[*at]));
        keys.map(|at| {
            let key = lines[at][1..].split(':').next().unwrap().to_owned();
            let mut changed = lines.clone();
            changed[at] = &lines[at][1..];
            (key, lines[at - 1].contains("(SIGHUP)"), changed.join("\n"))
        })
        .collect()
    }

    #[test]
    fn the_example_file_has_every_key_and_each_is_right() {
        let command = run_command();
        let mut want: Vec<&str> = keys(&command).map(|(key, _)| key).collect();
        want.sort_unstable();
        let examples = examples();
        let mut found: Vec<&str> = examples.iter().map(|(key, ..)| key.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, want);
        let untouched = layers(include_str!("../../../deploy/config/probe.yaml"), &[], &[]).unwrap();
        assert!(untouched.settings.values().all(|setting| setting.origin == Origin::Default));
        for (key, is_marked, text) in examples {
            // These have to be there.
            let there = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            let text = ["/etc/probe/kubelet-token", "/etc/kubernetes/pki/ca.crt"]
                .iter()
                .fold(text, |text, path| text.replace(path, there));
            let layers = layers(&text, &[], &[]).unwrap();
            assert!(matches!(layers.settings[&key].origin, Origin::File(_)), "{key}");
            // An example of the default would show nothing.
            assert_ne!(layers.settings[&key].text, untouched.settings[&key].text, "{key}");
            assert_eq!(is_marked, crate::cli::reload::AT_ONCE.contains(&key.as_str()), "{key}");
        }
    }

    #[test]
    fn the_example_of_the_readme_is_right() {
        let readme = include_str!("../../../README.md");
        let example = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let layers = layers(example, &[], &[]).unwrap();
        assert_eq!(layers.settings["interval"].text.as_deref(), Some("30s"));
        let section = readme.split("SIGHUP reads the file again.").nth(1).unwrap();
        let section = section.split("change while everything runs").next().unwrap();
        for key in crate::cli::reload::AT_ONCE {
            assert!(section.contains(&format!("`{key}`")) || key.starts_with("otlp-"), "{key}");
        }
    }
}
