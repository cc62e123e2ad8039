//! A process whose crowd of contexts and PDs comes and goes around a page of their lists.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::foreign::Foreign;
use crate::{guest, spawn};

/// A number of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Crowd {
    pub(super) contexts: usize,
    pub(super) pds: usize,
}

/// Some of a crowd go while the library is at work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ebb {
    pub(super) crowd: Crowd,
    /// How long after the command the first goes, and how long from one to the next.
    pub(super) delay: Duration,
    pub(super) gap: Duration,
    /// As many come back at once.
    pub(super) comes_back: bool,
}

/// The process, seen from outside.
pub(super) struct Tide {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Tide {
    /// Starts it on the device that a node leads to, without a context.
    pub(super) fn start(node: &str) -> Result<Self> {
        let mut child = Command::new(spawn::exe()?)
            .args(["role", "tide", node])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("stdin")?;
        let answers = BufReader::new(child.stdout.take().context("stdout")?);
        let mut tide = Self { child, commands, answers };
        tide.done()?;
        Ok(tide)
    }

    /// Opens or closes until it has that many. It closes the newest first.
    pub(super) fn fill(&mut self, crowd: Crowd) -> Result<()> {
        ensure!(crowd.contexts > 0 || crowd.pds == 0, "PDs need a context");
        writeln!(self.commands, "fill {} {}", crowd.contexts, crowd.pds)?;
        self.done()
    }

    /// Lets some go, the oldest first, without waiting: [`done`](Self::done) waits.
    pub(super) fn ebb(&mut self, ebb: Ebb) -> Result<()> {
        let Ebb { crowd, delay, gap, comes_back } = ebb;
        let (delay, gap) = (delay.as_micros(), gap.as_micros());
        Ok(writeln!(
            self.commands,
            "ebb {} {} {delay} {gap} {}",
            crowd.contexts,
            crowd.pds,
            u8::from(comes_back)
        )?)
    }

    /// Waits until it has done the last command.
    pub(super) fn done(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line == "done\n", "the tide answered {line:?}");
        Ok(())
    }

    pub(super) fn end(self) -> Result<()> {
        let Self { mut child, commands, answers } = self;
        drop((commands, answers));
        let status = guest::wait(&mut child, Duration::from_secs(60))?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// `role tide NODE`: executes its input, line by line.
pub(crate) fn role(node: &str) -> Result<()> {
    guest::raise_descriptor_limit()?;
    let node = Path::new(node);
    let mut held = Held { node, first: None, contexts: VecDeque::new(), pds: VecDeque::new() };
    println!("done");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| -> Result<usize> {
            Ok(words.get(at).with_context(|| line.clone())?.parse()?)
        };
        match words[0] {
            "fill" => held.fill(number(1)?, number(2)?)?,
            "ebb" => {
                let micros = |at| Ok::<_, anyhow::Error>(Duration::from_micros(number(at)? as u64));
                let crowd = Crowd { contexts: number(1)?, pds: number(2)? };
                let (delay, gap) = (micros(3)?, micros(4)?);
                held.ebb(Ebb { crowd, delay, gap, comes_back: number(5)? != 0 })?;
            }
            _ => bail!("{line:?}"),
        }
        println!("done");
    }
    Ok(())
}

/// What the process holds, oldest first.
struct Held<'a> {
    node: &'a Path,
    /// The oldest context. It has the PDs, and stays as long as any of them.
    first: Option<Foreign>,
    /// The others.
    contexts: VecDeque<Foreign>,
    pds: VecDeque<u32>,
}

impl Held<'_> {
    fn fill(&mut self, contexts: usize, pds: usize) -> Result<()> {
        self.contexts.truncate(contexts.saturating_sub(1));
        if contexts == 0 {
            self.pds.clear();
            self.first = None;
            return Ok(());
        }
        let first = match self.first.take() {
            Some(first) => first,
            None => Foreign::open_at(self.node)?,
        };
        while self.contexts.len() + 1 < contexts {
            self.contexts.push_back(Foreign::open_at(self.node)?);
        }
        while self.pds.len() > pds {
            first.free_pd(self.pds.pop_back().context("no PD")?)?;
        }
        while self.pds.len() < pds {
            self.pds.push_back(first.allocate_pd()?);
        }
        self.first = Some(first);
        Ok(())
    }

    fn ebb(&mut self, ebb: Ebb) -> Result<()> {
        let before = (self.contexts.len() + usize::from(self.first.is_some()), self.pds.len());
        // A sleep would end too late for such a short time.
        let mut at = Instant::now() + ebb.delay;
        for turn in 0..ebb.crowd.contexts.max(ebb.crowd.pds) {
            while Instant::now() < at {
                std::hint::spin_loop();
            }
            at += ebb.gap;
            if turn < ebb.crowd.contexts {
                drop(self.contexts.pop_front());
            }
            if turn < ebb.crowd.pds
                && let (Some(pd), Some(first)) = (self.pds.pop_front(), &self.first)
            {
                first.free_pd(pd)?;
            }
        }
        if ebb.comes_back { self.fill(before.0, before.1) } else { Ok(()) }
    }
}
