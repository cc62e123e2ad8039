//! Trees that are not the kernel's: passed in, and refused or survived.
#![allow(clippy::disallowed_methods)] // a test makes the trees that it passes in

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, socket_with};
use uverbs::{Change, Device, ErrorKind, FunctionKind, Host, HostBuilder, Registry, ResyncReason};

/// A directory of this test. Dropping it removes the directory.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("uverbs-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("sys/class/infiniband_verbs")).expect("made");
        fs::create_dir_all(path.join("dev/infiniband")).expect("made");
        fs::write(path.join("sys/class/infiniband_verbs/abi_version"), "6\n").expect("made");
        Self(path)
    }

    fn device(&self, number: u32) -> PathBuf {
        let name = format!("uverbs{number}");
        let directory = self.0.join("sys/devices/virtual/infiniband_verbs").join(&name);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("dev"), format!("231:{}\n", 192 + number)).expect("made");
        fs::write(directory.join("ibdev"), format!("rxe{number}\n")).expect("made");
        self.link(number, &format!("../../devices/virtual/infiniband_verbs/{name}"));
        directory
    }

    /// A device beneath a PCI function. Returns the directory of the function.
    fn device_of_function(&self, number: u32, address: &str) -> PathBuf {
        let function = self.0.join("sys/devices/pci0000:3a").join(address);
        let path = format!("infiniband_verbs/uverbs{number}");
        let directory = function.join(&path);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("dev"), format!("231:{}\n", 192 + number)).expect("made");
        fs::write(directory.join("ibdev"), format!("mlx5_{number}\n")).expect("made");
        self.link(number, &format!("../../devices/pci0000:3a/{address}/{path}"));
        symlink("../../../bus/pci", function.join("subsystem")).expect("made");
        for (name, value) in [("vendor", "0x15b3"), ("device", "0x1017"), ("numa_node", "-1")] {
            fs::write(function.join(name), format!("{value}\n")).expect("made");
        }
        function
    }

    fn link(&self, number: u32, target: &str) {
        let link = self.0.join(format!("sys/class/infiniband_verbs/uverbs{number}"));
        let _ = fs::remove_file(&link);
        symlink(target, link).expect("made");
    }

    fn builder(&self) -> HostBuilder {
        let dir = |name: &str| Dir::open_ambient_dir(self.0.join(name), ambient_authority());
        let (sys, dev) = (dir("sys").expect("opened"), dir("dev").expect("opened"));
        Host::builder().sys(sys).dev(dev)
    }

    fn host(&self, allow_foreign_sys: bool) -> uverbs::Result<Host> {
        self.builder().allow_foreign_sys(allow_foreign_sys).build()
    }

    fn registry(&self) -> Registry {
        Registry::new(self.host(true).expect("allowed by name"))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_sys_that_is_not_sysfs_is_refused() {
    let tree = Tree::new("foreign");
    let error = tree.host(false).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("not sysfs"), "{error}");
}

#[test]
fn nothing_there_is_ever_proved() {
    let tree = Tree::new("unproven");
    tree.device(0);
    let devices = tree.registry().devices().expect("listed");
    let device = devices.by_name("rxe0").expect("there");
    assert_eq!(devices.by_name(device.name()).expect("there"), device);
    assert_eq!(device.open().expect_err("refused").kind(), ErrorKind::Unproven);
}

#[test]
fn hostile_links_and_attributes_affect_only_their_device() {
    let tree = Tree::new("hostile");
    tree.device(0);
    let victim = tree.device(1);
    let registry = tree.registry();
    for target in [
        "/etc",
        "../../../../etc/infiniband_verbs/uverbs1",
        "../../devices/../../infiniband_verbs/uverbs1",
        "../../devices/virtual/infiniband_verbs/uverbs0",
        "../../devices/virtual//infiniband_verbs/uverbs1",
        "../../devices/virtual/./infiniband_verbs/uverbs1",
        "../../class/infiniband_verbs/uverbs1",
        "../../devices/virtual/net/uverbs1",
        "uverbs0",
        "\n",
    ] {
        tree.link(1, target);
        expect_fault(&registry, &format!("link to {target:?}"));
    }
    tree.device(1);
    for (attribute, contents) in [
        ("dev", &b"231:193"[..]),
        ("dev", b"231:193\n\n"),
        ("dev", b"231:\n"),
        ("dev", b"0231:193\n"),
        ("dev", b"4096:0\n"),
        ("dev", b"1:1048576\n"),
        ("dev", b"\xff:1\n"),
        ("dev", b""),
        ("ibdev", b"\n"),
        ("ibdev", b"no line feed"),
        ("ibdev", &[b'n'; 65]),
        ("ibdev", &[b'n'; 10_000]),
        ("ibdev", b"a\0b\n"),
    ] {
        fs::write(victim.join(attribute), contents).expect("made");
        expect_fault(&registry, &format!("{attribute} {:?}", contents.escape_ascii().to_string()));
        tree.device(1);
    }
    // Attributes that are not regular files.
    for what in ["symlink", "fifo", "directory"] {
        let path = victim.join("ibdev");
        fs::remove_file(&path).expect("removed");
        match what {
            "symlink" => symlink("dev", &path).expect("made"),
            "directory" => fs::create_dir(&path).expect("made"),
            _ => {
                let status = std::process::Command::new("mkfifo").arg(&path).status();
                assert!(status.expect("mkfifo").success());
            }
        }
        expect_fault(&registry, what);
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        tree.device(1);
    }
    let devices = registry.devices().expect("listed");
    assert_eq!((devices.len(), devices.faults().count()), (2, 0));
}

