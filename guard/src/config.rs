//! What the environment asks for, read once.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};

/// Where messages go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Log {
    Stderr,
    File(OsString),
    Off,
}

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) log: Log,
    /// Opens that cannot be proved pass, and are logged.
    pub(crate) allows_unproven: bool,
    /// A handle may have an older name of its device, even if its list was not seen.
    pub(crate) allows_old_names: bool,
}

static CONFIG: AtomicPtr<Config> = AtomicPtr::new(ptr::null_mut());

/// The configuration. The first call reads the environment; later changes of it have no effect. No lock is held, so a
/// child that was forked meanwhile can go on.
pub(crate) fn get() -> &'static Config {
    let known = CONFIG.load(SeqCst);
    // SAFETY: whatever is stored there was leaked below.
    if let Some(known) = unsafe { known.as_ref() } {
        return known;
    }
    let new: *mut Config = Box::leak(Box::new(read()));
    let stored = CONFIG.compare_exchange(ptr::null_mut(), new, SeqCst, SeqCst);
    // Another thread may have been faster: then this one is leaked, once.
    let config = stored.map_or_else(|other| other, |_| new);
    // SAFETY: both were leaked, and nobody changes them.
    unsafe { &*config }
}

fn read() -> Config {
    // SAFETY: it takes a number and returns one.
    let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let variable = |name| if is_secure { None } else { env::var_os(name) };
    parse(variable("UVERBS_GUARD_LOG"), variable("UVERBS_GUARD_ALLOW"))
}

fn parse(log: Option<OsString>, allow: Option<OsString>) -> Config {
    let log = match log {
        None => Log::Stderr,
        Some(text) if text.is_empty() || text == "stderr" => Log::Stderr,
        Some(text) if text == "off" => Log::Off,
        Some(path) => Log::File(path),
    };
    let allow = allow.unwrap_or_default();
    let allows = |what: &str| {
        allow.as_bytes().split(|byte| *byte == b',').any(|word| word == what.as_bytes())
    };
    Config { log, allows_unproven: allows("unproven"), allows_old_names: allows("old-names") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(log: Option<&str>, allow: Option<&str>) -> Config {
        parse(log.map(OsString::from), allow.map(OsString::from))
    }

    #[test]
    fn messages_go_where_the_variable_points() {
        for text in [None, Some(""), Some("stderr")] {
            assert_eq!(parsed(text, None).log, Log::Stderr, "{text:?}");
        }
        assert_eq!(parsed(Some("off"), None).log, Log::Off);
        assert_eq!(parsed(Some("/tmp/off"), None).log, Log::File("/tmp/off".into()));
    }

    #[test]
    fn only_whole_words_allow_something() {
        for (text, expected) in [
            (None, (false, false)),
            (Some(""), (false, false)),
            (Some("unproven"), (true, false)),
            (Some("old-names"), (false, true)),
            (Some("old-names,unproven"), (true, true)),
            (Some("unproven-"), (false, false)),
            (Some("unproven old-names"), (false, false)),
            (Some("all"), (false, false)),
        ] {
            let config = parsed(None, text);
            assert_eq!((config.allows_unproven, config.allows_old_names), expected, "{text:?}");
        }
    }

    #[test]
    fn the_environment_is_read_once() {
        assert!(ptr::eq(get(), get()));
    }
}
