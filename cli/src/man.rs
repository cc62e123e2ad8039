//! `uverbs man` and `uverbs completions`.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use crate::output::{
    Failure, MISSING_STATUS, NOT_RUN_STATUS, Out, TIMEOUT_STATUS, UNKNOWN_STATUS, WARNING_STATUS,
};
use crate::usage::command;

/// Print the manual page uverbs(1), or write all pages into a directory.
#[derive(Args)]
pub(crate) struct ManArgs {
    /// Write uverbs(1) and a page for each subcommand into this directory, which has to exist
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Print the completions for a shell.
#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// The exit statuses of a subcommand and their meaning; of the command itself under no name.
fn statuses(subcommand: &str) -> Vec<(u8, &'static str)> {
    let [done, failed] = done_and_failed(subcommand);
    let timeout = match subcommand {
        "wait" => Some("The timeout expired."),
        "" => Some("The timeout of `wait` expired."),
        _ => None,
    };
    let timeout = timeout.map(|meaning| (TIMEOUT_STATUS, meaning));
    let others = match subcommand {
        "guard" => [
            (
                NOT_RUN_STATUS,
                "The program was not run: the guard could not protect it, or it may not be run.",
            ),
            (MISSING_STATUS, "There is no such program."),
        ]
        .as_slice(),
        "check" => &[
            (WARNING_STATUS, "With --fail-on warning: there are warnings, and nothing worse."),
            (
                UNKNOWN_STATUS,
                "Something could not be looked at, or the output could not be written; no error was found.",
            ),
        ],
        "" => &[
            (WARNING_STATUS, "`check --fail-on warning` found warnings."),
            (UNKNOWN_STATUS, "`check` could not look at something."),
        ],
        _ => &[],
    };
    let usual = [(0, done), (1, failed), (2, USAGE_STATUS)].into_iter().chain(timeout);
    usual.chain(others.iter().copied()).collect()
}

fn done_and_failed(subcommand: &str) -> [&'static str; 2] {
    match subcommand {
        "list" => [
            "All devices were listed, or there are none.",
            "A device could not be listed, or the list failed.",
        ],
        "show" => [
            "The device was shown.",
            "The device was not found, or it could not be opened. What is known without a context is \
             printed all the same.",
        ],
        "open" => [
            "The device was opened, and with --hold it stayed until the end.",
            "The open was refused or failed, or during --hold the device was removed or reported a \
             fatal error.",
        ],
        "watch" => [
            "SIGINT, SIGTERM, or the reader of the output has gone.",
            "The watch could not begin, or the output could not be written.",
        ],
        "wait" => [
            "The device can be opened, or with --gone it has gone.",
            "Several devices match, RDMA netlink cannot be used, or the devices could not be listed.",
        ],
        "check" => [
            "No error was found. There may be warnings, and information, which -v prints.",
            "There are errors.",
        ],
        "cdi" => [
            "The file is as it should be, or was printed. With --watch: SIGINT or SIGTERM.",
            "A device of the command line is not there, or the file could not be made or written. Without --output \
             or --dir: there is no device.",
        ],
        "hook" => [
            "The container has the devices that it was given.",
            "It is refused: it would get another device, or that could not be checked in time.",
        ],
        "guard" => [
            "That of the program, once it runs.",
            "The guard's library was not found. (The program may return any status.)",
        ],
        "demo" => ["The simulation went as expected.", "It did not, which is a bug."],
        "completions" => ["The completions were printed.", "They could not be written."],
        "man" => ["The pages were written.", "They could not be written."],
        "help" => ["The help was printed.", "It could not be written."],
        _ => ["Done.", "Refused or failed, or `check` found an error."],
    }
}

const USAGE_STATUS: &str = "Wrong usage. Nothing was done.";

/// The exit statuses of a subcommand, for its help.
pub(crate) fn exit_status_help(subcommand: &str) -> String {
    let rows = statuses(subcommand).into_iter();
    let rows = rows.map(|(status, meaning)| format!("\n  {status}  {meaning}"));
    format!("Exit status:{}", rows.collect::<String>())
}

/// The manual page of a command, which is uverbs or one of its subcommands; `others` are the other pages.
fn page(command: &clap::Command, name: &str, others: &[String]) -> io::Result<Vec<u8>> {
    let title = if name.is_empty() { "uverbs".to_owned() } else { format!("uverbs-{name}") };
    let man = clap_mangen::Man::new(command.clone().after_help("")).title(title);
    let man = man.source(concat!("uverbs ", env!("CARGO_PKG_VERSION"))).manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut page)?;
    }
    if name.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in statuses(name) {
        roff.control("TP", []).text([bold(status.to_string())]).text([roman(meaning)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = others.iter().map(String::as_str).chain(["rdma", "rdma-dev", "ibv_devinfo"]);
    let others: Vec<_> = others
        .map(|other| match other {
            "rdma" | "rdma-dev" => format!("{other}(8)"),
            _ => format!("{other}(1)"),
        })
        .collect();
    roff.text([roman(others.join(", "))]);
    if name.is_empty() {
        roff.control("SH", ["VERSION"]);
        roff.text([roman(format!("v{}", env!("CARGO_PKG_VERSION")))]);
    }
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// Every page: its file name and its text.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command();
    command.build();
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let titles: Vec<_> = names.iter().map(|name| format!("uverbs-{name}")).collect();
    let mut pages = vec![("uverbs.1".to_owned(), page(&command, "", &titles)?)];
    for (sub, title) in command.get_subcommands().zip(&titles) {
        let others = titles.iter().filter(|other| *other != title).cloned();
        let others: Vec<_> = ["uverbs".to_owned()].into_iter().chain(others).collect();
        pages.push((format!("{title}.1"), page(sub, sub.get_name(), &others)?));
    }
    Ok(pages)
}

pub(crate) fn man(args: &ManArgs, out: &mut Out) -> Result<bool, Failure> {
    let pages = pages().map_err(|error| Failure::os("cannot make the manual pages", &error))?;
    match &args.dir {
        None => out.bytes(&pages[0].1)?,
        Some(dir) => write(dir, &pages)?,
    }
    Ok(true)
}

fn write(dir: &Path, pages: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    let shown = dir.as_os_str().as_bytes().escape_ascii();
    if !dir.is_dir() {
        let message = format!("\"{shown}\" is not a directory: make it first (mkdir -p)");
        return Err(Failure::new("os", message));
    }
    for (file, page) in pages {
        std::fs::write(dir.join(file), page).map_err(|error| {
            Failure::os(format_args!("cannot write {file} into \"{shown}\""), &error)
        })?;
    }
    Ok(())
}

pub(crate) fn completions(args: &CompletionsArgs, out: &mut Out) -> Result<bool, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "uverbs", &mut script);
    out.bytes(&script)?;
    Ok(true)
}
