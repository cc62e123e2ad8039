//! `uverbs demo`: a device is replaced between list and open, on a simulated host.

use std::fmt::Write as _;

use clap::Args;
use uverbs::sim::{DeviceId, DeviceSpec, Machine, NodeKind, NodeOpened};
use uverbs::{Device, ErrorKind, Guid, Host, Registry, Step};

use crate::evidence::evidence_table;
use crate::open::verdict;
use crate::output::{BAD, Failure, GOOD, HEAD, Out, WARN};
use crate::table::{Cell, Table};

/// Show, on a simulated host, what happens when a device is replaced.
///
/// This needs no hardware and no root, and does not touch this host.
#[derive(Args)]
pub(crate) struct DemoArgs {}

const GUID_A: u64 = 0x0002_c903_0005_00a0;
const GUID_B: u64 = 0x0002_c903_0005_00b0;
const GUID_C: u64 = 0x0002_c903_0005_00c0;

/// One part of the demonstration: writes what happens.
type Play = fn(&mut String) -> Result<(), Failure>;

pub(crate) fn run(_: &DemoArgs, out: &mut Out) -> Result<bool, Failure> {
    let intro = format!(
        "{WARN}Everything below is SIMULATED{WARN:#}: a kernel inside this program, with devices that do not exist.\n\
         The list, the open and its checks are the real ones.\n"
    );
    out.text(&intro)?;
    for play in [replaced, static_node, good] as [Play; 3] {
        let mut text = String::from("\n");
        play(&mut text)?;
        out.text(&text)?;
    }
    out.text(
        "\nAll of this was simulated. On a host with devices: uverbs list, uverbs open DEVICE.\n",
    )?;
    Ok(true)
}

/// A host with a machine beneath it that can be changed.
struct Scene {
    machine: Machine,
    registry: Registry,
}

impl Scene {
    fn new() -> Result<Self, Failure> {
        let machine = Machine::new();
        let registry = Registry::new(Host::simulated(&machine)?);
        Ok(Self { machine, registry })
    }

    fn add(&self, spec: DeviceSpec) -> Result<DeviceId, Failure> {
        self.machine.add(spec).map_err(|errno| unlike(format_args!("add: errno {errno}")))
    }

    fn listed(&self, name: &str) -> Result<Device, Failure> {
        Ok(self.registry.devices()?.by_name(name)?)
    }

    fn guid(&self, id: DeviceId) -> Guid {
        Guid(self.machine.guid_of(id))
    }

    /// The device that whoever opens /dev/infiniband/uverbsN reaches at this moment. The node is opened,
    /// and the simulated kernel knows where that led.
    fn reached(&self, number: u32) -> Result<DeviceId, Failure> {
        let devices = Registry::new(self.registry.host().clone()).devices()?;
        let device = devices.by_uverbs_number(number)?;
        // Proved or refused is the same here: the node was opened.
        let _ = device.open();
        match self.machine.node_opens().last() {
            Some(NodeOpened::Verbs(id)) => Ok(*id),
            other => Err(unlike(format_args!("the node led to {other:?}"))),
        }
    }

    /// The result of an open that only compares device numbers.
    fn unguarded(&self, asked: &Device, meant: DeviceId) -> Result<String, Failure> {
        let reached = self.reached(asked.uverbs_number())?;
        if reached == meant {
            return Err(unlike("the node leads to the right device"));
        }
        Ok(format!(
            "{BAD}success, on the wrong device{BAD:#}: asked for GUID {}, got {}",
            self.guid(meant),
            self.guid(reached)
        ))
    }
}

/// The simulated host did something that the demonstration does not expect: a bug.
fn unlike(what: impl std::fmt::Display) -> Failure {
    Failure::new("os", format!("the simulated host went another way: {what}"))
}

