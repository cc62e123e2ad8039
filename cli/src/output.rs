//! What the command prints: text that copes with a closed pipe, JSON, notes, and failures.

use std::fmt;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use uverbs::{Error, ErrorKind};

use crate::evidence::CheckJson;

/// What is good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// What is bad.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What wants attention.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Headings.
pub(crate) const HEAD: Style = Style::new().bold();

/// Standard output. Once nobody reads it any more it swallows what it is given.
#[derive(Default)]
pub(crate) struct Out {
    closed: bool,
}

impl Out {
    /// Prints text, without its colours where they are not wanted.
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

    /// Prints a JSON document.
    pub(crate) fn json(&mut self, document: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(document)
            .map_err(|error| Failure::new("Os", format!("cannot write JSON: {error}")))?;
        text.push(b'\n');
        self.bytes(&text)
    }

    fn done(&mut self, written: io::Result<()>) -> Result<(), Failure> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            // After the first failure there is nobody to tell.
            Err(error) if !self.closed => {
                self.closed = true;
                Err(Failure::os("cannot write to stdout", &error))
            }
            _ => Ok(()),
        }
    }
}

/// Says something on standard error, if it is open.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(anstream::stderr(), "uverbs: {text}");
}

/// Why the command could not do what it was asked; what `--json` prints of an error.
///
/// `kind` is the name of a variant of [`ErrorKind`], `step` that of a [`uverbs::Step`].
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    kind: String,
    device: Option<String>,
    step: Option<&'static str>,
    message: String,
    errno: Option<i32>,
    /// What was checked before an open was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<Box<[CheckJson]>>,
    /// An argument is wrong: nothing was tried.
    #[serde(skip)]
    usage: bool,
}

impl Failure {
    /// A failure of the command's own, under the kind that the library would give it.
    pub(crate) fn new(kind: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            kind: kind.to_owned(),
            device: None,
            step: None,
            message,
            errno: None,
            evidence: None,
            usage: false,
        }
    }

    /// Wrong usage: a message that repeats no argument but escaped.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new("Usage", message) }
    }

    /// Whether it is [`usage`](Self::usage).
    pub(crate) fn is_usage(&self) -> bool {
        self.usage
    }

    /// A failed call of the operating system.
    pub(crate) fn os(what: impl fmt::Display, error: &io::Error) -> Self {
        Self { errno: error.raw_os_error(), ..Self::new("Os", format!("{what}: {error}")) }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: kind(error.kind()),
            device: error.device().map(str::to_owned),
            step: error.step().map(uverbs::Step::name),
            message: error.to_string(),
            errno: error.raw_os_error(),
            evidence: error.evidence().map(CheckJson::all),
            usage: false,
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

/// The name of a kind of error, as the library's documentation has it.
fn kind(kind: ErrorKind) -> String {
    format!("{kind:?}")
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_in_the_library() {
        assert_eq!(kind(ErrorKind::NodeMismatch), "NodeMismatch");
        assert_eq!(kind(ErrorKind::PermissionDenied), "PermissionDenied");
    }

    #[test]
    fn a_failure_has_every_key() {
        let failure = Failure::os("cannot write", &io::Error::from_raw_os_error(28));
        let json = serde_json::to_value(&failure).expect("JSON");
        let keys: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        for key in ["device", "errno", "kind", "message", "step"] {
            assert!(keys.iter().any(|found| found == key), "{key}");
        }
        assert_eq!(keys.len(), 5);
        assert_eq!(json["errno"], 28);
        assert!(json["step"].is_null());
    }
}
