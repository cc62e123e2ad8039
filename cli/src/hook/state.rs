//! The state of a container, as the runtime passes it to a hook.

use std::io::{self, Read};
use std::path::PathBuf;

use serde::Deserialize;

/// Annotations may be in it, which have no limit of their own.
const LENGTH_MAX: u64 = 1 << 20;

/// The fields that matter. Runtimes differ in what they leave out.
#[derive(Debug, Default, Deserialize)]
pub(super) struct State {
    #[serde(default)]
    pub(super) id: Option<String>,
    /// The container's first process, on the host. 0 if there is none.
    #[serde(default)]
    pub(super) pid: Option<i64>,
    /// The directory with config.json. crun passes `/` where a user namespace hides it.
    #[serde(default)]
    pub(super) bundle: Option<PathBuf>,
    /// The directory that becomes the container's root. Only crun passes it.
    #[serde(default)]
    pub(super) root: Option<PathBuf>,
}

impl State {
    /// # Errors
    /// Why it is no state.
    pub(super) fn read(from: impl Read) -> Result<Self, String> {
        let mut text = Vec::new();
        let read = from.take(LENGTH_MAX + 1).read_to_end(&mut text);
        read.map_err(|error: io::Error| format!("its state on stdin cannot be read: {error}"))?;
        if text.len() as u64 > LENGTH_MAX {
            return Err(format!("its state on stdin has more than {LENGTH_MAX} bytes"));
        }
        serde_json::from_slice(&text).map_err(|error| {
            let error = error.to_string();
            format!("stdin has no state of a container: {}", error.as_bytes().escape_ascii())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_runtimes() {
        let crun = br#"{"ociVersion":"1.0","id":"a","pid":42,"root":"/b/rootfs","bundle":"/b","status":"created"}"#;
        let state = State::read(&crun[..]).expect("a state");
        assert_eq!((state.id.as_deref(), state.pid), (Some("a"), Some(42)));
        assert_eq!((state.root, state.bundle), (Some("/b/rootfs".into()), Some("/b".into())));
        let runc = br#"{"ociVersion":"1.0.2-dev","id":"a","status":"creating","pid":42,"bundle":"/b","annotations":{}}"#;
        let state = State::read(&runc[..]).expect("a state");
        assert_eq!((state.root, state.bundle), (None, Some("/b".into())));
        State::read(&b"{}"[..]).expect("nothing is there");
        State::read(&br#"{"pid":null,"id":null,"root":null}"#[..]).expect("nothing is there");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for text in [&b""[..], b"{", b"\xff", br#"{"pid":"1"}"#, br#"{"id":1}"#, b"null"] {
            assert!(State::read(text).is_err(), "{}", text.escape_ascii());
        }
        let long = State::read(io::repeat(b' ')).expect_err("endless");
        assert!(long.contains("more than"), "{long}");
    }
}
