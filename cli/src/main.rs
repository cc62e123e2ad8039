//! The command `uverbs`: lists RDMA verbs devices, opens exactly the one that was listed, shows the
//! evidence, and audits a host.

mod check;
#[cfg(feature = "demo")]
mod demo;
mod evidence;
mod facts;
mod list;
mod man;
mod open;
mod output;
mod select;
mod show;
mod table;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use output::{Failure, Out, note};
use select::Selector;
use serde::Serialize;

/// What is said where there are no devices.
const DEMO_HINT: &str =
    if cfg!(feature = "demo") { "; `uverbs demo` shows the command without any" } else { "" };

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  refused or failed, or `check` found something wrong
  2  wrong usage

With --json an error is also printed on stdout, as
  {\"error\": {\"kind\", \"device\", \"step\", \"message\", \"errno\"}}";

/// List RDMA verbs devices, and open exactly the one that was listed.
#[derive(Parser)]
#[command(name = "uverbs", bin_name = "uverbs", version, after_help = EXIT_STATUS, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Open(open::OpenArgs),
    Check(check::CheckArgs),
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    Completions(man::CompletionsArgs),
    Man(man::ManArgs),
}

/// The device that a subcommand is about.
#[derive(Args)]
struct DeviceArg {
    /// NAME, uverbsN, name=NAME, uverbs=N, index=N or guid=GUID
    ///
    /// NAME is the device's name, or that name as `list` prints it, escaped. Scripts use name=NAME: it is a name,
    /// whatever it looks like.
    #[arg(value_name = "DEVICE")]
    device: OsString,
}

impl DeviceArg {
    /// What was asked for. It is parsed here and not by clap, whose errors repeat an argument as it is.
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
    fn wants_json(&self) -> bool {
        match self {
            Self::List(args) => args.json,
            Self::Show(args) => args.json,
            Self::Open(args) => args.json,
            Self::Check(args) => args.json,
            _ => false,
        }
    }

    /// Does it; whether all is well.
    fn run(&self, verbose: bool, out: &mut Out) -> Result<bool, Failure> {
        match self {
            Self::List(args) => list::run(args, verbose, out),
            Self::Show(args) => show::run(args, out),
            Self::Open(args) => open::run(args, out),
            Self::Check(args) => check::run(args, out),
            #[cfg(feature = "demo")]
            Self::Demo(args) => demo::run(args, out),
            Self::Completions(args) => man::completions(args, out),
            Self::Man(args) => man::man(args, out),
        }
    }
}

fn main() -> ExitCode {
    let cli = usage::parse();
    let mut out = Out::default();
    match cli.command.run(cli.verbose, &mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is_usage() => usage::exit(error),
        Err(error) => {
            note(&error);
            if cli.command.wants_json() {
                // What cannot be written is what was just said.
                let _ = out.json(&ErrorJson { error });
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
