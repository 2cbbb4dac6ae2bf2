//! In what form the broker's own log is written: for people, for journald, or as JSON lines for collectors.
//!
//! Names in the JSON are those of OpenTelemetry's log data model, so that a collector needs no mapping.

use std::fmt;
use std::io::IsTerminal;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged: `nix_broker=debug` shows every event and action.
const LEVEL_VARIABLE: &str = "NIX_BROKER_LOG";
/// How: `text`, `json` or `journald`.
const FORMAT_VARIABLE: &str = "NIX_BROKER_LOG_FORMAT";

/// Makes the log ready. Without a wish it goes to journald when standard error leads there, else to people.
pub(super) fn set_up() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_env_var(LEVEL_VARIABLE)
        .with_default_directive(Level::INFO.into())
        .from_env()
        .with_context(|| format!("read `{LEVEL_VARIABLE}`"))?;
    let registry = tracing_subscriber::registry().with(filter);
    match std::env::var(FORMAT_VARIABLE).as_deref() {
        Ok("json") => {
            let json = tracing_subscriber::fmt::layer().event_format(JsonLines).with_writer(std::io::stderr);
            registry.with(json).init();
        }
        Ok("journald") => registry.with(journald().context("reach journald")?).init(),
        Ok("text") => registry.with(for_people()).init(),
        Ok("") | Err(_) => {
            match is_journald(std::env::var("JOURNAL_STREAM").ok().as_deref()).then(journald) {
                Some(Ok(journald)) => registry.with(journald).init(),
                // What cannot be sent with fields can still be written without.
                Some(Err(_)) | None => registry.with(for_people()).init(),
            }
        }
        Ok(other) => bail!("`{FORMAT_VARIABLE}` is `{other}`; it can be `text`, `json` or `journald`"),
    }
    Ok(())
}

fn for_people<S>() -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
}

/// Each field of an event as one of the journal's: `journalctl NIX_BROKER_BUILD=12`.
fn journald() -> std::io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?
        .with_field_prefix(Some("NIX_BROKER".to_owned()))
        .with_syslog_identifier("nix-broker".to_owned()))
}

/// Whether standard error is the stream that the service manager named: a program that was started with another one
/// inherits the variable all the same.
fn is_journald(journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// One JSON object per line.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = humantime::format_rfc3339_micros(std::time::SystemTime::now());
        let line = line(event, &now.to_string());
        writeln!(writer, "{line}")
    }
}

fn line(event: &Event<'_>, now: &str) -> Value {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let (text, number) = severity(*event.metadata().level());
    json!({
        "timestamp": now,
        "severity_text": text,
        "severity_number": number,
        "body": fields.message,
        "attributes": fields.others,
        "scope": { "name": event.metadata().target() },
        "resource": { "service.name": "nix-broker", "service.version": env!("CARGO_PKG_VERSION") },
    })
}

/// As OpenTelemetry numbers them.
fn severity(level: Level) -> (&'static str, u8) {
    match level {
        Level::TRACE => ("TRACE", 1),
        Level::DEBUG => ("DEBUG", 5),
        Level::INFO => ("INFO", 9),
        Level::WARN => ("WARN", 13),
        Level::ERROR => ("ERROR", 17),
    }
}

/// The fields of an event; those of ours have a name space, as attributes should.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.others.insert(format!("nix_broker.{}", field.name()), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.set(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_are_what_a_collector_knows() {
        let written = Written::default();
        let writer = written.clone();
        let layer =
            tracing_subscriber::fmt::layer().event_format(JsonLines).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(builder = %"b-1", processors = 8_u64, reason = "two\nlines", "a \"builder\" went away");
        });
        let bytes = written.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let stamp = line["timestamp"].take();
        assert!(humantime::parse_rfc3339(stamp.as_str().unwrap()).is_ok());
        line["resource"]["service.version"] = "VERSION".into();
        insta::assert_snapshot!(serde_json::to_string_pretty(&line).unwrap(), @r#"
        {
          "attributes": {
            "nix_broker.builder": "b-1",
            "nix_broker.processors": 8,
            "nix_broker.reason": "two\nlines"
          },
          "body": "a \"builder\" went away",
          "resource": {
            "service.name": "nix-broker",
            "service.version": "VERSION"
          },
          "scope": {
            "name": "nix_broker::cli::log_format::tests"
          },
          "severity_number": 13,
          "severity_text": "WARN",
          "timestamp": null
        }
        "#);
    }

    #[test]
    fn only_the_stream_that_was_named_is_the_journal() {
        assert!(!is_journald(None) && !is_journald(Some("nonsense")) && !is_journald(Some("1:2")));
        let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_journald(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
    }
}
