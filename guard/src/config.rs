//! What the environment asks for, read once.

use std::env;
use std::ffi::OsString;
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
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return Config { log: Log::Stderr, allows_unproven: false, allows_old_names: false };
    }
    let log = match env::var_os("UVERBS_GUARD_LOG") {
        None => Log::Stderr,
        Some(text) if text.is_empty() || text == "stderr" => Log::Stderr,
        Some(text) if text == "off" => Log::Off,
        Some(path) => Log::File(path),
    };
    let allowed = env::var("UVERBS_GUARD_ALLOW").unwrap_or_default();
    let allows = |what| allowed.split(',').any(|word| word == what);
    Config { log, allows_unproven: allows("unproven"), allows_old_names: allows("old-names") }
}
