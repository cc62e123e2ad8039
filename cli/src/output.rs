//! Output: text, JSON, notes and failures. A closed pipe is no error.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;
use uverbs::{Device, Error};

use crate::evidence::CheckJson;
use crate::{explain, verbose};

/// What is good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What is bad.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What wants attention.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Headings.
pub(crate) const HEAD: Style = Style::new().bold();

/// Whether to print JSON, and how.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON, on one line
    #[arg(short, long)]
    pub(crate) json: bool,
    /// With --json: indent it
    #[arg(short, long, requires = "json")]
    pretty: bool,
}

impl JsonArgs {
    /// One document a line, for a subcommand whose output never ends.
    pub(crate) fn lines(json: bool) -> Self {
        Self { json, pretty: false }
    }
}

/// Standard output. After its reader has gone, nothing more is written.
#[derive(Default)]
pub(crate) struct Out {
    closed: bool,
    pretty: bool,
}

impl Out {
    /// Standard output, with JSON as these arguments ask for it.
    pub(crate) fn new(json: JsonArgs) -> Self {
        Self { closed: false, pretty: json.pretty }
    }

    /// Prints text, without its colours where stdout is not a terminal.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        self.done(written)
    }

    /// Prints bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        self.done(written)
    }

    /// Prints a JSON document: a line, or indented.
    pub(crate) fn json(&mut self, document: &impl Serialize) -> Result<(), Failure> {
        let text = match self.pretty {
            true => serde_json::to_vec_pretty(document),
            false => serde_json::to_vec(document),
        };
        let mut text =
            text.map_err(|error| Failure::new("os", format!("cannot write JSON: {error}")))?;
        text.push(b'\n');
        self.bytes(&text)
    }

    /// Whether its reader has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn done(&mut self, written: io::Result<()>) -> Result<(), Failure> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            // The first failure was reported.
            Err(error) if !self.closed => {
                self.closed = true;
                Err(Failure::os("cannot write to stdout", &error))
            }
            _ => Ok(()),
        }
    }
}

/// Prints a line on standard error, if that is open.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(anstream::stderr(), "uverbs: {text}");
}

/// The kind of a failure that is a timeout, which has an exit status of its own.
const TIMEOUT: &str = "timeout";
/// That exit status.
pub(crate) const TIMEOUT_STATUS: u8 = 3;
/// The exit status if `check --fail-on warning` found warnings alone.
pub(crate) const WARNING_STATUS: u8 = 4;
/// The exit status if `check` could not look at something.
pub(crate) const UNKNOWN_STATUS: u8 = 5;
/// The exit status if a program was not run.
pub(crate) const NOT_RUN_STATUS: u8 = 126;
/// The exit status if there is no such program.
pub(crate) const MISSING_STATUS: u8 = 127;

/// Why the command failed; what `--json` prints of an error.
///
/// `kind` is the code of a [`uverbs::ErrorKind`], `usage`, `device_fatal` or `timeout`; `step` the name of a
/// [`uverbs::Step`].
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    kind: Box<str>,
    device: Option<Box<str>>,
    step: Option<&'static str>,
    message: Box<str>,
    /// The call that failed, where `message` does not name it.
    cause: Option<Box<str>>,
    errno: Option<i32>,
    /// The checks before an open was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<Box<[CheckJson]>>,
    /// Wrong usage: the command did nothing.
    #[serde(skip)]
    usage: bool,
    /// The exit status, where it is not the usual one.
    #[serde(skip)]
    status: Option<u8>,
}

impl Failure {
    /// A failure that the command found itself, under the kind that the library would give it.
    pub(crate) fn new(kind: &str, message: impl Into<String>) -> Self {
        let message = message.into().into_boxed_str();
        Self {
            kind: kind.into(),
            device: None,
            step: None,
            message,
            cause: None,
            errno: None,
            evidence: None,
            usage: false,
            status: None,
        }
    }

