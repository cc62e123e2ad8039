//! The command line: parsed, and wrong usage reported without a byte that a terminal would act on.

use clap::error::{ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser as _};

use crate::Cli;

/// Parses the command line of this process. Ends the process for `--help`, `--version` and wrong usage.
pub(crate) fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| escape(error).exit())
}

/// Ends the process because of what an argument says. `message` is printed as it is.
pub(crate) fn exit(message: impl std::fmt::Display) -> ! {
    Cli::command().error(ErrorKind::ValueValidation, message).exit()
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
}
