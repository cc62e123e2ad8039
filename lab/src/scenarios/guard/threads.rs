//! Two threads of a program list devices at once, while the devices swap names and are replaced.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::hca::add;
use crate::guest;

/// How long the devices change.
const TIME: Duration = Duration::from_secs(12);

/// When a device had the name: from before it may have got it, until after it may have lost it.
struct Named {
    guid: u64,
    from: u64,
    until: u64,
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Changes which device is `tst`, until the time is over. Each device has a GUID of its own.
fn change() -> Result<Vec<Named>> {
    let mut guid = 0xa1;
    let mut named = vec![Named { guid: 0xa0, from: 0, until: u64::MAX }];
    let begin = Instant::now();
    let (mut is, mut other) = (0xa0, 0xa1);
    let mut round = 0;
    while begin.elapsed() < TIME {
        let last = named.len() - 1;
        if round % 4 == 3 {
            // Its driver knows it by the name that it was added under.
            guest::hca(&format!("del-sync guid={is:016x}"))?;
            named[last].until = now();
            guid += 1;
            is = guid;
            named.push(Named { guid, from: now(), until: u64::MAX });
            add("tst", u8::try_from(guid)?)?;
        } else {
            guest::rename("tst", "third")?;
            named[last].until = now();
            named.push(Named { guid: other, from: now(), until: u64::MAX });
            guest::rename("other", "tst")?;
            guest::rename("third", "other")?;
            std::mem::swap(&mut is, &mut other);
        }
        round += 1;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(named)
}

/// Runs the program. Returns how many opens there were, how many were refused, and how many got a wrong device.
fn run(is_guarded: bool) -> Result<(usize, usize, Vec<String>)> {
    const NAME: &str = "ibv-threads";
    const OUTPUT: &str = "/tmp/threads";
    add("tst", 0xa0)?;
    add("other", 0xa1)?;
    let mut command = Command::new(if is_guarded { "uverbs" } else { NAME });
    command.args(is_guarded.then_some(["guard", "--log", "off", "--", NAME]).into_iter().flatten());
    command.arg("tst").stdin(Stdio::piped()).stdout(File::create(OUTPUT)?);
    let mut child = command.spawn().context(NAME)?;
    guest::until("the program to start", || {
        fs::read_to_string(OUTPUT).is_ok_and(|text| text.starts_with("ready"))
    })?;
    let named = change();
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    let named = named?;
    let (mut opened, mut refused, mut wrong) = (0, 0, Vec::new());
    for line in fs::read_to_string(OUTPUT)?.lines().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        let [begin, end, what, value] = words[..] else { anyhow::bail!("{line:?}") };
        if what == "refused" {
            refused += 1;
            continue;
        }
        opened += 1;
        let (begin, end, guid): (u64, u64, u64) =
            (begin.parse()?, end.parse()?, u64::from_str_radix(value, 16)?);
        let is_right = named
            .iter()
            .any(|named| named.guid == guid && named.from <= end && begin <= named.until);
        if !is_right {
            wrong.push(line.to_owned());
        }
    }
    println!(
        "    guarded {is_guarded}: {} devices had the name in turn; {opened} opened, {refused} refused or failed, {} wrong",
        named.len(),
        wrong.len()
    );
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;
    Ok((opened, refused, wrong))
}

/// A program may only get a device that had the name at some time between the beginning of its list and its choice.
pub(in crate::scenarios) fn list_at_once() -> Result<()> {
    let (opened, _, wrong) = run(true)?;
    ensure!(wrong.is_empty(), "{} wrong, such as {:?}", wrong.len(), wrong.first());
    ensure!(opened >= 20, "only {opened} opened");
    let (_, _, wrong) = run(false)?;
    ensure!(!wrong.is_empty(), "without the guard, no wrong device was opened: this shows nothing");
    Ok(())
}
