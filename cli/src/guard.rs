//! `uverbs guard -- COMMAND`: runs a program under the guard, if the guard can protect it.

mod program;

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use nix::unistd::execvpe;
use signal_hook::consts::SIGPIPE;

use crate::output::Failure;
use program::Program;

/// The guard's file.
const LIBRARY: &str = "libuverbs_guard.so";
/// What the loader preloads.
const PRELOAD: &str = "LD_PRELOAD";

/// Run a program on libibverbs, and refuse it a device that was replaced.
///
/// The program runs with a library preloaded. When it opens a device through libibverbs, in whatever way, the open
/// succeeds only if the descriptor is proved to be on the device that the program's handle stands for. Otherwise
/// it fails with ENODEV, and a line on stderr has the device, the reason and the evidence.
///
/// The command looks at the program first. If the library would not be loaded into it, because the program is static,
/// is setuid or setgid, has file capabilities or uses another C library, it is not run. Nor is it if libibverbs is linked into
/// it, or is found before the guard's library. Programs that it starts in turn are not looked at, such as X in `env X`.
///
/// Not covered, besides these: libraries loaded by dlmopen(3); a provider library that a module loaded with
/// RTLD_DEEPBIND pulls in; programs that use the kernel's interface themselves, or a device without the kernel (VFIO);
/// a program that looks its device up again by name or number between two lists, which asks for whatever device has that
/// then. A list that is taken with dlvsym(3) is not seen: after ib_core was reloaded, what it returns is refused, and so
/// is a device that has been renamed since libibverbs first saw it.
///
/// The program inherits the signal mask and the ignored signals, except for SIGPIPE: it starts with the default.
#[derive(Args)]
pub(crate) struct GuardArgs {
    /// Let opens pass that cannot be proved (RDMA netlink denied, Linux before 5.10), and log each
    #[arg(long)]
    allow_unproven: bool,
    /// Let a handle pass whose name is not that of its device, though its list was not seen
    #[arg(long)]
    allow_old_names: bool,
    /// Where messages go: `stderr`, `off`, or a file to append to
    #[arg(long, value_name = "WHERE")]
    log: Option<OsString>,
    /// The guard's library, if it is not beside this command or in ../lib/uverbs
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// The program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// Runs the program in this process's place. It returns only if that fails.
pub(crate) fn run(args: &GuardArgs) -> Result<bool, Failure> {
    let [name, rest @ ..] = args.command.as_slice() else {
        return Err(Failure::usage("no command is given"));
    };
    let library = match &args.library {
        Some(file) => absolute(file)?,
        None => find_library()?,
    };
    let preload = with_library(env_var(PRELOAD), &library)?;
    let program = Program::find(name, env_var("PATH").as_deref())?;
    program.require_guardable()?;
    require_loaded(&program, &library, &preload)?;

    let allowed = [(args.allow_unproven, "unproven"), (args.allow_old_names, "old-names")];
    let allowed: Vec<_> = allowed.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    let mut set = vec![
        (PRELOAD, preload),
        // The command line alone decides: what was inherited might allow more.
        ("UVERBS_GUARD_ALLOW", OsString::from(allowed.join(","))),
    ];
    if let Some(log) = &args.log {
        set.push(("UVERBS_GUARD_LOG", destination(log)?));
    }
    let error = match exec(&program, name, rest, &set) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let what = format!("cannot run {}", program.show());
    Err(Failure::os(what, &error).not_run(error.kind() == io::ErrorKind::NotFound))
}

/// Runs the program with these variables. It inherits the signal mask and what is ignored, which `Command` would reset.
fn exec(
    program: &Program,
    name: &OsStr,
    rest: &[OsString],
    set: &[(&str, OsString)],
) -> io::Result<Infallible> {
    let file = CString::new(program.file.as_os_str().as_bytes())?;
    let words = std::iter::once(name).chain(rest.iter().map(OsString::as_os_str));
    let words: Vec<_> =
        words.map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    // Rust's runtime ignored SIGPIPE before anything of this command ran, and the program would inherit that. A signal
    // that is handled gets its default back (execve(2)).
    signal_hook::flag::register(SIGPIPE, Arc::new(AtomicBool::new(false)))?;
    Ok(execvpe(&file, &words, &environment(set)?)?)
}

/// This process's variables, with these in addition.
#[allow(clippy::disallowed_methods)] // what the program inherits does not configure this command
fn environment(set: &[(&str, OsString)]) -> io::Result<Vec<CString>> {
    let is_kept = |(name, _): &(OsString, OsString)| set.iter().all(|(other, _)| name != other);
    let kept = env::vars_os().filter(is_kept);
    let more = set.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    let joined = kept
        .chain(more)
        .map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')));
    Ok(joined.collect::<Result<_, _>>()?)
}

/// A variable that the program will inherit, not one that configures this command.
#[allow(clippy::disallowed_methods)]
fn env_var(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// Where messages go. The program may change its directory, so a file's path is made absolute.
fn destination(log: &OsStr) -> Result<OsString, Failure> {
    if log == "stderr" || log == "off" {
        return Ok(log.to_owned());
    }
    let path = std::path::absolute(log);
    let path = path.map_err(|error| Failure::os(format!("cannot log to {}", show(log)), &error))?;
    Ok(path.into_os_string())
}

/// The library beside this command, or where it is installed.
fn find_library() -> Result<PathBuf, Failure> {
    let exe =
        env::current_exe().map_err(|error| Failure::os("cannot find this command", &error))?;
    let directory = exe.parent().unwrap_or(Path::new("/"));
    let places =
        ["", "../lib/uverbs", "../lib64/uverbs"].map(|place| directory.join(place).join(LIBRARY));
    let found = places.iter().find(|file| file.is_file());
    let found = found.ok_or_else(|| {
        let place = show(places[1].as_os_str());
        Failure::new(
            "not_found",
            format!("{LIBRARY} is not beside this command, nor at {place}: pass --library"),
        )
    })?;
    absolute(found)
}

fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    let what = || format!("cannot find {}", show(file.as_os_str()));
    let path = file.canonicalize().map_err(|error| Failure::os(what(), &error))?;
    // The loader splits at these, and knows no quotes.
    if path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b' ' | b'\t' | b'\n')) {
        let text = format!(
            "{} has a colon or a space in its path, and {PRELOAD} splits there",
            show(path.as_os_str())
        );
        return Err(Failure::usage(text));
    }
    Ok(path)
}