/// Tries an open that has to be refused.
fn refused(device: &Device, kind: ErrorKind, step: Step) -> Result<String, Failure> {
    match device.open() {
        Err(error) if error.kind() == kind && error.step() == Some(step) => {
            Ok(format!("{GOOD}refused{GOOD:#}: {error}"))
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(unlike("a wrong device was opened")),
    }
}

fn heading(text: &mut String, heading: &str) {
    let _ = writeln!(text, "{HEAD}{heading}{HEAD:#}\n");
}

/// What happens, in order, and who does it.
struct Timeline(Table);

impl Timeline {
    fn new() -> Self {
        Self(Table::plain(2))
    }

    fn program(&mut self, text: impl Into<String>) {
        self.0.row(["program".into(), text.into().into()]);
    }

    fn host(&mut self, text: impl Into<String>) {
        self.0.row([Cell::styled("host", WARN), text.into().into()]);
    }

    fn finish(self, text: &mut String) {
        let _ = writeln!(text, "{}", self.0.render());
    }
}

fn describe(device: &Device) -> Result<String, Failure> {
    let (name, number) = (device.name(), device.device_number());
    let (guid, inode) = (device.query()?.node_guid, device.instance().ino);
    Ok(format!("{name}: uverbs{}, {number}, GUID {guid}, inode {inode}", device.uverbs_number()))
}

/// The device is replaced between list and open.
fn replaced(text: &mut String) -> Result<(), Failure> {
    heading(text, "1. A device is replaced between list and open");
    let scene = Scene::new()?;
    let old = scene.add(DeviceSpec::new("rxe0").guid(GUID_A))?;
    scene.add(DeviceSpec::new("mlx5_0").guid(GUID_C).driver(1, 1))?;
    let mut timeline = Timeline::new();
    timeline.program("lists:");
    for device in &scene.registry.devices()? {
        timeline.program(format!("  {}", describe(device)?));
    }
    let asked = scene.listed("rxe0")?;
    scene.machine.remove(old);
    timeline.host("rxe0 is unplugged");
    scene.add(DeviceSpec::new("rxe0").guid(GUID_B))?;
    timeline.host("another device is plugged in:");
    let fresh = Scene { machine: scene.machine.clone(), registry: again(&scene) };
    timeline.host(format!("  {}", describe(&fresh.listed("rxe0")?)?));
    timeline.program("opens the rxe0 that was listed");
    timeline.finish(text);

    let guarded = refused(&asked, ErrorKind::Replaced, Step::Pin)?;
    let untouched = scene.machine.node_opens().is_empty();
    let unguarded = scene.unguarded(&asked, old)?;
    if !untouched {
        return Err(unlike("the node of the other device was opened"));
    }
    let _ =
        writeln!(text, "  Name, uverbs number and device number are the same; the inode is not.");
    results(
        text,
        &unguarded,
        &format!("{guarded}\n             The node of the other device was not even opened."),
    );
    Ok(())
}

fn again(scene: &Scene) -> Registry {
    Registry::new(scene.registry.host().clone())
}

fn results(text: &mut String, unguarded: &str, guarded: &str) {
    let _ = writeln!(
        text,
        "  unguarded: {unguarded}\n             \
         (the node opened by name and its st_rdev compared, as libibverbs does)\n  \
         uverbs:    {guarded}"
    );
}

/// A node made by mknod is still bound to the old device, while everything in /sys is right.
fn static_node(text: &mut String) -> Result<(), Failure> {
    heading(text, "2. A node made by mknod is still bound to the device that is gone");
    let scene = Scene::new()?;
    let mut timeline = Timeline::new();
    let old = scene.add(DeviceSpec::new("siw0").guid(GUID_A).disassociates(false))?;
    scene.machine.set_node(0, NodeKind::Static);
    timeline.host("siw0 has a node made by mknod, as containers have it");
    let theirs = scene.machine.foreign_context(old).ok_or_else(|| unlike("not opened"))?;
    timeline.host("another process opens siw0, and keeps it open");
    scene.machine.remove(old);
    timeline.host("siw0 is unplugged; its driver has to wait for that process");
    let new = scene.add(DeviceSpec::new("siw1").guid(GUID_B).disassociates(false))?;
    timeline.host("siw1 is plugged in, and gets uverbs0 and 231:192");
    let asked = scene.listed("siw1")?;
    timeline.program("lists:");
    timeline.program(format!("  {}", describe(&asked)?));
    timeline.program("opens siw1");
    timeline.finish(text);

    let unguarded = scene.unguarded(&asked, new)?;
    let guarded = refused(&asked, ErrorKind::NodeMismatch, Step::Prove)?;
    let _ = writeln!(
        text,
        "  Every check in /sys and of the node holds (steps 1 to 5), before and after: only the\n  \
         descriptor itself shows it (step 7)."
    );
    results(text, &unguarded, &guarded);
    scene.machine.close_foreign(old, theirs);
    let context = asked.open()?;
    if scene.reached(0)? != new {
        return Err(unlike("the node still leads to the old device"));
    }
    let _ = writeln!(text, "\n  The other process closes siw0, and the node leads to siw1:");
    let _ = writeln!(text, "  uverbs:    {}", verdict(&asked, context.evidence(), None));
    Ok(())
}

/// The same device, which only looks different.
fn good(text: &mut String) -> Result<(), Failure> {
    heading(text, "3. A device that is still the same, with the evidence");
    let scene = Scene::new()?;
    let id = scene.add(DeviceSpec::new("rxe0").guid(GUID_A))?;
    let mut timeline = Timeline::new();
    let asked = scene.listed("rxe0")?;
    timeline.program("lists:");
    timeline.program(format!("  {}", describe(&asked)?));
    let renamed = scene.machine.rename(id, b"roce0");
    renamed.map_err(|errno| unlike(format_args!("rename: errno {errno}")))?;
    timeline.host("rxe0 is renamed to roce0");
    scene.machine.evict();
    timeline.host("the kernel drops its caches: timestamps move");
    timeline.program("opens the rxe0 that was listed");
    timeline.finish(text);

    let context = asked.open()?;
    text.push_str(&evidence_table(context.evidence().checks(), 2).render());
    let _ = writeln!(text, "\n  {}", verdict(&asked, context.evidence(), None));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scene_goes_as_expected() {
        let played = |play: Play| {
            let mut text = String::new();
            play(&mut text).expect("it goes as expected");
            anstream::adapter::strip_str(&text).to_string()
        };
        let text = played(replaced);
        assert!(text.contains("asked for GUID 0002:c903:0005:00a0, got 0002:c903:0005:00b0"));
        assert!(text.contains("refused: rxe0 (uverbs0): replaced by another device"), "{text}");
        let text = played(static_node);
        assert!(text.contains("asked for GUID 0002:c903:0005:00b0, got 0002:c903:0005:00a0"));
        assert!(
            text.contains("refused: siw1 (uverbs0): its node leads to another device"),
            "{text}"
        );
        let text = played(good);
        assert!(text.contains("proved: ") && !text.contains("FAILED"), "{text}");
    }
}
