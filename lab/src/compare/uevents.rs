//! Which uevents the two kernels send: their order, their keys, and the values that can be compared.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
};

use super::nldev::Elsewhere;
use super::real::Real;
use super::script::{self, Setup};
use super::show::show;
use super::side::{Side, Simulated};
use crate::guest;

/// Something that sends uevents.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Add,
    Rename,
    /// To another network namespace, and back.
    ChangeNamespace,
    ReloadUverbs,
    Remove,
}

/// Where the events of a step come from.
trait Heard {
    /// The events since the last time, each as its fields.
    fn events(&mut self) -> Result<Vec<Vec<String>>>;
}

/// The real kernel's broadcast.
struct Broadcast(OwnedFd);

impl Broadcast {
    fn new() -> Result<Self> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::RAW, flags, Some(netlink::KOBJECT_UEVENT))?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
        Ok(Self(socket))
    }
}

impl Heard for Broadcast {
    fn events(&mut self) -> Result<Vec<Vec<String>>> {
        // What follows a command without the command waiting for it.
        std::thread::sleep(Duration::from_millis(100));
        let (mut events, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, len)) => {
                    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                    events
                        .push(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect());
                }
                Err(Errno::AGAIN) => return Ok(events),
                Err(errno) => return Err(errno).context("recv(uevents)"),
            }
        }
    }
}

/// The simulated kernel's record.
struct Recorded(uverbs::sim::Machine);

impl Heard for Recorded {
    fn events(&mut self) -> Result<Vec<Vec<String>>> {
        let sent = self.0.sent_uevents();
        self.0.record_uevents(true);
        Ok(sent.iter().map(|text| text.split(' ').map(str::to_owned).collect()).collect())
    }
}

/// An event without what differs: paths and sequence numbers. `None` for those of other subsystems.
fn comparable(fields: &[String]) -> Option<String> {
    let value = |key: &str| {
        let mut fields = fields.iter().filter_map(|field| field.split_once('='));
        fields.find(|(found, _)| *found == key).map(|(_, value)| value)
    };
    if !matches!(value("SUBSYSTEM"), Some("infiniband" | "infiniband_verbs")) {
        return None;
    }
    let header = fields.first()?.split('@').next()?;
    let shown = fields[1..].iter().map(|field| match field.split_once('=') {
        Some((key @ ("DEVPATH" | "DEVPATH_OLD" | "SEQNUM"), _)) => key,
        _ => field,
    });
    Some(format!("{header}@ {}", shown.collect::<Vec<_>>().join(" ")))
}

/// Plays the causes on one side.
fn play(side: &mut dyn Side, heard: &mut dyn Heard, causes: &[Cause]) -> Result<Vec<String>> {
    heard.events()?;
    let mut record = Vec::new();
    for (round, cause) in causes.iter().enumerate() {
        let last = side.devices().saturating_sub(1);
        let outcome = match cause {
            Cause::Add => side.add(&format!("u{round}"), 0xa0, true)?,
            Cause::Rename => side.rename(last, &format!("renamed{round}"))?,
            Cause::ChangeNamespace => side.change_namespace(last, false)?,
            Cause::ReloadUverbs => side.reload_uverbs()?,
            Cause::Remove => {
                side.remove(last)?;
                Ok(())
            }
        };
        record.push(format!("{cause:?}: {outcome:?}"));
        record.extend(heard.events()?.iter().filter_map(|event| comparable(event)));
    }
    Ok(record)
}

fn compare(causes: &[Cause], elsewhere: Option<&Elsewhere>) -> Result<Option<String>> {
    let setup: Setup = script::removal_that_waits().setup;
    let mut real = Real::new(&setup, elsewhere)?;
    let on_real = play(&mut real, &mut Broadcast::new()?, causes);
    Side::clean(&mut real)?;
    let on_real = on_real?;
    let mut simulated = Simulated::new(&setup)?;
    let mut recorded = Recorded(simulated.machine().clone());
    let on_simulated = play(&mut simulated, &mut recorded, causes)?;
    ensure!(on_real.len() > causes.len(), "the real kernel sent no event: {on_real:?}");
    let shown = show(&causes, &on_real, &on_simulated);
    println!("{shown}");
    Ok((on_real != on_simulated).then_some(shown))
}

/// The uevents of additions, renames, moves between namespaces, reloads of ib_uverbs and removals.
pub(crate) fn all() -> Result<()> {
    use Cause::{Add, ChangeNamespace, ReloadUverbs, Remove, Rename};
    let mut differences = Vec::new();
    differences.extend(compare(&[Add, Rename, Remove, Add, Add, Remove], None)?);
    {
        let elsewhere = Elsewhere::new()?;
        differences.extend(compare(&[Add, ChangeNamespace, Remove], Some(&elsewhere))?);
    }
    // rxe uses ib_uverbs' symbols. The test HCA must not be loaded meanwhile: rxe binds to devices with its driver id.
    let _ = std::process::Command::new("rmmod").arg("uverbs_test_hca").output()?;
    guest::run("rmmod", &["rdma_rxe"])?;
    differences.extend(compare(&[Add, ReloadUverbs, Rename, Remove], None)?);
    guest::run("modprobe", &["rdma_rxe"])?;
    ensure!(differences.is_empty(), "{} scripts differ", differences.len());
    Ok(())
}
