//! What is said on stderr: the log, and the lines beside it; as text or as JSON, each line in one write.

mod limit;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::limit::Limit;
use super::Failure;
use crate::kernel::clock::{rfc3339, unix_now_ns};
use crate::sink::json;

/// How what is said on stderr is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Whether lines are objects; for the whole process, as stderr is.
static IS_JSON: AtomicBool = AtomicBool::new(false);
/// What holds repeated messages back.
static LIMIT: OnceLock<Limit> = OnceLock::new();
/// How often is looked whether something is to be told of what was held back.
const LOOK: Duration = Duration::from_secs(1);

/// From here on stderr is written so.
pub(super) fn speak(format: LogFormat) {
    let is_json = format == LogFormat::Json;
    if is_json && !IS_JSON.swap(is_json, Ordering::Relaxed) {
        // A panic has lines of its own, which a reader of objects would choke on.
        std::panic::set_hook(Box::new(|panic| stderr_line(Level::ERROR, format_args!("error: {panic}"))));
    }
}

/// A line on stderr beside the log; where that is closed, nobody wants to know. The level is told as JSON only, and there the words
/// for it at the line's beginning are not.
pub(super) fn stderr_line(level: Level, line: fmt::Arguments<'_>) {
    let mut text = line.to_string();
    if IS_JSON.load(Ordering::Relaxed) {
        let message = ["error: ", "warning: "].iter().find_map(|word| text.strip_prefix(word));
        text = json_line(level, "probe", message.unwrap_or(&text), Map::new());
    } else {
        text.push('\n');
    }
    // In one write: nobody reads half of it, and nobody writes in between.
    let _closed = io::stderr().write_all(text.as_bytes());
}

/// With its end.
fn json_line(level: Level, target: &str, message: &str, fields: Map<String, Value>) -> String {
    let mut object = Map::new();
    object.insert("time".to_owned(), rfc3339(unix_now_ns()).into());
    object.insert("level".to_owned(), level.as_str().into());
    object.insert("target".to_owned(), target.into());
    object.insert("message".to_owned(), message.into());
    object.insert("fields".to_owned(), Value::Object(fields));
    let mut line = Vec::new();
    // Memory takes everything.
    let _written = json::line(&mut line, object);
    String::from_utf8(line).unwrap_or_default()
}

/// Message and fields of an event.
#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Map<String, Value>,
}

impl Said {
    fn of(event: &Event<'_>) -> Self {
        let mut said = Self::default();
        event.record(&mut said);
        said
    }

    fn keep(&mut self, field: &Field, value: Value) {
        // Where the line in the source stands is no field: what comes by way of the crate log says it so.
        if !field.name().starts_with("log.") {
            self.fields.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.keep(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.keep(field, value.into());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value.into());
    }
}

/// The log's lines: tracing's own text, or objects.
struct Lines {
    text: Format<Full>,
    is_json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.is_json {
            return self.text.format_event(context, out, event);
        }
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let Said { message, fields } = Said::of(event);
        out.write_str(&json_line(*metadata.level(), metadata.target(), &message, fields))
    }
}

/// How much is logged.
pub(super) struct Logs {
    /// For the programs' own logs, as aya-log counts.
    pub(super) program_level: u8,
    /// Takes another filter.
    change: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

impl Logs {
    /// Says more or less from now on, unless `RUST_LOG` says how much; the programs go on as they began.
    pub(super) fn change(&self, verbose: u8) {
        if let Ok(filter) = log_filter(verbose)
            && !(self.change)(filter)
        {
            tracing::warn!("the level of what is logged stays as it was");
        }
    }
}

/// Logs go to stderr: warnings, with -v more, or what `RUST_LOG` says.
///
/// # Errors
///
/// `RUST_LOG` does not parse.
pub(super) fn start(verbose: u8, format: LogFormat) -> Result<Logs, Failure> {
    speak(format);
    let filter = log_filter(verbose)?;
    // aya-log counts levels from 1 (error) to 5 (trace).
    let program_level = match filter.max_level_hint() {
        None => 5,
        Some(hint) => hint.into_level().map_or(0, |level| match level {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        }),
    };
    let lines = Lines { text: Format::default().with_target(false), is_json: format == LogFormat::Json };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .event_format(lines)
        .with_env_filter(filter)
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    let limit = LIMIT.get_or_init(Limit::default).clone();
    // An error means that a test of this process has set one up before.
    let _second = subscriber.finish().with(limit).try_init();
    Ok(Logs { program_level, change: Box::new(move |filter| handle.reload(filter).is_ok()) })
}

/// Says how much was held back, as time goes by.
pub(super) async fn tell_held() {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        if let Some(limit) = LIMIT.get() {
            limit.tell(Some(Instant::now()));
        }
    }
}