/// Nothing of a parent is read through a link, or from what is no regular file.
#[test]
fn a_hostile_parent_affects_only_its_device() {
    let tree = Tree::new("parent");
    let pf = tree.device_of_function(0, "0000:3b:00.0");
    let vf = tree.device_of_function(1, "0000:3b:00.1");
    for (name, value) in [("sriov_totalvfs", 8), ("sriov_offset", 1), ("sriov_stride", 1)] {
        fs::write(pf.join(name), format!("{value}\n")).expect("made");
    }
    symlink("../0000:3b:00.0", vf.join("physfn")).expect("made");
    symlink("../0000:3b:00.1", pf.join("virtfn0")).expect("made");
    let devices = tree.registry().devices().expect("listed");
    let [pf_device, vf_device] =
        ["mlx5_0", "mlx5_1"].map(|name| devices.by_name(name).expect("there"));
    let kind = |device: &Device| device.parent().map(|parent| parent.function.expect("one").kind);
    assert_eq!(kind(&pf_device).expect("a parent"), FunctionKind::Physical);
    let virtual_function = kind(&vf_device).expect("a parent");
    assert!(
        matches!(virtual_function, FunctionKind::Virtual { number: Some(0), .. }),
        "{virtual_function:?}"
    );
    assert_eq!(vf_device.parent().expect("a parent").numa_node, None);

    let secret = tree.0.join("secret");
    fs::write(&secret, "0x1234\n").expect("made");
    for (name, what) in [
        ("vendor", "link"),
        ("vendor", "fifo"),
        ("vendor", "directory"),
        ("numa_node", "link"),
        ("numa_node", "fifo"),
        ("subsystem", "directory"),
        ("subsystem", "file"),
        ("physfn", "file"),
    ] {
        let path = vf.join(name);
        let aside = tree.0.join("aside");
        fs::rename(&path, &aside).expect("moved");
        match what {
            "link" => symlink(&secret, &path).expect("made"),
            "directory" => fs::create_dir(&path).expect("made"),
            "file" => fs::write(&path, "../0000:3b:00.0").expect("made"),
            _ => {
                let status = std::process::Command::new("mkfifo").arg(&path).status();
                assert!(status.expect("mkfifo").success());
            }
        }
        let error = vf_device.parent().expect_err(what);
        assert!(error.to_string().contains(name), "{name} as a {what}: {error}");
        assert!(pf_device.parent().is_ok(), "{name} as a {what}");
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        fs::rename(&aside, &path).expect("moved back");
    }
    // The physical function leads out of the tree, or in a circle.
    for target in ["../../../../../0000:3b:00.0", "0000:3b:00.0", "../0000:3b:00.1"] {
        let _ = fs::remove_file(vf.join("physfn"));
        symlink(target, vf.join("physfn")).expect("made");
        match kind(&vf_device) {
            Ok(FunctionKind::Virtual { number, .. }) => assert_eq!(number, None, "{target}"),
            Ok(kind) => panic!("{target}: {kind:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Malformed, "{target}: {error}"),
        }
    }
}

fn expect_fault(registry: &Registry, what: &str) {
    let devices = registry.devices().expect(what);
    assert_eq!(devices.len(), 1, "{what}");
    assert_eq!(devices.by_name("rxe0").expect("the other one").uverbs_number(), 0);
    let faults: Vec<_> = devices.faults().collect();
    assert_eq!(faults.len(), 1, "{what}");
    assert_eq!(faults[0].device(), Some("uverbs1"), "{what}");
    let printed = faults[0].to_string();
    assert!(printed.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{printed:?}");
}

#[test]
fn a_class_without_its_own_file_is_an_error_not_an_empty_list() {
    let tree = Tree::new("class");
    let registry = tree.registry();
    assert!(registry.devices().expect("none").is_empty());
    fs::remove_file(tree.0.join("sys/class/infiniband_verbs/abi_version")).expect("removed");
    assert_eq!(registry.devices().expect_err("refused").kind(), ErrorKind::Unstable);
    fs::remove_dir_all(tree.0.join("sys/class/infiniband_verbs")).expect("removed");
    assert!(registry.devices().expect("ib_uverbs is not loaded").is_empty());
}

#[test]
fn entries_that_only_look_like_devices_are_skipped() {
    let tree = Tree::new("names");
    tree.device(0);
    for name in ["uverbs", "uverbs01", "uverbs-1", "uverbs4294967296", "uverbs0x", "xuverbs0"] {
        let path = tree.0.join("sys/class/infiniband_verbs").join(name);
        symlink("../../devices/virtual/infiniband_verbs/uverbs0", path).expect("made");
    }
    let devices = tree.registry().devices().expect("listed");
    assert_eq!((devices.len(), devices.faults().count()), (1, 0));
}

/// Whoever hands in a directory hands in the socket, too, or does without.
#[test]
fn a_host_makes_no_socket_beside_what_is_handed_in() {
    let tree = Tree::new("sockets");
    let file = |name: &str| fs::File::open(tree.0.join(name)).expect("opened");
    let builder = || Host::builder().allow_foreign_sys(true);
    for builder in [
        builder().sys(file("sys")).dev(file("dev")),
        builder().sys(file("sys")),
        builder().dev(file("dev")),
        builder().without_netlink(),
    ] {
        let error = builder.build().expect("a host").check_netlink().expect_err("no socket");
        let found = (error.kind(), error.raw_os_error());
        assert_eq!(found, (ErrorKind::NetlinkUnavailable, None), "{error}");
    }
    // With neither it asks the kernel, which may have no RDMA.
    if let Err(error) = builder().build().expect("a host").check_netlink() {
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}

fn netlink_socket(protocol: Protocol, groups: u32) -> OwnedFd {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)).expect("a socket");
    bind(&socket, &SocketAddrNetlink::new(0, groups)).expect("bound");
    socket
}

/// A uevent socket that is passed in has to be one, subscribed, and has one user at a time.
#[test]
fn a_uevent_socket_is_checked() {
    let tree = Tree::new("socket");
    let host = |socket: OwnedFd| tree.builder().allow_foreign_sys(true).uevents(socket).build();
    let (stream, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
    for wrong in [
        netlink_socket(netlink::KOBJECT_UEVENT, 0),
        netlink_socket(netlink::KOBJECT_UEVENT, 2),
        netlink_socket(netlink::GENERIC, 1),
        stream.into(),
    ] {
        assert_eq!(host(wrong).expect_err("another socket").kind(), ErrorKind::Unsupported);
    }
    let file = fs::File::open(tree.0.join("sys")).expect("opened");
    assert!(host(file.into()).is_err());

    // Blocking, as a program may have made it. Group 2 has udev's messages, which are ignored.
    let registry = Registry::new(host(netlink_socket(netlink::KOBJECT_UEVENT, 3)).expect("a host"));
    let mut watch = registry.watch().expect("a watch");
    assert_eq!(registry.watch().expect_err("it has one user").kind(), ErrorKind::Busy);
    let began = Instant::now();
    assert!(watch.wait(Some(Duration::from_millis(20))).expect("no error").is_none());
    assert!(began.elapsed() >= Duration::from_millis(20));
    // It is a descriptor of this process, and not readable.
    watch.as_fd().try_clone_to_owned().expect("a descriptor");
    drop(watch);
    drop(registry.watch().expect("it is free again"));
}

/// On the clock and the timers of this machine.
#[test]
fn a_watch_without_uevents_finds_changes() {
    let tree = Tree::new("watched");
    let registry = tree.registry();
    let mut watch = registry.watch().expect("a watch");
    let mut next =
        || watch.wait(Some(Duration::from_secs(20))).expect("no error").expect("a change");
    let reason = ResyncReason::NoEvents;
    assert!(matches!(next(), Change::Resynchronised { reason: found, .. } if found == reason));
    tree.device(0);
    assert_eq!(next().to_string(), "rxe0 (uverbs0): added");
    fs::remove_file(tree.0.join("sys/class/infiniband_verbs/uverbs0")).expect("removed");
    assert_eq!(next().to_string(), "rxe0 (uverbs0): removed");
}
