//! `-v`: whether it was given, and the library's log on stderr.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::note;

static ON: AtomicBool = AtomicBool::new(false);

/// Turns it on: from now on the library's log events are printed, too.
pub(crate) fn turn_on() {
    ON.store(true, Relaxed);
    // It fails where a subscriber is set already, which nothing else in this program does.
    let _ = tracing::subscriber::set_global_default(Log::default());
}

/// Whether `-v` was given.
pub(crate) fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Prints the events of the library that are at the debug level or above it.
#[derive(Default)]
struct Log {
    spans: AtomicU64,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::DEBUG
            && metadata.target().split("::").next() == Some("uverbs")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        note(format_args!("{level}: {}{}", line.message, line.fields));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Relaxed) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event as text.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // The library escapes the bytes of names before it logs them.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_message_and_then_its_fields() {
        struct Keep(std::sync::mpsc::Sender<String>);
        impl Subscriber for Keep {
            fn enabled(&self, metadata: &Metadata<'_>) -> bool {
                Log::default().enabled(metadata)
            }
            fn event(&self, event: &Event<'_>) {
                let mut line = Line::default();
                event.record(&mut line);
                let _ = self.0.send(format!("{}{}", line.message, line.fields));
            }
            fn new_span(&self, _: &Attributes<'_>) -> Id {
                Id::from_u64(1)
            }
            fn record(&self, _: &Id, _: &Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn enter(&self, _: &Id) {}
            fn exit(&self, _: &Id) {}
        }
        let (sender, events) = std::sync::mpsc::channel();
        tracing::subscriber::with_default(Keep(sender), || {
            tracing::debug!(target: "uverbs::open", device = "rxe0", attempt = 2, "it starts over");
            tracing::trace!(target: "uverbs::open", "too much");
            tracing::warn!(target: "other", "of another crate");
        });
        assert_eq!(
            events.iter().collect::<Vec<_>>(),
            [r#"it starts over device="rxe0" attempt=2"#]
        );
    }
}
