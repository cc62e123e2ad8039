//! How soon a watch reports what has happened, compared in the same run with a program that prints uevents: from the
//! moment at which the command is given that changes something.
//!
//! That program is `udevadm monitor --kernel` if the guest has it (`cargo xtask lab run --add`), which prints the
//! monotonic time at which it has received an event. A reader in this program does the same: it receives an event,
//! takes the time and prints.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
};
use rustix::time::{ClockId, clock_gettime};
use uverbs::{Change, Host, Registry};

use crate::compare::rename;
use crate::guest;

/// How long after a change the next one follows: longer than the least time between two sweeps.
const PAUSE: Duration = Duration::from_millis(60);
/// How long all receivers may take.
const LIMIT: Duration = Duration::from_secs(10);

/// At one device, a watch may take this many times as long as `udevadm`, from the command to the median.
const TARGET: f64 = 2.0;

type Micros = u64;

fn now() -> Micros {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1000
}

/// Something that a receiver has got: the change, and the time.
type Got = (String, Micros);

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut most, mut rounds) = (1000, 200);
    for pair in args.chunks(2) {
        match *pair {
            ["--most", number] => most = number.parse().context("--most")?,
            ["--rounds", number] => rounds = number.parse().context("--rounds")?,
            _ => bail!("usage: uverbs-lab latency [--most DEVICES] [--rounds N]"),
        }
    }
    guest::clean()?;
    println!("kernel {}, microseconds from the command: median, 99th percentile", guest::release());
    let mut there = 0;
    let mut failures = Vec::new();
    for devices in [1, 1000] {
        if devices > most {
            break;
        }
        let (more, guid) = (devices - there, 0x10000 + there);
        guest::hca(&format!("add name=base{there}_ guid={guid:016x} count={more}"))?;
        there = devices;
        failures.extend(measure(devices, rounds)?);
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The receivers, each with a channel of its own.
struct Receivers {
    all: Vec<(&'static str, Receiver<Got>, HashMap<String, Micros>)>,
    udevadm: Option<Child>,
}

impl Receivers {
    fn start() -> Result<Self> {
        let (watch, reader) = (start(follow)?, start(read)?);
        let mut all = vec![("watch", watch), ("reader", reader)];
        let mut udevadm = None;
        let program = Command::new("udevadm")
            .args(["monitor", "--kernel", "--subsystem-match=infiniband_verbs"])
            .args(["--subsystem-match=infiniband"])
            .stdout(Stdio::piped())
            .spawn();
        match program {
            Ok(mut child) => {
                let output = BufReader::new(child.stdout.take().context("stdout")?);
                let (sender, receiver) = channel();
                std::thread::spawn(move || {
                    for line in output.lines().map_while(|line| line.ok()) {
                        if let Some(got) = printed(&line)
                            && sender.send(got).is_err()
                        {
                            break;
                        }
                    }
                });
                all.push(("udevadm", receiver));
                udevadm = Some(child);
                std::thread::sleep(Duration::from_secs(2));
            }
            Err(error) => println!("no udevadm ({error}): compared with the reader"),
        }
        let all = all.into_iter().map(|(name, got)| (name, got, HashMap::new())).collect();
        Ok(Self { all, udevadm })
    }

    /// Waits until all have got a change. Returns when each has.
    fn wait(&mut self, wanted: &str) -> Result<Vec<Micros>> {
        let mut times = Vec::new();
        for (name, receiver, early) in &mut self.all {
            let at = loop {
                if let Some(at) = early.remove(wanted) {
                    break at;
                }
                let got = receiver.recv_timeout(LIMIT);
                let (what, at) = got.with_context(|| format!("{name} did not get {wanted}"))?;
                early.insert(what, at);
            };
            early.clear();
            times.push(at);
        }
        Ok(times)
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        if let Some(child) = &mut self.udevadm {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a receiver on a thread of its own. It ends with the process, or when nobody wants more.
fn start(receive: fn(&Sender<Option<Got>>) -> Result<()>) -> Result<Receiver<Got>> {
    let (sender, receiver) = channel();
    let (forward, got) = channel();
    std::thread::spawn(move || {
        if let Err(error) = receive(&sender) {
            eprintln!("{error:?}");
        }
    });
    // The first one is not a change: it listens.
    ensure!(receiver.recv()?.is_none());
    std::thread::spawn(move || {
        while let Ok(Some(change)) = receiver.recv() {
            if forward.send(change).is_err() {
                break;
            }
        }
    });
    Ok(got)
}

fn follow(sender: &Sender<Option<Got>>) -> Result<()> {
    let registry = Registry::new(Host::open()?);
    let mut watch = registry.watch()?;
    sender.send(None)?;
    loop {
        let Some(change) = watch.wait(None)? else { continue };
        let at = now();
        let what = match &change {
            Change::Added { device, .. } | Change::Replaced { new: device, .. } => {
                format!("add uverbs{}", device.uverbs_number())
            }
            Change::Ready { device, .. } => format!("ready uverbs{}", device.uverbs_number()),
            Change::Renamed { to, .. } => format!("move {to}"),
            Change::Removed { device, .. } => format!("remove uverbs{}", device.uverbs_number()),
            _ => continue,
        };
        if sender.send(Some((what, at))).is_err() {
            return Ok(());
        }
    }
}

/// Receives events and prints them, as `udevadm monitor` does.
fn read(sender: &Sender<Option<Got>>) -> Result<()> {
    let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::RAW, flags, Some(netlink::KOBJECT_UEVENT))?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
    let mut output = File::create("/dev/null")?;
    sender.send(None)?;
    let mut buffer = [0; 8192];
    loop {
        let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        if !text.contains("SUBSYSTEM=infiniband") {
            continue;
        }
        let header = text.split('\0').next().unwrap_or_default();
        let at = now();
        writeln!(output, "KERNEL[{at}] {header}")?;
        let Some((action, path)) = header.split_once('@') else { continue };
        let name = path.rsplit('/').next().unwrap_or_default();
        if sender.send(Some((format!("{action} {name}"), at))).is_err() {
            return Ok(());
        }
    }
}

/// Reads a line of udevadm: `KERNEL[12.345678] add /devices/… (infiniband_verbs)`.
fn printed(line: &str) -> Option<Got> {
    let (time, rest) = line.strip_prefix("KERNEL[")?.split_once(']')?;
    let (seconds, micros) = time.split_once('.')?;
    let at = seconds.trim().parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    let mut words = rest.split_whitespace();
    let (action, path) = (words.next()?, words.next()?);
    Some((format!("{action} {}", path.rsplit('/').next()?), at))
}

fn measure(devices: usize, rounds: usize) -> Result<Vec<String>> {
    let mut receivers = Receivers::start()?;
    let names: Vec<_> = receivers.all.iter().map(|(name, ..)| *name).collect();
    let uverbs = format!("uverbs{devices}");
    // What each round measures, for each receiver; and when the watch has reported the new device ready.
    let mut times = [0; 3].map(|_| vec![Vec::new(); names.len()]);
    let (mut ready, mut apart) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // The last one is a rename, whose event follows the command at once.
        let renamed = format!("renamed{round}");
        let mut act = |which: usize, wanted: &str, command: &dyn Fn() -> Result<()>| {
            std::thread::sleep(PAUSE);
            let began = now();
            command()?;
            let got = receivers.wait(wanted)?;
            for (times, at) in times[which].iter_mut().zip(&got) {
                times.push(at.saturating_sub(began));
            }
            if which == 0 {
                apart.push(got[0].saturating_sub(got[1]));
                let (_, receiver, early) = &mut receivers.all[0];
                let wanted = format!("ready {uverbs}");
                let at = match early.remove(&wanted) {
                    Some(at) => at,
                    None => loop {
                        let (what, at) = receiver.recv_timeout(LIMIT).context("not ready")?;
                        if what == wanted {
                            break at;
                        }
                    },
                };
                ready.push(at.saturating_sub(began));
            }
            anyhow::Ok(())
        };
        act(0, &format!("add {uverbs}"), &|| guest::hca("add name=new guid=00000000000000b0"))?;
        let index: u32 = guest::hca_value("new", "index")?.parse()?;
        act(1, &format!("move {renamed}"), &|| {
            rename(index, &renamed)?.map_err(std::io::Error::from_raw_os_error)?;
            Ok(())
        })?;
        act(2, &format!("remove {uverbs}"), &|| guest::hca("del-sync name=new"))?;
    }
    let [added, moved, removed] = &mut times;
    let mut failures = Vec::new();
    for (what, times) in [("added", added), ("renamed", moved), ("removed", removed)] {
        let mut medians = Vec::new();
        for (name, times) in names.iter().zip(times.iter_mut()) {
            let [median, late] = quantiles(times);
            println!("{devices:5} devices  {what:8} {name:8} {median:8} {late:8}");
            medians.push(median as f64);
        }
        let peer = names.len() - 1;
        let ratio = medians[0] / medians[peer].max(1.0);
        println!(
            "{devices:5} devices  {what:8} the watch takes {ratio:.2} times as long as {}",
            names[peer]
        );
        if devices == 1 && what == "added" && ratio > TARGET {
            failures.push(format!("{what}: {ratio:.2} times as long, more than {TARGET}"));
        }
    }
    let [median, late] = quantiles(&mut ready);
    println!("{devices:5} devices  {:8} {:8} {median:8} {late:8}", "ready", "watch");
    let [median, late] = quantiles(&mut apart);
    println!("{devices:5} devices  added: the watch later than the reader by {median}, {late}");
    Ok(failures)
}

/// The median and the 99th percentile.
fn quantiles(times: &mut [Micros]) -> [Micros; 2] {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len().saturating_sub(1) * part / 100).copied();
    [at(50), at(99)].map(Option::unwrap_or_default)
}
