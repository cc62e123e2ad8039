use uverbs::Host;
use uverbs::sim::{DeviceSpec, Machine, Verdict};

use super::build::tests::{FakeNodes, wanted};
use super::*;

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";

fn count(target: &std::path::Path) -> usize {
    let text = std::fs::read(target).expect("read");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    json["devices"].as_array().expect("devices").len()
}

/// What a watch does at each look, without its waits.
#[test]
fn the_file_follows_the_devices() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uverbs.json");
    let machine = Machine::new();
    machine.add_pci_function(PF, (1, 1), -1);
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let mut builder = Builder::new(wanted(), FakeNodes::default());
    let target = Target::new(path.clone(), &spec::kind("uverbs/device").expect("a kind"));
    let target = target.expect("a target");
    let mut follower =
        Follower { builder: &mut builder, target: &target, noted: BTreeSet::new(), writes: 0 };
    let mut pace = Pace::new(Instant::now());
    let mut look = || {
        follower.look(&registry.devices().expect("a list"), &mut pace);
        follower.writes
    };
    assert_eq!(look(), 0, "without a device there is no file");
    assert!(!path.exists());

    // 64 functions at once are one look, and one file.
    let ids: Vec<_> = (0..64)
        .map(|number| {
            let path = format!("{PF}/0000:3c:{:02x}.{}", number / 8, number % 8);
            machine.add_pci_function(&path, (1, 1), -1);
            machine.add(DeviceSpec::new(format!("vf{number}")).beneath(path)).expect("added")
        })
        .collect();
    assert_eq!((look(), count(&path)), (1, 64));
    assert_eq!(look(), 1, "nothing has changed");

    machine.remove(ids[3]);
    assert_eq!((look(), count(&path)), (2, 63));
    // Somebody removes the file.
    std::fs::remove_file(&path).expect("removed");
    assert_eq!((look(), count(&path)), (3, 63));

    ids.into_iter().for_each(|id| machine.remove(id));
    assert_eq!(look(), 4, "the last device has gone");
    assert!(!path.exists());
}

#[test]
fn a_file_that_cannot_be_written_is_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uverbs.json");
    std::fs::write(&path, "somebody else's").expect("written");
    let machine = Machine::new();
    machine.add_pci_function(PF, (1, 1), -1);
    machine.add(DeviceSpec::new("pf").beneath(PF)).expect("added");
    let devices =
        Registry::new(Host::simulated(&machine).expect("a host")).devices().expect("a list");
    let mut builder = Builder::new(wanted(), FakeNodes::default());
    let target = Target::new(path.clone(), &spec::kind("uverbs/device").expect("a kind"));
    let target = target.expect("a target");
    let mut follower =
        Follower { builder: &mut builder, target: &target, noted: BTreeSet::new(), writes: 0 };
    let mut pace = Pace::new(Instant::now());
    follower.look(&devices, &mut pace);
    let left = pace.left(Instant::now());
    assert!(!left.is_zero() && left <= Duration::from_secs(1), "{left:?}");
    std::fs::remove_file(&path).expect("removed");
    follower.look(&devices, &mut pace);
    assert_eq!((follower.writes, count(&path)), (1, 1));
    assert!(pace.left(Instant::now()) > Duration::from_secs(5));
}

/// Nothing updates the file after the watch, so that an error which ends it removes the file, too.
#[test]
fn the_file_goes_however_a_watch_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uverbs.json");
    let target = Target::new(path.clone(), &spec::kind("uverbs/device").expect("a kind"));
    let target = target.expect("a target");
    let ends = |keep, followed| {
        std::fs::write(&path, r#"{"kind": "uverbs/device"}"#).expect("written");
        (end(&target, keep, followed).is_ok(), path.exists())
    };
    // Nothing can be listed, so that the watch ends before its first look.
    let failed = || {
        let machine = Machine::new();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        machine.on_call(|_, _| Verdict::Fail(5));
        follow(&registry, &mut Builder::new(wanted(), FakeNodes::default()), &target)
    };
    assert!(failed().is_err());
    assert_eq!(ends(false, Ok(())), (true, false));
    assert_eq!(ends(false, failed()), (false, false));
    assert_eq!(ends(true, Ok(())), (true, true));
    assert_eq!(ends(true, failed()), (false, true));
    std::fs::write(&path, "somebody else's").expect("written");
    assert!(end(&target, false, Ok(())).is_err() && path.exists());
}
