//! The command `uverbs`: lists RDMA verbs devices, opens exactly the one that was listed, shows the
//! evidence, and audits a host.

mod absent;
mod boot;
mod cdi;
mod check;
mod child;
#[cfg(feature = "demo")]
mod demo;
mod ending;
mod evidence;
mod expected;
mod explain;
mod facts;
mod guard;
mod hold;
mod hook;
mod list;
mod man;
mod netdev;
mod open;
mod output;
mod select;
mod show;
mod table;
mod usage;
mod verbose;
mod wait;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use output::{Failure, JsonArgs, Out};
use select::Selector;
use serde::Serialize;

/// What is printed behind an empty list.
const DEMO_HINT: &str =
    if cfg!(feature = "demo") { "; `uverbs demo` shows the command without any" } else { "" };

/// The longest lines of a help, in columns.
const TERM_WIDTH: usize = 100;

/// List RDMA verbs devices, and open exactly the one that was listed.
#[derive(Parser)]
#[command(
    name = "uverbs",
    bin_name = "uverbs",
    version,
    arg_required_else_help = true,
    max_term_width = TERM_WIDTH
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct CommonArgs {
    /// Print more: the library's log and the calls that failed, on stderr; with `check` all that was checked
    #[arg(short, long, global = true, display_order = 100)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Open(open::OpenArgs),
    Watch(watch::WatchArgs),
    Wait(wait::WaitArgs),
    Check(check::CheckArgs),
    Cdi(cdi::CdiArgs),
    Hook(hook::HookArgs),
    Guard(guard::GuardArgs),
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    Completions(man::CompletionsArgs),
    Man(man::ManArgs),
}

/// The device that a subcommand is about.
#[derive(Args)]
struct DeviceArg {
    /// The device: its name, uverbsN, /dev/infiniband/uverbsN, a device number such as 231:192 or a node GUID
    ///
    /// A name is accepted as it is and as `list` prints it, escaped. A device may have a name that looks like any of the
    /// other forms; if two devices match, the command names both and does nothing. A script should use a form with
    /// a key, which has one meaning: name=NAME, uverbs=N, dev_t=MAJOR:MINOR, index=N (the index in RDMA netlink)
    /// guid=GUID (four groups of four digits, eight pairs, or 16 digits), pci=ADDRESS (such as pci=0000:3b:00.2, and
    /// pci=0000:3b:00.0/sf88 for a sub-function) or netdev=NAME (the network device of one of its ports).
    #[arg(value_name = "DEVICE")]
    device: OsString,
}

impl DeviceArg {
    /// The selector. It is parsed here and not by clap, whose errors repeat an argument as it is.
    fn selector(&self) -> Result<Selector, Failure> {
        Selector::parse(&self.device).map_err(Failure::usage)
    }
}

/// An error, with --json.
#[derive(Serialize)]
struct ErrorJson {
    error: Failure,
}

impl Command {
    fn json(&self) -> JsonArgs {
        match self {
            Self::List(args) => args.json,
            Self::Show(args) => args.json,
            Self::Open(args) => args.json,
            Self::Watch(args) => JsonArgs::lines(args.json),
            Self::Wait(args) => args.json,
            Self::Check(args) => args.json,
            _ => JsonArgs::default(),
        }
    }

    /// Runs it. Returns the exit status.
    fn run(&self, out: &mut Out) -> Result<ExitCode, Failure> {
        let is_success = match self {
            Self::List(args) => list::run(args, out),
            Self::Show(args) => show::run(args, out),
            Self::Open(args) => open::run(args, out),
            Self::Watch(args) => watch::run(args, out),
            Self::Wait(args) => wait::run(args, out),
            Self::Check(args) => return check::run(args, out),
            Self::Cdi(args) => cdi::run(args, out),
            Self::Hook(args) => hook::run(args, out),
            Self::Guard(args) => guard::run(args),
            #[cfg(feature = "demo")]
            Self::Demo(args) => demo::run(args, out),
            Self::Completions(args) => man::completions(args, out),
            Self::Man(args) => man::man(args, out),
        };
        is_success.map(|is_success| if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn main() -> ExitCode {
    let cli = usage::parse();
    if cli.common.verbose {
        verbose::turn_on();
    }
    let json = cli.command.json();
    let mut out = Out::new(json);
    match cli.command.run(&mut out) {
        Ok(status) => status,
        Err(error) if error.is_usage() => usage::exit(&error, json),
        Err(error) => {
            let status = error.status();
            error.report();
            if json.json {
                // Where stdout cannot be written to, the error is on stderr all the same.
                let _ = out.json(&ErrorJson { error });
            }
            status
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::usage::command().debug_assert();
    }
}
