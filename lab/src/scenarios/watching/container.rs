//! A watch in a container: a network namespace that belongs to a user namespace of its own. The kernel sends no
//! uevents of verbs devices there (`uevent_net_broadcast_untagged`), but root of the container may forge some.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Host, Registry};

use super::clock::{Clock, Reader, Time};
use super::counted::{Trace, sweeps};
use super::wire::Forger;
use crate::guest;
use crate::spawn::{self, mark};

/// How a role is started in a container.
const CONTAINER: [&str; 4] = ["--user", "--map-root-user", "--net", "--"];

/// The longest time from one safety sweep to the next, and the same once it is known that events are missing.
const SAFETY: Duration = Duration::from_secs(2);
const DEAF: Duration = Duration::from_millis(500);
/// What the emulated machine may add.
const SLACK: Duration = Duration::from_millis(400);

/// The role `watch-follow`: prints the changes until its input ends.
pub(crate) fn follow_role() -> Result<()> {
    let registry = Registry::new(Host::open()?);
    let mut watch = registry.watch()?;
    println!("watching");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    loop {
        if let Some(change) = watch.wait(None)? {
            println!("{change}");
        }
    }
}

/// A role in a container, and what it prints.
struct Contained {
    child: Child,
    lines: Receiver<(Time, String)>,
}

impl Contained {
    fn start(clock: Reader) -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(CONTAINER)
            .args([&spawn::exe()?, "role", "watch-follow"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(|line| line.ok()) {
                let _ = sender.send((clock.now(), line));
            }
        });
        let contained = Self { child, lines };
        contained.line("watching")?;
        Ok(contained)
    }

    /// The next line that contains a word, and how many others came first.
    fn line(&self, word: &str) -> Result<(Time, Vec<String>)> {
        let mut others = Vec::new();
        loop {
            let (at, line) = self
                .lines
                .recv_timeout(Duration::from_secs(60))
                .with_context(|| format!("{word:?} did not come after {others:?}"))?;
            if line.contains(word) {
                return Ok((at, others));
            }
            others.push(line);
        }
    }

    fn end(mut self) -> Result<Vec<String>> {
        drop(self.child.stdin.take());
        guest::wait(&mut self.child, Duration::from_secs(10))?;
        Ok(self.lines.iter().map(|(_, line)| line).collect())
    }
}

/// In shared mode the kernel gives every network namespace a double of each RDMA device (`add_one_compat_dev`, Linux
/// 5.1), and sends its events there. The watch follows those.
pub(in crate::scenarios) fn events_of_doubles() -> Result<()> {
    let followed = follow_there()?;
    ensure!(followed.missing <= 1, "{followed:?}");
    followed.in_time()
}

/// In exclusive mode no event comes. Changes are found within the safety interval, and sooner once it is clear that
/// none come.
pub(in crate::scenarios) fn without_events() -> Result<()> {
    guest::run("rdma", &["system", "set", "netns", "exclusive"])?;
    let followed = follow_there();
    // The kernel refuses while the namespace is being deleted.
    guest::until("shared again", || {
        guest::run("rdma", &["system", "set", "netns", "shared"]).is_ok()
    })?;
    let followed = followed?;
    ensure!(followed.missing == 1, "{followed:?}");
    followed.in_time()
}

/// What a watch in a container has reported.
#[derive(Debug)]
struct Followed {
    /// How long each change took, and whether it was known then that events are missing.
    took: Vec<(bool, Duration)>,
    /// How many times it reported that.
    missing: usize,
}

impl Followed {
    fn in_time(&self) -> Result<()> {
        for (is_deaf, time) in &self.took {
            let limit = if *is_deaf { DEAF } else { SAFETY };
            ensure!(*time <= limit + SLACK, "{time:?}, not within {limit:?}");
        }
        Ok(())
    }
}

fn follow_there() -> Result<Followed> {
    guest::hca("add name=old guid=00000000000000a0")?;
    let clock = Clock::start();
    let contained = Contained::start(clock.reader())?;
    let is_missing = |line: &&String| line.contains("do not arrive");
    let (mut missing, mut others, mut took) = (0, Vec::new(), Vec::new());
    for round in 0..6 {
        let name = format!("new{round}");
        for (command, word) in [
            (format!("add name={name} guid=00000000000000b0"), format!("{name} (uverbs1): added")),
            (format!("del-sync name={name}"), format!("{name} (uverbs1): removed")),
        ] {
            guest::hca(&command)?;
            // From the end of the command: the kernel itself takes its time.
            let done = clock.reader().now();
            let (at, before) = contained.line(&word)?;
            took.push((missing > 0, at.usable_since(&done)));
            missing += before.iter().filter(is_missing).count();
            others.extend(before);
            // Not in step with the sweeps.
            std::thread::sleep(Duration::from_millis(130 * round));
        }
    }
    std::thread::sleep(SAFETY);
    let rest = contained.end()?;
    missing += rest.iter().filter(is_missing).count();
    let ready = others.iter().chain(&rest).filter(|line| line.contains("ready")).count();
    println!("    reported after (events known to be missing, time): {took:?}");
    println!("    events missing reported {missing} times; {ready} of 6 devices became ready");
    Ok(Followed { took, missing })
}

/// How many messages of each kind are forged.
const MESSAGES: usize = 50;

/// The role `watch-forged`: root of a container forges messages to itself.
pub(crate) fn forge_role() -> Result<()> {
    let unwatched = Registry::new(Host::open()?);
    let registry = Registry::new(Host::open()?);
    let mut watch = registry.watch()?;
    let mut changes = Vec::new();
    let mut look = |limit: Duration| -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(change) = watch.wait(Some(Duration::from_millis(10)))? {
                changes.push(change.to_string());
            }
        }
        Ok(())
    };
    unwatched.devices()?;
    let forger = Forger::new()?;
    look(Duration::from_millis(200))?;
    mark();
    unwatched.devices()?;
    mark();
    let began = Instant::now();
    for message in 0..MESSAGES {
        forger.through_the_kernel()?;
        forger.to_the_group()?;
        if message % 10 == 0 {
            look(Duration::from_millis(20))?;
        }
    }
    look(Duration::from_millis(100))?;
    let elapsed = began.elapsed();
    mark();
    println!("elapsed {}", elapsed.as_millis());
    let others = changes.iter().filter(|change| !change.contains("do not arrive"));
    ensure!(others.count() == 0, "{changes:?}");
    Ok(())
}

/// Messages forged by root of a container cause no sweep, and no change.
pub(in crate::scenarios) fn forged() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=4")?;
    let trace = Trace::of(&[&["unshare"][..], &CONTAINER].concat(), "watch-forged")?;
    let [sweep, forged] = &trace.parts[..] else { bail!("{} parts", trace.parts.len()) };
    // strace takes what was received for a netlink message, so the text does not show.
    let received = forged.lines.iter().filter(|line| {
        let length = line.rsplit(" = ").next().and_then(|result| result.parse::<usize>().ok());
        line.contains("recvmsg(") && length.is_some_and(|length| length > 0)
    });
    let received = received.count();
    let elapsed = trace.value("elapsed")?;
    let sweeps = sweeps(forged, sweep)?;
    let safety = elapsed / SAFETY.as_millis() as u64 + 1;
    println!(
        "    {received} forged messages received in {elapsed} ms, {sweeps} sweeps; {safety} may be due anyway"
    );
    ensure!(received >= 2 * MESSAGES, "they did not arrive");
    ensure!(sweeps <= safety, "forged messages cause sweeps");
    Ok(())
}
