//! The system calls of a watch, as strace sees them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Change, Host, Registry};

use crate::compare::rename;
use crate::guest;
use crate::spawn::{self, MARK, mark};

const TRACE: &str = "/tmp/trace-watch";

/// The system calls of a role's first thread between two of its marks.
pub(super) struct Part {
    pub(super) lines: Vec<String>,
}

impl Part {
    pub(super) fn count(&self, word: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(word)).count()
    }
}

pub(super) struct Trace {
    pub(super) parts: Vec<Part>,
    output: String,
}

impl Trace {
    /// Runs a role under strace, behind a program that starts it.
    pub(super) fn of(before: &[&str], role: &str) -> Result<Self> {
        let strace = ["strace", "-f", "-o", TRACE];
        let exe = spawn::exe()?;
        let words = [before, &strace, &[&exe, "role", role]].concat();
        let output = guest::stdout(words[0], &words[1..])?;
        let trace = fs::read_to_string(TRACE)?;
        let is_mark = |line: &&str| line.contains("write(2, ") && line.contains(MARK);
        let first = trace.lines().find(is_mark).context("no mark in the trace")?;
        let thread = first.split(' ').next().context("no thread")?;
        let mut parts: Vec<Part> = Vec::new();
        for line in trace.lines().filter(|line| line.split(' ').next() == Some(thread)) {
            if is_mark(&line) {
                parts.push(Part { lines: Vec::new() });
            } else if let Some(part) = parts.last_mut()
                && !line.contains(" resumed>")
            {
                part.lines.push(line.to_owned());
            }
        }
        // After the last mark.
        parts.pop();
        Ok(Self { parts, output })
    }

    /// A number that the role has printed.
    pub(super) fn value(&self, name: &str) -> Result<u64> {
        let line = self.output.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name} in {}", self.output))?.trim().parse()?)
    }
}

/// How many sweeps are in a part, if another part is one sweep.
pub(super) fn sweeps(part: &Part, one: &Part) -> Result<u64> {
    let directories = one.count("getdents64(");
    ensure!(directories > 0, "a sweep reads no directory: {:?}", one.lines);
    Ok(part.count("getdents64(").div_ceil(directories) as u64)
}

/// How many lists the role makes one after the other.
const LISTS: usize = 10;

const IDLE: Duration = Duration::from_secs(20);

/// The role `watch-idle`. Another thread changes the devices.
pub(crate) fn idle_role() -> Result<()> {
    let unwatched = Registry::new(Host::open()?);
    let registry = Registry::new(Host::open()?);
    let index = unwatched.devices()?.by_name("tst0")?.index()?;
    let mut watch = registry.watch()?;
    ensure!(watch.wait(Some(Duration::from_millis(50)))?.is_none());
    let later = |act: Box<dyn FnOnce() -> Result<()> + Send>| {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            act()
        })
    };
    mark();
    unwatched.devices()?;
    mark();
    for _ in 0..LISTS {
        registry.devices()?;
        mark();
    }
    let change = watch.wait(Some(IDLE))?;
    mark();
    ensure!(change.is_none(), "{change:?}");
    let adding = later(Box::new(|| guest::hca("add name=new guid=00000000000000b0")));
    mark();
    let mut seen = Vec::new();
    while !seen.iter().any(|change| matches!(change, Change::Ready { .. })) {
        seen.push(watch.wait(Some(IDLE))?.context("not ready")?);
    }
    // Until it would wait again.
    ensure!(watch.wait(Some(Duration::from_millis(30)))?.is_none());
    mark();
    adding.join().expect("no panic")?;
    ensure!(seen.len() == 2, "{seen:?}");
    let renaming = later(Box::new(move || {
        rename(index, "other")?.map_err(std::io::Error::from_raw_os_error)?;
        Ok(())
    }));
    mark();
    let seen = watch.wait(Some(IDLE))?;
    ensure!(watch.wait(Some(Duration::from_millis(30)))?.is_none());
    mark();
    renaming.join().expect("no panic")?;
    ensure!(matches!(seen, Some(Change::Renamed { .. })), "{seen:?}");
    let removing = later(Box::new(|| guest::hca("del-sync name=new")));
    mark();
    let seen = watch.wait(Some(IDLE))?;
    ensure!(watch.wait(Some(Duration::from_millis(30)))?.is_none());
    mark();
    removing.join().expect("no panic")?;
    ensure!(matches!(seen, Some(Change::Removed { .. })), "{seen:?}");
    mark();
    Ok(())
}