/// The value of `LD_PRELOAD`: what is set already stays, and comes first.
fn with_library(preload: Option<OsString>, library: &Path) -> Result<OsString, Failure> {
    let mut value = preload.unwrap_or_default();
    if !value.is_empty() {
        value.push(":");
    }
    value.push(library);
    Ok(value)
}

/// Has the program's loader list what it would load, without running the program, and requires the guard to be there.
/// A loader that cannot preload a library writes a message and runs the program all the same.
fn require_loaded(program: &Program, library: &Path, preload: &OsStr) -> Result<(), Failure> {
    let Some(last) = program.chain.last() else { return Ok(()) };
    let Some(loader) = &last.loader else { return Ok(()) };
    let output = Command::new(loader)
        .arg(&last.file)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env(PRELOAD, preload)
        .env_remove("LD_WARN")
        .stdin(Stdio::null())
        .output();
    let what = || format!("cannot run the loader {}", show(loader.as_os_str()));
    let output = output.map_err(|error| Failure::os(what(), &error))?;
    let before = listed_before(&output.stdout, library.as_os_str().as_bytes());
    let Some((before, after)) = before else {
        let messages = String::from_utf8_lossy(&output.stderr).escape_debug().to_string();
        let text = format!(
            "{} was not run: its loader does not preload {}: {messages}",
            program.show(),
            show(library.as_os_str())
        );
        return Err(Failure::new("unsupported", text).not_run(false));
    };
    let first = std::iter::once(&last.file).chain(&before);
    for file in first {
        if program::defines_the_border(file)? {
            let text = format!(
                "{} defines what the guard takes the place of, and is found before it",
                show(file.as_os_str())
            );
            return Err(program::refused(&program.file, &text));
        }
    }
    for file in std::iter::once(&last.file).chain(&before).chain(&after) {
        let is_libibverbs =
            file.file_name().is_some_and(|name| name.as_bytes().starts_with(b"libibverbs.so."));
        if !is_libibverbs && program::contains_libibverbs(file)? {
            let text = format!(
                "{} has libibverbs linked into it, whose calls do not leave it",
                show(file.as_os_str())
            );
            return Err(program::refused(&program.file, &text));
        }
    }
    Ok(())
}

/// The files that a loader lists before the guard, and after it; `None` if it does not list the guard.
fn listed_before(listed: &[u8], guard: &[u8]) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
    let files = listed.split(|byte| *byte == b'\n').filter_map(|line| {
        // "name => /path (address)", or "/path (address)".
        let start = line.iter().position(|byte| *byte == b'/')?;
        let end = line.windows(2).rposition(|window| window == b" (")?;
        Some(PathBuf::from(OsStr::from_bytes(line.get(start..end)?)))
    });
    let files: Vec<_> = files.collect();
    let at = files.iter().position(|file| file.as_os_str().as_bytes() == guard)?;
    Some((files[..at].to_vec(), files[at + 1..].to_vec()))
}

fn show(text: &OsStr) -> String {
    text.as_bytes().escape_ascii().to_string()
}
