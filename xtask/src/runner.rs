//! Runs jobs, some of them at the same time, and shows their progress.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::job::{Job, TIMED_OUT};
use crate::paths;
use crate::progress::{Durations, Left, Screen, Stream, minutes_left, show};

/// The interval between progress messages without a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(300);
/// How many lines before each failure, and at the end, are shown of a failed job's log.
const TAIL: usize = 20;

/// How a job ended.
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) result: Result<()>,
    pub(crate) took: Duration,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.result.is_ok()
    }

    /// Its line in the summary.
    pub(crate) fn line(&self) -> String {
        let Self { name, result, took } = self;
        let seconds = took.as_secs();
        match result {
            Ok(()) => format!("{name}: passed ({seconds} s)"),
            Err(error) => format!("{name}: FAILED ({seconds} s): {error:#}"),
        }
    }
}

/// Runs jobs; each has its log in one directory.
pub(crate) struct Runner {
    logs: PathBuf,
    /// Whether their output is shown, too.
    shows: bool,
    screen: Arc<Screen>,
    durations: Durations,
}

impl Runner {
    /// A runner that keeps the logs in a directory of that name beneath the target directory.
    pub(crate) fn new(logs: &str, shows: bool) -> Result<Self> {
        let logs = paths::target().join(logs);
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        Ok(Self { logs, shows, screen: Arc::new(Screen::new()), durations: Durations::load() })
    }

    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The log of the job with that name.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// What a failed job's log has about its failures.
    pub(crate) fn excerpt(&self, name: &str) -> String {
        failures(&String::from_utf8_lossy(&fs::read(self.log(name)).unwrap_or_default()))
    }

    /// The time that jobs will take, `width` at a time.
    pub(crate) fn expect(&self, jobs: &[Job], width: usize) -> Left {
        let times: Vec<_> = jobs.iter().map(|job| self.durations.get(&job.key())).collect();
        Left::of(&times, width)
    }

