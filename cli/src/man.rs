//! `uverbs man` and `uverbs completions`.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::Cli;
use crate::output::{Failure, Out};

/// Prints the manual page, or writes one for each subcommand.
#[derive(Args)]
pub(crate) struct ManArgs {
    /// Write the pages into this directory, which is made if need be
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Prints the completions for a shell.
#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn man(args: &ManArgs, out: &mut Out) -> Result<bool, Failure> {
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
            .map_err(|error| Failure::os("cannot write the manual pages", &error))?;
        return Ok(true);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|error| Failure::os("cannot make the manual page", &error))?;
    out.bytes(&page)?;
    Ok(true)
}

pub(crate) fn completions(args: &CompletionsArgs, out: &mut Out) -> Result<bool, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "uverbs", &mut script);
    out.bytes(&script)?;
    Ok(true)
}