    /// Wrong usage. The message repeats arguments escaped, or not at all.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new("usage", message) }
    }

    /// Whether it is [`usage`](Self::usage).
    pub(crate) fn is_usage(&self) -> bool {
        self.usage
    }

    /// The kind, which `--json` prints.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// What was waited for did not happen in time, because of this.
    pub(crate) fn timed_out(self, what: impl fmt::Display) -> Self {
        let message = format!("{what}: {self}").into();
        Self { kind: TIMEOUT.into(), message, ..self }
    }

    /// The exit status of the command.
    pub(crate) fn status(&self) -> ExitCode {
        match (self.status, &*self.kind) {
            (Some(status), _) => ExitCode::from(status),
            (None, TIMEOUT) => ExitCode::from(TIMEOUT_STATUS),
            (None, _) => ExitCode::FAILURE,
        }
    }

    /// The program that was to be run was not: because there is none, or for another reason. The exit statuses are those
    /// of env(1).
    pub(crate) fn not_run(self, is_missing: bool) -> Self {
        self.with_status(if is_missing { MISSING_STATUS } else { NOT_RUN_STATUS })
    }

    /// The same failure, under an exit status of its own.
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status: Some(status), ..self }
    }

    /// A failed call of the operating system.
    pub(crate) fn os(what: impl fmt::Display, error: &io::Error) -> Self {
        Self { errno: error.raw_os_error(), ..Self::new("os", format!("{what}: {error}")) }
    }

    /// The same failure of a device, named as the library names it.
    pub(crate) fn of(self, device: &Device) -> Self {
        Self { device: Some(device.to_string().into()), ..self }
    }

    /// The message, without the device that it begins with.
    pub(crate) fn without_device(&self) -> &str {
        let device = self.device.as_deref().unwrap_or_default();
        let rest = self.message.strip_prefix(device).and_then(|rest| rest.strip_prefix(": "));
        rest.unwrap_or(&self.message)
    }

    /// Prints it on standard error; with `-v` also its cause.
    pub(crate) fn report(&self) {
        self.report_as("");
    }

    /// The same with words before it.
    pub(crate) fn report_as(&self, what: &str) {
        note(format_args!("{what}{self}"));
        if let (Some(cause), true) = (&self.cause, verbose::is_on()) {
            note(format_args!("cause: {cause}"));
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let failure = Self {
            device: error.device().map(Box::from),
            step: error.step().map(uverbs::Step::name),
            errno: error.raw_os_error(),
            evidence: error.evidence().map(CheckJson::all),
            ..Self::new(error.kind().code(), error.to_string())
        };
        match explain::sentence(error) {
            Some(message) => {
                Self { message: message.into(), cause: Some(error.cause().into()), ..failure }
            }
            None => failure,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Up to five of these, and how many more there are.
pub(crate) fn up_to_five<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items = items.into_iter();
    let first: Vec<_> = items.by_ref().take(5).map(|item| item.to_string()).collect();
    let first = first.join(", ");
    match items.count() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_are_named_and_the_others_counted() {
        assert_eq!(up_to_five(["a"]), "a");
        assert_eq!(up_to_five(1..=5), "1, 2, 3, 4, 5");
        assert_eq!(up_to_five(1..=7), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn the_device_is_left_out_where_it_comes_first() {
        let mut failure = Failure::new("os", "rxe0 (uverbs0): it is missing");
        assert_eq!(failure.without_device(), "rxe0 (uverbs0): it is missing");
        failure.device = Some("rxe0 (uverbs0)".into());
        assert_eq!(failure.without_device(), "it is missing");
    }

    #[test]
    fn a_failure_has_every_key() {
        let failure = Failure::os("cannot write", &io::Error::from_raw_os_error(28));
        let json = serde_json::to_value(&failure).expect("JSON");
        let keys: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        for key in ["cause", "device", "errno", "kind", "message", "step"] {
            assert!(keys.iter().any(|found| found == key), "{key}");
        }
        assert_eq!(keys.len(), 6);
        assert_eq!(json["errno"], 28);
        assert!(json["step"].is_null());
    }
}