/// How many system calls a watch makes when nothing happens, for each event, and for a list.
pub(in crate::scenarios) fn idle() -> Result<()> {
    for devices in [1, 8] {
        guest::hca(&format!("add name=tst guid=00000000000000a0 count={devices}"))?;
        let trace = Trace::of(&[], "watch-idle")?;
        let parts = &trace.parts[..];
        let (Some((sweep, rest)), true) = (parts.split_first(), parts.len() > LISTS) else {
            bail!("{} parts", parts.len());
        };
        let (lists, rest) = rest.split_at(LISTS);
        let [idle, _, add, _, renamed, _, removed, _] = rest else {
            bail!("{} parts", parts.len());
        };
        let minute = 60 / IDLE.as_secs();
        let calls = |part: &Part| part.lines.len();
        let swept = sweeps(idle, sweep)? * minute;
        println!(
            "    {devices} devices: a sweep {} calls; idle {} calls a minute, {swept} sweeps; added and ready {}, renamed {}, removed {}; lists one after the other {:?}",
            calls(sweep),
            calls(idle) as u64 * minute,
            calls(add),
            calls(renamed),
            calls(removed),
            lists.iter().map(calls).collect::<Vec<_>>(),
        );
        let most = 33 * (calls(sweep) as u64 + 8);
        ensure!(calls(idle) as u64 * minute <= most, "an idle watch spins: {:?}", idle.lines);
        ensure!(swept <= 33, "{swept} sweeps a minute");
        // The event of the uverbs device, that of the RDMA device, and what is due anyway if the clock jumps.
        for (what, part, events) in
            [("add", add, 5), ("rename", renamed, 4), ("remove", removed, 5)]
        {
            let found = sweeps(part, sweep)?;
            ensure!((1..=events).contains(&found), "{what}: {found} sweeps: {:#?}", part.lines);
        }
        // A list is current for a second, and the clock of the guest may jump.
        let single = lists.iter().filter(|part| calls(part) == 1).count();
        ensure!(single >= LISTS / 2, "a list while nothing happens: {:?}", lists[1].lines);
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
    }
    Ok(())
}

/// How often the role writes.
const WRITES: usize = 50;

/// The role `watch-synthetic`: root has the kernel repeat an event.
pub(crate) fn synthetic_role() -> Result<()> {
    let unwatched = Registry::new(Host::open()?);
    let registry = Registry::new(Host::open()?);
    unwatched.devices()?;
    let mut watch = registry.watch()?;
    ensure!(watch.wait(Some(Duration::from_millis(50)))?.is_none());
    let writing = std::thread::spawn(|| -> Result<()> {
        for _ in 0..WRITES {
            fs::write("/sys/class/infiniband_verbs/uverbs0/uevent", "add")?;
        }
        Ok(())
    });
    mark();
    unwatched.devices()?;
    mark();
    let began = Instant::now();
    let mut change = None;
    while began.elapsed() < Duration::from_millis(500) || !writing.is_finished() {
        change = change.or(watch.wait(Some(Duration::from_millis(20)))?);
    }
    let elapsed = began.elapsed();
    mark();
    writing.join().expect("no panic")?;
    ensure!(change.is_none(), "{change:?}");
    println!("elapsed {}", elapsed.as_millis());
    Ok(())
}

/// Events that root has the kernel repeat are genuine, but nothing has happened: no change is reported.
pub(in crate::scenarios) fn synthetic() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=4")?;
    let trace = Trace::of(&[], "watch-synthetic")?;
    let [sweep, part] = &trace.parts[..] else { bail!("{} parts", trace.parts.len()) };
    let (sweeps, elapsed) = (sweeps(part, sweep)?, trace.value("elapsed")?);
    println!("    {WRITES} repeated events in {elapsed} ms: {sweeps} sweeps, no change");
    ensure!(sweeps >= 1, "the events did not arrive");
    ensure!(sweeps <= elapsed / 10 + 1, "more than a hundred sweeps a second");
    Ok(())
}