    /// Runs jobs, at most `width` at a time. Continues after a failure. `later` is the time for the jobs after
    /// these.
    pub(crate) fn run(
        &mut self,
        jobs: Vec<Job>,
        width: usize,
        later: Left,
    ) -> Result<Vec<Outcome>> {
        let mut waiting = jobs.into_iter();
        let mut running: Vec<Running> = Vec::new();
        let mut outcomes = Vec::new();
        let mut shown = Instant::now();
        loop {
            while running.len() < width.max(1)
                && let Some(job) = waiting.next()
            {
                let expected = self.durations.get(&job.key());
                let last = expected.map(|time| format!(" (took {} last time)", show(time)));
                self.screen.line(&format!("{}{}", job.name, last.unwrap_or_default()));
                let (name, started) = (job.name.clone(), Instant::now());
                match self.start(job, expected) {
                    Ok(one) => running.push(one),
                    Err(error) => {
                        let took = started.elapsed();
                        outcomes.push(Outcome { name, result: Err(error), took });
                    }
                }
            }
            if running.is_empty() {
                break;
            }
            let mut number = 0;
            while number < running.len() {
                let Some(status) = running[number].child.try_wait()? else {
                    number += 1;
                    continue;
                };
                outcomes.push(self.end(running.remove(number), status));
            }
            let rests = running.iter().map(Running::left);
            let rests =
                rests.chain(waiting.as_slice().iter().map(|job| self.durations.get(&job.key())));
            let left = Left::of(&rests.collect::<Vec<_>>(), width).then(later);
            let every =
                if self.screen.is_terminal() { Duration::from_secs(1) } else { PLAIN_EVERY };
            if shown.elapsed() >= every && !running.is_empty() {
                shown = Instant::now();
                let names: Vec<String> = running.iter().map(Running::show).collect();
                let text = format!("{}; {}", names.join(", "), left.show());
                match self.screen.is_terminal() {
                    true => self.screen.status(&text),
                    false => self.screen.line(&text),
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.screen.status("");
        Ok(outcomes)
    }

    fn start(&self, job: Job, expected: Option<Duration>) -> Result<Running> {
        let path = self.log(&job.name);
        let log = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut child = job.bounded().spawn().context("starting it through timeout(1)")?;
        let progress = Arc::new(Mutex::new(String::new()));
        let mut copiers = Vec::new();
        let screen = self.shows.then(|| Arc::clone(&self.screen));
        if let Some(pipe) = child.stdout.take() {
            copiers.push(copy(pipe, Stream::Output, &log, screen.clone(), &progress)?);
        }
        if let Some(pipe) = child.stderr.take() {
            copiers.push(copy(pipe, Stream::Error, &log, screen, &progress)?);
        }
        Ok(Running { job, child, copiers, progress, expected, started: Instant::now() })
    }

    fn end(&mut self, one: Running, status: std::process::ExitStatus) -> Outcome {
        let Running { job, copiers, started, .. } = one;
        let took = started.elapsed();
        let mut result = ended(status, job.limit);
        for copier in copiers {
            if copier.join().is_err() {
                result = result.and(Err(anyhow!("copying its output failed")));
            }
        }
        if result.is_ok() {
            // Only the next run's estimates suffer.
            if let Err(error) = self.durations.note(&job.key(), took) {
                self.screen.line(&format!("{error:#}"));
            }
        } else if !self.shows {
            self.screen.pass(Stream::Error, self.excerpt(&job.name).as_bytes());
        }
        let outcome = Outcome { name: job.name, result, took };
        self.screen.line(&outcome.line());
        outcome
    }
}

/// The lines before each failure, and the last ones.
fn failures(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let ends = lines.iter().enumerate().filter(|(_, line)| line.contains("FAILED"));
    let ends = ends.map(|(number, _)| number + 1).chain([lines.len()]);
    let mut text = String::new();
    let mut shown = 0;
    for end in ends {
        let start = end.saturating_sub(TAIL).max(shown);
        if start > shown {
            text.push_str("[...]\n");
        }
        for line in &lines[start..end] {
            text.push_str(line);
            text.push('\n');
        }
        shown = end;
    }
    text
}

fn ended(status: std::process::ExitStatus, limit: Duration) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(TIMED_OUT) => bail!("timed out: its limit is {} s", limit.as_secs()),
        _ => bail!("{status}"),
    }
}

/// A running job.
struct Running {
    job: Job,
    child: Child,
    copiers: Vec<JoinHandle<()>>,
    /// The last line in which it reported its progress.
    progress: Arc<Mutex<String>>,
    expected: Option<Duration>,
    started: Instant,
}

impl Running {
    fn progress(&self) -> String {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time that it still needs: its own estimate, or the rest of what it took the last time.
    fn left(&self) -> Option<Duration> {
        let by_last = self.expected.map(|time| time.saturating_sub(self.started.elapsed()));
        minutes_left(&self.progress()).or(by_last)
    }

    fn show(&self) -> String {
        let (name, since, progress) =
            (&self.job.name, show(self.started.elapsed()), self.progress());
        match progress.strip_prefix("progress: ").and_then(|rest| rest.split(',').next()) {
            Some(done) => format!("{name} {since} ({done})"),
            None => format!("{name} {since}"),
        }
    }
}

/// Copies a job's output to its log, and to the screen if there is one. If one of them fails, the other still gets
/// it.
fn copy(
    mut from: impl Read + Send + 'static,
    stream: Stream,
    log: &File,
    screen: Option<Arc<Screen>>,
    progress: &Arc<Mutex<String>>,
) -> Result<JoinHandle<()>> {
    let (mut log, progress) = (log.try_clone()?, Arc::clone(progress));
    Ok(thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..length];
            if let Some(screen) = &screen {
                screen.pass(stream, bytes);
            }
            let _ = log.write_all(bytes);
            let text = String::from_utf8_lossy(bytes);
            if let Some(line) = text.lines().rfind(|line| line.starts_with("progress: ")) {
                line.clone_into(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::sink;
    use std::process::Command;

    fn shell(name: &str, script: &str, limit: u64) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job { name: name.to_owned(), command, limit: Duration::from_secs(limit) }
    }

    fn runner(dir: &Path) -> Runner {
        Runner {
            logs: dir.to_owned(),
            shows: false,
            screen: Arc::new(Screen::on(false, Box::new(sink()), Box::new(sink()))),
            durations: Durations::from(dir.join("durations")),
        }
    }

    #[test]
    fn jobs_run_concurrently_and_a_failure_stops_no_other() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut runner = runner(dir.path());
        // Each waits for the other: run one after the other, neither would end.
        let meet = |mine: &str, other: &str| {
            let dir = dir.path().display();
            format!("touch {dir}/{mine}; until test -e {dir}/{other}; do sleep 0.05; done")
        };
        let jobs = vec![
            shell("one", &meet("a", "b"), 60),
            shell("two", &meet("b", "a"), 60),
            shell("fails", "echo why; exit 3", 60),
            shell("last", "echo done", 60),
        ];
        let keys: Vec<String> = jobs.iter().map(Job::key).collect();
        let outcomes = runner.run(jobs, 2, Left::default())?;
        let passed = |name: &str| {
            outcomes.iter().find(|outcome| outcome.name == name).is_some_and(Outcome::passed)
        };
        assert_eq!(["one", "two", "fails", "last"].map(passed), [true, true, false, true]);
        assert_eq!(fs::read_to_string(runner.log("fails"))?, "why\n");
        // The durations of those that passed are known the next time.
        let known = |key: &String| Durations::from(dir.path().join("durations")).get(key).is_some();
        assert_eq!(keys.iter().map(known).collect::<Vec<_>>(), [true, true, false, true]);
        Ok(())
    }

    #[test]
    fn a_job_is_killed_with_all_its_processes() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut runner = runner(dir.path());
        let started = Instant::now();
        // The pipe would stay open as long as the inner process lives.
        let job = shell("hangs", "sh -c 'sleep 60; true'; true", 1);
        let outcomes = runner.run(vec![job], 1, Left::default())?;
        assert!(outcomes.iter().all(|outcome| outcome.line().contains("timed out")));
        assert!(started.elapsed() < Duration::from_secs(30));
        Ok(())
    }

    #[test]
    fn failures_are_shown_with_the_lines_before_them() {
        let mut log: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        log[30] = "scenario a ... FAILED (1.0 s)".to_owned();
        log[35] = "scenario b ... FAILED (1.0 s)".to_owned();
        let shown = failures(&log.join("\n"));
        let expected: Vec<&str> =
            std::iter::once("[...]").chain(log[11..=35].iter().map(String::as_str)).collect();
        assert!(shown.starts_with(&expected.join("\n")), "{shown}");
        assert!(shown.contains("[...]\nline 80\n") && shown.ends_with("line 99\n"), "{shown}");
    }
}
