//! The command line: parsed, and wrong usage reported without a byte that a terminal would act on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use clap::error::{ContextValue, ErrorKind};
use clap::{Args as _, CommandFactory as _, FromArgMatches as _};

use crate::check::CheckArgs;
use crate::guard::GuardArgs;
use crate::hook::HookArgs;
use crate::list::ListArgs;
use crate::open::OpenArgs;
use crate::output::{Failure, JsonArgs, Out};
use crate::show::ShowArgs;
use crate::wait::WaitArgs;
use crate::{Cli, CommonArgs, ErrorJson, TERM_WIDTH, man};

/// The command line as clap knows it, with the exit statuses of each subcommand in its help.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        let help = man::exit_status_help(&name);
        command = command.mut_subcommand(name, |sub| sub.after_help(help));
    }
    command.after_help(man::exit_status_help(""))
}

/// Adds the arguments of a subcommand.
type Augment = fn(clap::Command) -> clap::Command;

/// The subcommands that programs start again and again.
const OFTEN: [(&str, Augment); 7] = [
    ("list", ListArgs::augment_args),
    ("show", ShowArgs::augment_args),
    ("open", OpenArgs::augment_args),
    ("wait", WaitArgs::augment_args),
    ("check", CheckArgs::augment_args),
    ("hook", HookArgs::augment_args),
    ("guard", GuardArgs::augment_args),
];

/// The command with no subcommand but this one, if it is one of those. It is enough for a command line that begins with
/// its name. Setting up all of them made the start longer by a third and more (`audits/measurements.md`).
fn command_of(name: &OsStr) -> Option<clap::Command> {
    let (name, augment) = OFTEN.into_iter().find(|(known, _)| name == *known)?;
    let alone = clap::Command::new(name).after_help(man::exit_status_help(name));
    let command = clap::Command::new("uverbs").bin_name("uverbs").max_term_width(TERM_WIDTH);
    Some(CommonArgs::augment_args(command).subcommand(augment(alone)))
}

/// Parses the command line of this process. Ends the process for `--help`, `--version` and wrong usage.
pub(crate) fn parse() -> Cli {
    let alone = std::env::args_os().nth(1).and_then(|name| command_of(&name));
    let matches = alone.unwrap_or_else(command).try_get_matches();
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        let error = escape(error);
        if error.use_stderr() && std::env::args_os().skip(1).any(|arg| is_json(&arg)) {
            print_json(&error, &mut Out::default());
        }
        error.exit()
    })
}

/// Ends the process because of the value of an argument. `message` is printed as it is.
pub(crate) fn exit(message: &Failure, json: JsonArgs) -> ! {
    let error = command().error(ErrorKind::ValueValidation, message);
    if json.json {
        print_json(&error, &mut Out::new(json));
    }
    error.exit()
}

/// Prints the first line of an error as a JSON document.
fn print_json(error: &clap::Error, out: &mut Out) {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let error = Failure::usage(line.strip_prefix("error: ").unwrap_or(line));
    // The error is printed on stderr, too.
    let _ = out.json(&ErrorJson { error });
}

/// Whether an argument asks for JSON: `--json`, or `j` among short options.
fn is_json(arg: &OsStr) -> bool {
    match arg.as_bytes() {
        b"--json" => true,
        [b'-', flags @ ..] => {
            flags.contains(&b'j') && flags.iter().all(|flag| b"jpv".contains(flag))
        }
        _ => false,
    }
}

/// Escapes what the error repeats of the command line. Its usage and hints hold none of that but the hint to
/// pass an argument after `--`.
fn escape(mut error: clap::Error) -> clap::Error {
    let context: Vec<_> = error.context().map(|(kind, value)| (kind, value.clone())).collect();
    for (kind, value) in context {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(escaped(&text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| escaped(text)).collect())
            }
            ContextValue::StyledStrs(texts) => ContextValue::StyledStrs(
                texts.iter().map(|text| escaped(&text.to_string()).into()).collect(),
            ),
            // The usage and numbers: nothing in them comes from the command line.
            _ => continue,
        };
        error.insert(kind, value);
    }
    error
}

/// A text whose bytes are printed as those of a device's name are, but for quotation marks.
fn escaped(text: &str) -> String {
    let parts = text.split_inclusive(['\'', '"']).map(|part| {
        let (words, quote) = match part.strip_suffix(['\'', '"']) {
            Some(words) => (words, &part[words.len()..]),
            None => (part, ""),
        };
        format!("{}{quote}", words.as_bytes().escape_ascii())
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotation_marks_alone_are_kept() {
        assert_eq!(escaped("'a\u{1b}[m'\n\"\u{e9}\\"), r#"'a\x1b[m'\n"\xc3\xa9\\"#);
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn a_subcommand_alone_is_as_among_all() {
        for (name, _) in OFTEN {
            let alone = command_of(OsStr::new(name)).expect("known");
            let both = [alone, command()];
            for args in [
                &[name, "--help"][..],
                &[name, "-h"],
                &[name, "--no-such"],
                &["-v", name, "a", "b", "c"],
                &[name, "--json=x", "-v"],
            ] {
                let args = || ["uverbs"].iter().chain(args);
                let results = both.clone().map(|command| {
                    let matches = command.try_get_matches_from(args())?;
                    Cli::from_arg_matches(&matches).map(|cli| cli.common.verbose)
                });
                let [alone, all] = results.map(|result| match result {
                    Ok(is_verbose) => is_verbose.to_string(),
                    Err(error) => error.render().ansi().to_string(),
                });
                assert_eq!(alone, all, "{:?}", args().collect::<Vec<_>>());
            }
        }
        assert!(
            ["", "lis", "list ", "--help", "help"]
                .iter()
                .all(|name| { command_of(OsStr::new(name)).is_none() })
        );
    }

    #[test]
    fn what_asks_for_json() {
        for arg in ["--json", "-j", "-jp", "-vpj"] {
            assert!(is_json(OsStr::new(arg)), "{arg}");
        }
        for arg in ["json", "--json=yes", "-", "--", "-p", "-jx", "--hold"] {
            assert!(!is_json(OsStr::new(arg)), "{arg}");
        }
    }
}
