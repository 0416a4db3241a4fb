//! What `probe run` works by, as a file that `--config` takes.

use std::fmt::Write as _;

use super::layers::{HIDDEN, Layers, Origin, Setting, is_secret};
use super::run::{INTERVAL_VARIABLE, Wanted};
use crate::sink::otlp::{OTLP_STANDARD, OtlpConfig};

/// What is in force where nobody says anything, of what has no default of clap's because variables come before it.
const STANDARD_DEFAULTS: [(&str, &str); 5] = [
    ("otlp-protocol", "grpc"),
    ("otlp-timeout", "10s"),
    ("otlp-compression", "none"),
    ("otlp-temporality", "cumulative"),
    ("otlp-histograms", "base2_exponential_bucket_histogram"),
];

/// That all is well.
pub(super) fn ok(layers: &Layers) -> String {
    match &layers.file {
        Some(path) => format!("{}: ok\n", path.display()),
        None => "flags and environment: ok (no file: --config FILE, or PROBE_CONFIG)\n".to_owned(),
    }
}

/// A line for each key, with the origin of its value.
pub(super) fn print(wanted: &Wanted, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let lookup = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
    let mut text =
        "# What `probe run` works by, and where each value comes from; --config takes this file.\n"
            .to_owned();
    for (key, setting) in &wanted.layers.settings {
        let setting = standard(key, setting, wanted, &lookup);
        let hides = setting.text.as_deref().is_some_and(|value| is_secret(key, value));
        // Writing to a string does not fail.
        let _written = match (&setting.text, hides) {
            (None, _) => writeln!(text, "# {key}: is not set"),
            (Some(_), true) => writeln!(text, "# {key}: {HIDDEN} # {}", setting.origin),
            (Some(value), false) => writeln!(text, "{key}: {} # {}", scalar(value), setting.origin),
        };
    }
    for signal in ["METRICS", "LOGS"] {
        for (key, name) in OTLP_STANDARD.into_iter().chain([("otlp-endpoint", "INSECURE")]) {
            let variable = OtlpConfig::variable(Some(signal), name);
            let Some(value) = lookup(&variable) else { continue };
            let value = if is_secret(key, &value) { HIDDEN.to_owned() } else { scalar(&value) };
            let of = signal.to_ascii_lowercase();
            let _written = writeln!(text, "# {variable}={value} # of {of} alone; a flag would beat it");
        }
    }
    text
}

