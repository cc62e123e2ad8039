//! The progress of long runs: one line that is rewritten on a terminal, plain lines elsewhere, and the remaining
//! time, estimated from how long each job took the last time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths;

/// How long each job took when it last passed.
pub(crate) struct Durations {
    file: PathBuf,
    seconds: BTreeMap<String, u64>,
}

impl Durations {
    /// The remembered durations; empty if there is no such file.
    pub(crate) fn load() -> Self {
        Self::from(paths::target().join("xtask-durations.tsv"))
    }

    /// The durations in a file.
    pub(crate) fn from(file: PathBuf) -> Self {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.rsplit_once('\t'));
        let seconds =
            lines.filter_map(|(key, seconds)| Some((key.to_owned(), seconds.parse().ok()?)));
        Self { seconds: seconds.collect(), file }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Duration> {
        self.seconds.get(key).copied().map(Duration::from_secs)
    }

    /// Remembers one duration.
    pub(crate) fn note(&mut self, key: &str, took: Duration) -> Result<()> {
        self.seconds.insert(key.to_owned(), took.as_secs());
        let lines = self.seconds.iter().map(|(key, seconds)| format!("{key}\t{seconds}\n"));
        fs::write(&self.file, lines.collect::<String>())
            .with_context(|| format!("writing {}", self.file.display()))
    }
}

/// The remaining time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) time: Duration,
    /// The number of jobs with unknown durations.
    pub(crate) unknown: usize,
}

impl Left {
    /// For jobs that run `width` at a time, from the remaining time of each. An overdue job has none left.
    pub(crate) fn of(rests: &[Option<Duration>], width: usize) -> Self {
        let known: Vec<Duration> = rests.iter().copied().flatten().collect();
        let longest = known.iter().copied().max().unwrap_or_default();
        let shared = known.iter().sum::<Duration>() / u32::try_from(width.max(1)).unwrap_or(1);
        Self { time: longest.max(shared), unknown: rests.len() - known.len() }
    }

    /// Adds the time of the jobs that come after it.
    pub(crate) fn then(self, later: Self) -> Self {
        Self { time: self.time + later.time, unknown: self.unknown + later.unknown }
    }

    pub(crate) fn show(self) -> String {
        let time = show(self.time);
        match (self.unknown, self.time.is_zero()) {
            (0, true) => "nearly done".to_owned(),
            (0, false) => format!("about {time} left"),
            (1, true) => "time left unknown".to_owned(),
            (unknown, true) => format!("time left unknown for {unknown} jobs"),
            (1, false) => format!("at least {time} left (one job was never timed)"),
            (unknown, false) => format!("at least {time} left ({unknown} jobs were never timed)"),
        }
    }
}

/// A duration, rounded to a sensible precision.
pub(crate) fn show(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// The remaining minutes in a job's own progress line: `progress: 500/2000 executions, 12 min left`.
pub(crate) fn minutes_left(line: &str) -> Option<Duration> {
    let (_, rest) = line.strip_prefix("progress: ")?.rsplit_once(", ")?;
    let minutes: u64 = rest.strip_suffix(" min left")?.parse().ok()?;
    Some(Duration::from_secs(60 * minutes))
}

/// The destination of output and progress.
pub(crate) struct Screen {
    is_terminal: bool,
    state: Mutex<State>,
}

struct State {
    output: Box<dyn Write + Send>,
    error: Box<dyn Write + Send>,
    /// The line at the bottom; empty if there is none.
    status: String,
    /// Whether the text above it ends with a line feed.
    at_start: bool,
}

/// One of the two standard streams.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Output,
    Error,
}

/// Clears the cursor's line.
const CLEAR: &str = "\r\x1b[K";

impl Screen {
    /// The standard streams.
    pub(crate) fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self::on(is_terminal, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Other streams.
    pub(crate) fn on(
        is_terminal: bool,
        output: Box<dyn Write + Send>,
        error: Box<dyn Write + Send>,
    ) -> Self {
        let state = State { output, error, status: String::new(), at_start: true };
        Self { is_terminal, state: Mutex::new(state) }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Rewrites the line at the bottom of a terminal. An empty text clears it.
    pub(crate) fn status(&self, text: &str) {
        if !self.is_terminal {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { error, status, at_start, .. } = &mut *state;
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
        // A terminal that does not know its size reports 0.
        let columns = if columns == 0 { 80 } else { usize::from(columns) };
        *status = text.chars().take(columns - 1).collect();
        if *at_start {
            let _ = write!(error, "{CLEAR}{status}").and_then(|()| error.flush());
        }
    }

    /// Passes on a job's output, above the status. It is not an error if nobody reads it any more.
    pub(crate) fn pass(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { output, error, status, at_start } = &mut *state;
        let has_status = self.is_terminal && !status.is_empty();
        if has_status && *at_start {
            let _ = write!(error, "{CLEAR}").and_then(|()| error.flush());
        }
        let to = match stream {
            Stream::Output => output,
            Stream::Error => &mut *error,
        };
        let _ = to.write_all(bytes).and_then(|()| to.flush());
        *at_start = bytes.ends_with(b"\n");
        if has_status && *at_start {
            let _ = write!(error, "{status}").and_then(|()| error.flush());
        }
    }

    /// Prints one line of this program.
    pub(crate) fn line(&self, text: &str) {
        self.pass(Stream::Error, format!("xtask: {text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Everything that was written, in order.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The output when a job prints a line in two parts while there is a status.
    fn written(is_terminal: bool) -> String {
        let written = Written::default();
        let screen = Screen::on(is_terminal, Box::new(written.clone()), Box::new(written.clone()));
        screen.status("one");
        screen.pass(Stream::Output, b"half ");
        screen.status("two");
        screen.pass(Stream::Output, b"a line\n");
        screen.status("");
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn the_status_stays_below_the_output() {
        let shown = written(true).replace(CLEAR, "<");
        // In the middle of a line, the status is not shown.
        assert_eq!(shown, "<one<half a line\ntwo<");
        assert_eq!(written(false), "half a line\n");
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn the_time_left_is_shared_by_as_many_as_run() {
        let rests = [minutes(10), minutes(20), minutes(30)].map(Some);
        assert_eq!(Left::of(&rests, 1).time, minutes(60));
        assert_eq!(Left::of(&rests, 2).time, minutes(30));
        // A job is not faster when others run at the same time.
        assert_eq!(Left::of(&[Some(minutes(50)), Some(minutes(2))], 2).time, minutes(50));
        let unknown = Left::of(&[Some(minutes(5)), None], 2);
        assert_eq!(unknown, Left { time: minutes(5), unknown: 1 });
        let both = unknown.then(Left::of(&rests, 1));
        assert_eq!(both.show(), "at least 1 h 5 min left (one job was never timed)");
    }

    #[test]
    fn a_jobs_own_estimate_is_parsed() {
        let line = "progress: 500/2000 executions, 12 min left";
        assert_eq!(minutes_left(line), Some(minutes(12)));
        assert_eq!(minutes_left("progress: 500/2000 executions"), None);
        assert_eq!(minutes_left("12 min left"), None);
    }

    #[test]
    fn durations_are_shown_in_the_unit_that_matters() {
        let shown = [9, 61, 3600, 7379].map(|seconds| show(Duration::from_secs(seconds)));
        assert_eq!(shown, ["9 s", "1 min", "1 h 0 min", "2 h 2 min"]);
    }
}