/// Says how much was held back and has not been told yet.
pub(super) fn tell_rest() {
    if let Some(limit) = LIMIT.get() {
        limit.tell(None);
    }
}

fn log_filter(verbose: u8) -> Result<EnvFilter, Failure> {
    match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives).map_err(|error| {
            Failure::usage(format!("RUST_LOG={directives}: {error}; write e.g. RUST_LOG=debug"))
        }),
        _ => Ok(EnvFilter::new(match verbose {
            0 => "warn",
            // The programs' own logs have their object's name as target. aya tells every relocation at debug.
            1 => "info,probe_user=debug,probe_ebpf=debug,tcp=debug,dns=debug,syscalls=debug",
            _ => "trace,aya_obj=info,h2=info",
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Where lines go, write by write.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(is_json: bool, limit: Limit, say: impl FnOnce()) -> Vec<String> {
        let writes = Writes::default();
        let of_writer = writes.clone();
        let lines = Lines { text: Format::default().with_target(false), is_json };
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || of_writer.clone())
            .with_ansi(false)
            .event_format(lines)
            .with_env_filter("info")
            .with_filter_reloading();
        tracing::subscriber::with_default(subscriber.finish().with(limit), say);
        let writes = writes.0.lock().unwrap();
        writes.clone()
    }

    #[test]
    fn lines_are_objects_in_one_write() {
        let writes = written(true, Limit::default(), || {
            tracing::warn!(count = 3, yes = true, "error.type" = "x", name = %"a\u{202e}b", "it \"is\"\n{}", "\u{9b}so");
            tracing::debug!("nobody asked");
            tracing::error!(target: "elsewhere", text = ?Some("a"), "");
        });
        let found: Vec<Value> = writes
            .iter()
            .map(|line| {
                assert!(
                    line.is_ascii() && line.ends_with("}\n") && line.matches('\n').count() == 1,
                    "{line}"
                );
                let mut object: Value = serde_json::from_str(line).unwrap();
                let time = object.as_object_mut().unwrap().remove("time").unwrap();
                assert!(time.as_str().is_some_and(|time| time.len() == 30 && time.ends_with('Z')), "{time}");
                object
            })
            .collect();
        let want = [
            serde_json::json!({
                "level": "WARN", "target": module_path!(), "message": "it \"is\"\n\u{9b}so",
                "fields": {"count": 3, "yes": true, "error.type": "x", "name": "a\u{202e}b"},
            }),
            serde_json::json!({
                "level": "ERROR", "target": "elsewhere", "message": "", "fields": {"text": "Some(\"a\")"},
            }),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn what_is_held_back_is_told_with_its_level_and_target() {
        for is_json in [false, true] {
            let limit = Limit::default();
            let writes = written(is_json, limit.clone(), || {
                for number in 0..100 {
                    tracing::warn!(target: "of", signal = "tcp", "number {number}");
                }
                tracing::warn!("something else");
                limit.tell(Some(Instant::now()));
                tracing::info!("not yet");
                limit.tell(None);
                limit.tell(None);
            });
            let count = |what: &str| writes.iter().filter(|line| line.contains(what)).count();
            assert_eq!((writes.len(), count("number ")), (13, 11), "{writes:#?}");
            let told = writes.last().unwrap();
            assert!(
                told.contains("said 90 more times in the last ") && told.contains(": number 9"),
                "{told}"
            );
            assert!(told.contains("WARN") && (!is_json || told.contains(r#""target":"of""#)), "{told}");
        }
    }
}