/// A setting for which there is a variable of the specification, which comes before the file.
fn standard(
    key: &str,
    setting: &Setting,
    wanted: &Wanted,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Setting {
    let is_above = matches!(setting.origin, Origin::Flag | Origin::Variable(_));
    let own =
        OTLP_STANDARD.iter().find(|(of, _)| *of == key).map(|(_, name)| OtlpConfig::variable(None, name));
    let name = if key == "interval" { Some(INTERVAL_VARIABLE.to_owned()) } else { own };
    let found = name.filter(|_| !is_above).and_then(|name| Some((lookup(&name)?, name)));
    match (found, &setting.text) {
        (Some((value, name)), _) => {
            let value = value.trim();
            // The specification's times have no unit.
            let is_time = matches!(key, "interval" | "otlp-timeout");
            let value = if is_time { format!("{value}ms") } else { value.to_owned() };
            Setting { text: Some(value), origin: Origin::Variable(name) }
        }
        (None, Some(_)) => setting.clone(),
        (None, None) => {
            let default =
                STANDARD_DEFAULTS.iter().find(|(of, _)| *of == key).map(|(_, text)| (*text).to_owned());
            let interval = || humantime::format_duration(wanted.config.interval).to_string();
            let text = match key {
                "interval" => Some(interval()),
                _ => default,
            };
            Setting { text, origin: Origin::Default }
        }
    }
}

/// A scalar of YAML that is read back as the same text.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./,=".contains(&byte))
        && !matches!(text, "null" | "Null" | "NULL");
    if is_plain {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            // YAML has a form for every character.
            _ => {
                let _written = write!(quoted, "\\U{:08x}", u32::from(character));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::file::{Format, Value, read};

    #[test]
    fn scalars_come_back_as_they_were() {
        for text in [
            "30s",
            "53,5353",
            "a b",
            "~",
            "null",
            "",
            "- x",
            "a: b",
            "a #b",
            "\u{202e}\u{7f}\u{1f600}",
            "\"\\\n",
        ] {
            let file = format!("comm: {} # from here\n", scalar(text));
            let contents = read(Format::Yaml, file.as_bytes());
            assert_eq!(contents.faults, [], "{file}");
            assert_eq!(contents.entries[0].value, Value::One(text.to_owned()), "{file}");
        }
    }

    fn wanted(flags: &[&str], env: &[(&str, &str)]) -> (Wanted, String) {
        let arguments: Vec<OsString> = flags.iter().map(OsString::from).collect();
        let lookup = |key: &str| env.iter().find(|(k, _)| *k == key).map(|(_, value)| (*value).to_owned());
        let wanted = Wanted::read(&arguments, &lookup, "1").unwrap();
        let text = print(&wanted, &lookup);
        (wanted, text)
    }

    #[test]
    fn what_is_printed_can_be_given_back() {
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x=s3cret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
            ("PROBE_RING_KIB", "512"),
        ];
        let flags =
            ["--dns-port", "53,5353", "--comm", "a \"b\"", "--otlp-headers", "k=s3cret", "--nat", "-vv"];
        let (first, text) = wanted(&flags, &env);
        for line in [
            "interval: 15000ms # OTEL_METRIC_EXPORT_INTERVAL",
            "otlp-endpoint: \"http://collector:4317\" # OTEL_EXPORTER_OTLP_ENDPOINT",
            "otlp-timeout: 2500ms # OTEL_EXPORTER_OTLP_TIMEOUT",
            "otlp-protocol: grpc # default",
            "# otlp-headers: (hidden) # flag",
            "# OTEL_EXPORTER_OTLP_LOGS_HEADERS=(hidden) # of logs alone; a flag would beat it",
            "ring-kib: 512 # PROBE_RING_KIB",
            "dns-port: 53,5353 # flag",
            "nat: true # flag",
            "verbose: 2 # flag",
            "# pid: is not set",
            "tcp-sockets: 16384 # default",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("s3cret"), "{text}");

        let path = std::env::temp_dir().join(format!("probe-effective-{}.yaml", std::process::id()));
        std::fs::write(&path, &text).unwrap();
        let (again, _) =
            wanted(&["--config", path.to_str().unwrap(), "--otlp-headers", "k=s3cret"], &[env[1]]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(format!("{:?}", again.config), format!("{:?}", first.config));
    }

    #[test]
    fn variables_of_the_specification_beat_the_file() {
        let path = std::env::temp_dir().join(format!("probe-standard-{}.toml", std::process::id()));
        std::fs::write(&path, "interval = '30s'\notlp-endpoint = 'http://file:4317'\notlp-timeout = '3s'\n")
            .unwrap();
        let file = ["--config", path.to_str().unwrap()];
        let endpoint = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://variable:4317");
        let interval = ("OTEL_METRIC_EXPORT_INTERVAL", "7000");
        let timeout = ("OTEL_EXPORTER_OTLP_TIMEOUT", "4000");
        let own = ("PROBE_OTLP_ENDPOINT", "http://own:4317");
        for (env, flags, want) in [
            (&[][..], &[][..], ["http://file:4317/", "http://file:4317/", "3s", "30s"]),
            (&[endpoint, interval, timeout], &[], ["http://variable:4317/", "http://file:4317/", "4s", "7s"]),
            (&[endpoint, interval, own], &[], ["http://own:4317/", "http://own:4317/", "3s", "7s"]),
            (
                &[endpoint, interval, own],
                &["--interval", "1s", "--otlp-endpoint", "http://flag:4317"],
                ["http://flag:4317/", "http://flag:4317/", "3s", "1s"],
            ),
        ] {
            let (found, _) = wanted(&[&file[..], flags].concat(), env);
            let otlp = found.config.otlp.unwrap();
            let (metrics, logs) = (otlp.metrics.unwrap(), otlp.logs.unwrap());
            let found = [
                metrics.endpoint.to_string(),
                logs.endpoint.to_string(),
                format!("{:?}", metrics.timeout),
                format!("{:?}", found.config.interval),
            ];
            assert_eq!(found, want, "{env:?} {flags:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
