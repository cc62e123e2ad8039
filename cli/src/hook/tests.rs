use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;

use super::container::Container;
use super::state::State;
use super::*;

/// A bundle whose root holds what a test puts there. Making a device node takes root, so there is none in it.
struct Bundle(TempDir);

impl Bundle {
    fn new() -> Self {
        let bundle = Self(tempfile::tempdir().expect("a directory"));
        fs::create_dir_all(bundle.root().join("dev/infiniband")).expect("made");
        bundle
    }

    /// Its root is not where the hook could see it: the list of devices alone decides.
    fn without_root() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("rootfs")
    }

    fn node(&self) -> PathBuf {
        self.root().join("dev/infiniband/uverbs0")
    }

    fn configure(&self, text: &str) -> &Self {
        fs::write(self.0.path().join("config.json"), text).expect("written");
        self
    }

    /// `linux.devices` with one device, and the root as the configuration has it.
    fn lists(&self, kind: &str, major: u32, minor: u32) -> &Self {
        self.configure(&format!(
            r#"{{"root": {{"path": "rootfs"}}, "linux": {{"devices": [
                {{"path": "/dev/infiniband/uverbs0", "type": "{kind}", "major": {major}, "minor": {minor}}}
            ]}}}}"#
        ))
    }

    fn runc(&self) -> State {
        let pid = Some(std::process::id().into());
        State { id: None, pid, bundle: Some(self.0.path().into()), root: None }
    }

    fn check(&self) -> Result<(), String> {
        check_at(&self.runc())
    }
}

fn check_at(state: &State) -> Result<(), String> {
    Container::find(state)?.check_node("/dev/infiniband/uverbs0", (231, 192).into())
}

fn refused(result: Result<(), String>, words: &str) {
    let why = result.expect_err("refused");
    assert!(why.contains(words), "{why}");
}

#[test]
fn the_list_of_devices_is_compared() {
    let bundle = Bundle::without_root();
    refused(bundle.check(), "neither in its root () nor in linux.devices");
    bundle.lists("c", 231, 192).check().expect("the number");
    bundle.lists("u", 231, 192).check().expect("the number");
    refused(bundle.lists("c", 231, 193).check(), "expected /dev/infiniband/uverbs0 as 231:192");
    refused(bundle.lists("c", 231, 193).check(), "found c 231:193");
    refused(bundle.lists("b", 231, 192).check(), "found b 231:192");
    let missing = r#"{"root": {"path": "rootfs"},
        "linux": {"devices": [{"path": "/dev/infiniband/uverbs0", "type": "c"}]}}"#;
    refused(bundle.configure(missing).check(), "found c ?:?");
    for text in
        [r#"{"root": {"path": "rootfs"}}"#, r#"{"root": {"path": "rootfs"}, "linux": null}"#]
    {
        refused(bundle.configure(text).check(), "neither in its root");
    }
    for text in ["{", "{}", r#"{"linux": null}"#, r#"[{"path": "rootfs"}]"#, "null"] {
        refused(bundle.configure(text).check(), "is no configuration");
    }
}

/// The list has what the container is to get, and the root has what it got.
#[test]
fn the_list_alone_is_not_enough_where_the_root_is_seen() {
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    refused(bundle.check(), "was not found in its root");
    fs::remove_dir_all(bundle.root()).expect("removed");
    bundle.check().expect("the list");
}

/// crun's state has the root. Where a state does not, it is the one of the configuration.
#[test]
fn the_root_is_that_of_the_state_or_of_the_configuration() {
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    fs::write(bundle.node(), "").expect("written");
    let crun = State { root: Some(bundle.root()), bundle: Some("/".into()), ..bundle.runc() };
    let relative = State { root: Some("rootfs".into()), ..bundle.runc() };
    let unseen = State { pid: None, ..bundle.runc() };
    for state in [&crun, &relative, &unseen, &bundle.runc()] {
        refused(check_at(state), "is no character device (RegularFile)");
    }
    fs::remove_file(bundle.node()).expect("removed");
    for state in [&relative, &unseen, &bundle.runc()] {
        refused(check_at(state), "was not found in its root");
    }
    refused(check_at(&State { pid: Some(-1), ..bundle.runc() }), "-1");
    refused(check_at(&State { pid: Some(i64::MAX), ..bundle.runc() }), "cannot be opened");
    refused(check_at(&State::default()), "neither in its root ()");
}

/// crun in a user namespace: the bundle is `/`, the root is relative, and the process is in the right bundle. Whatever
/// `/config.json` and `/rootfs` are on the host, they are not the container's.
#[test]
fn a_wrong_bundle_is_made_up_for() {
    let bundle = Bundle::without_root();
    bundle.lists("c", 231, 192);
    let mut process = std::process::Command::new("sleep");
    let mut process = process.arg("60").current_dir(bundle.0.path()).spawn().expect("it starts");
    let pid = Some(process.id().into());
    let root = Some("rootfs".into());
    let state = State { id: None, pid, root, bundle: Some("/".into()) };
    let listed = check_at(&state);
    fs::create_dir(bundle.root()).expect("made");
    let unseen = check_at(&state);
    fs::create_dir_all(bundle.root().join("dev/infiniband")).expect("made");
    fs::write(bundle.node(), "").expect("written");
    let seen = check_at(&state);
    bundle.configure("{}");
    let without_root = check_at(&state);
    process.kill().expect("killed");
    process.wait().expect("it ended");
    listed.expect("its configuration");
    refused(unseen, &format!("was not found in its root ({}, /rootfs)", bundle.root().display()));
    refused(seen, "is no character device (RegularFile)");
    refused(without_root, "is no configuration: missing field `root`");
}

/// A bundle has a configuration. The directory of the process is only a guess where it has none.
#[test]
fn a_file_that_is_no_configuration_is_passed_over_where_the_bundle_is_a_guess() {
    let (bundle, other) = (Bundle::without_root(), Bundle::without_root());
    other.configure("{}");
    let mut process = std::process::Command::new("sleep");
    let mut process = process.arg("60").current_dir(other.0.path()).spawn().expect("it starts");
    let state = State { pid: Some(process.id().into()), ..bundle.runc() };
    let guessed = check_at(&state);
    bundle.lists("c", 231, 192);
    let listed = check_at(&state);
    process.kill().expect("killed");
    process.wait().expect("it ended");
    refused(guessed, "neither in its root ()");
    listed.expect("its configuration");
}

/// A root is somebody else's: its links lead nowhere but into it, and what is there is not opened.
#[test]
fn the_root_cannot_lead_out_of_itself() {
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    // As a whole path: the node itself is never a link.
    symlink("/dev/null", bundle.node()).expect("a link");
    refused(bundle.check(), "is no character device (Symlink)");
    fs::remove_file(bundle.node()).expect("removed");
    rustix::fs::mknodat(CWD, bundle.node(), FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
    refused(bundle.check(), "is no character device (Fifo)");

    // Directories that are links: out of the root, and to where it has a node of its own.
    let outside = tempfile::tempdir().expect("a directory");
    fs::create_dir(outside.path().join("infiniband")).expect("made");
    fs::write(outside.path().join("infiniband/uverbs0"), "").expect("written");
    let dev = bundle.root().join("dev");
    let replace = |with: &Path| {
        let _ = fs::remove_dir_all(&dev);
        let _ = fs::remove_file(&dev);
        symlink(with, &dev).expect("a link");
    };
    for with in [outside.path(), Path::new("/proc/self/root/dev")] {
        replace(with);
        refused(bundle.check(), "was not found in its root");
    }
    // From the root, `..` leads to the root: this is a link to itself.
    replace(Path::new("../../../../../../../../dev"));
    refused(bundle.check(), "cannot be looked at");
    fs::create_dir_all(bundle.root().join("other/infiniband")).expect("made");
    fs::write(bundle.root().join("other/infiniband/uverbs0"), "").expect("written");
    replace(Path::new("/other"));
    refused(bundle.check(), "is no character device (RegularFile)");
    replace(Path::new("dev"));
    refused(bundle.check(), "cannot be looked at");
}

#[test]
fn the_node_in_the_root_is_compared() {
    // Making a node takes root, so this is one that is there.
    let state =
        State { root: Some("/".into()), pid: Some(std::process::id().into()), ..State::default() };
    let container = Container::find(&state).expect("a root");
    let null = rustix::fs::stat("/dev/null").expect("there");
    let number = (rustix::fs::major(null.st_rdev), rustix::fs::minor(null.st_rdev)).into();
    container.check_node("/dev/null", number).expect("its number");
    refused(
        container.check_node("/dev/null", (231, 192).into()),
        &format!("expected /dev/null as 231:192 in the container, found {number}"),
    );
    refused(container.check_node("/dev/no such node", number), "neither in its root (/)");

    // Two directories may be the root: the node has to be right in both.
    let bundle = Bundle::new();
    bundle.configure(r#"{"root": {"path": "rootfs"}}"#);
    let state = State { root: Some("/".into()), ..bundle.runc() };
    let check = || Container::find(&state)?.check_node("/dev/null", number);
    check().expect("seen in one, and not there in the other");
    fs::write(bundle.root().join("dev/null"), "").expect("written");
    refused(check(), "is no character device (RegularFile)");
}

#[test]
fn expectations_are_parsed_before_anything_is_looked_at() {
    use std::os::unix::ffi::OsStringExt as _;

    for text in [&b"x"[..], b"v2,uverbs=1", b"\xff\x1b"] {
        let why = parse(&[OsString::from_vec(text.into())]).expect_err("no expectation");
        assert!(why.contains("is not an expectation") && why.is_ascii(), "{why}");
        assert!(!why.contains(char::is_control), "{why}");
    }
    assert_eq!(refusal(Some("a\n\u{1b}b"), "x"), r"container a\n\x1bb is refused: x");
}

#[test]
fn nodes_are_parsed_before_anything_is_looked_at() {
    use std::os::unix::ffi::OsStringExt as _;

    let parse = |text: &[u8]| nodes::parse(&[OsString::from_vec(text.into())]);
    for text in [&b"umad0=231:0"[..], b"issm12=231:64", b"rdma_cm=10:60"] {
        parse(text).expect("a node");
    }
    for text in [
        &b"umad0"[..],
        b"umad=231:0",
        b"uverbs0=231:0",
        b"rdma_cm=10",
        b"a\x1b=1:1",
        b"\xff=1:1",
        b"",
    ] {
        let why = parse(text).expect_err("no node");
        assert!(why.contains("is no node") && !why.contains(char::is_control), "{why}");
    }
}

/// A runtime that ignores SIGCHLD leaves that to its hooks, and the status of the check is lost. What it printed is not.
#[test]
fn an_answer_counts_only_as_a_whole_and_not_after_the_time() {
    use std::os::unix::process::ExitStatusExt as _;

    let answer = |text: &[u8], is_whole| Ok(Answer { text: text.to_vec(), is_whole });
    let status = |code: i32| Ended::With(ExitStatus::from_raw(code << 8));
    judge(answer(PASSED, true), status(0)).expect("passed");
    judge(answer(PASSED, true), Ended::Unknown).expect("passed");
    for (printed, ended, words) in [
        (answer(PASSED, true), status(1), "ended without a reason: exit status: 1"),
        (answer(PASSED, true), Ended::Late, "took more than 5 s"),
        (answer(PASSED, false), status(0), "took more than 5 s"),
        (answer(PASSED, false), Ended::Late, "took more than 5 s"),
        (answer(PASSED, false), Ended::Unknown, "took more than 5 s"),
        (answer(b"", false), Ended::Unknown, "took more than 5 s"),
        (answer(b"", true), Ended::Unknown, "ended without a reason"),
        (answer(b"", true), status(0), "ended without a reason"),
        (answer(b"passed", true), Ended::Unknown, "passed"),
        (answer(b"it is another\n", true), Ended::Unknown, "it is another"),
        (answer(b"it is another\n", true), status(0), "it is another"),
        (Err(io::Error::other("no")), Ended::Unknown, "cannot be read: no"),
    ] {
        refused(judge(printed, ended), words);
    }
}

/// The host's side on a simulated kernel, and the container's in a directory.
#[cfg(feature = "demo")]
#[test]
fn a_container_starts_with_what_it_was_given_and_with_nothing_else() {
    use uverbs::sim::{DeviceSpec, Machine};

    let machine = Machine::new();
    let add = |function: u32| {
        let path = format!("pci0000:3a/0000:3b:00.{function}");
        machine.add_pci_function(&path, (1, 1), -1);
        machine.add(DeviceSpec::new("vf").beneath(path)).expect("added")
    };
    let devices = || {
        let host = Host::simulated(&machine).expect("a host");
        Registry::new(host).devices().expect("a list")
    };
    let first = add(2);
    let bundle = Bundle::without_root();
    bundle.lists("c", 231, 192);
    let judge = |text: &str| {
        let [expectation] = &parse(&[text.into()]).expect("parsed")[..] else { panic!("one") };
        let container = Container::find(&bundle.runc()).expect("a container");
        compare(expectation, &devices(), None, &container).map(drop)
    };
    let given = "v1,pci=0000:3b:00.2,uverbs=0,dev_t=231:192";
    judge(given).expect("what it was given");
    // The host is right, and the container's node is another one.
    bundle.lists("c", 231, 193);
    refused(judge(given), "found c 231:193");
    bundle.lists("c", 231, 192);
    machine.remove(first);
    add(3);
    refused(judge(given), "expected pci 0000:3b:00.2; found pci 0000:3b:00.3");
    refused(judge(given), "create the container again");
    let instance = format!("{given},inode=1,boot=6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c");
    refused(judge(&instance), "the id of this boot is not known");
}

/// The nodes of a host, as a test chooses them.
#[cfg(feature = "demo")]
#[derive(Default)]
struct FakeNodes {
    rdma_cm: Option<uverbs::DeviceNumber>,
    mads: Vec<host::Mad>,
}

#[cfg(feature = "demo")]
impl host::Nodes for FakeNodes {
    fn number(&self, _: &str) -> Option<uverbs::DeviceNumber> {
        None
    }

    fn rdma_cm(&self) -> io::Result<Option<uverbs::DeviceNumber>> {
        Ok(self.rdma_cm)
    }

    fn mads(&self) -> io::Result<Vec<host::Mad>> {
        Ok(self.mads.clone())
    }

    fn parent_of(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
}

/// `umadN` and `rdma_cm` are reused as `uverbsN` is. The device may be the right one, and such a node another's.
#[cfg(feature = "demo")]
#[test]
fn the_other_nodes_are_compared_too() {
    use uverbs::sim::{DeviceSpec, Machine};

    let machine = Machine::new();
    let path = "pci0000:3a/0000:3b:00.2";
    machine.add_pci_function(path, (1, 1), -1);
    for name in ["mlx5_2", "smi2"] {
        machine.add(DeviceSpec::new(name).beneath(path)).expect("added");
    }
    let listed = Registry::new(Host::simulated(&machine).expect("a host")).devices();
    let devices: Vec<_> = listed.expect("a list").iter().cloned().collect();
    let bundle = Bundle::without_root();
    bundle.configure(
        r#"{"root": {"path": "rootfs"}, "linux": {"devices": [
            {"path": "/dev/infiniband/umad0", "type": "c", "major": 231, "minor": 0},
            {"path": "/dev/infiniband/umad1", "type": "c", "major": 231, "minor": 1},
            {"path": "/dev/infiniband/issm0", "type": "c", "major": 231, "minor": 65},
            {"path": "/dev/infiniband/rdma_cm", "type": "c", "major": 10, "minor": 60}
        ]}}"#,
    );
    let container = Container::find(&bundle.runc()).expect("a container");
    let mad = |name: &str, minor: u32, parent: &str, device: &str| host::Mad {
        name: name.to_owned(),
        kind: host::mad_kind(name).expect("a kind"),
        number: (231, minor).into(),
        parent: parent.into(),
        device: device.into(),
    };
    let check = |text: &str, devices: &[Device], mads: Vec<host::Mad>, rdma_cm: Option<u32>| {
        let host = FakeNodes { rdma_cm: rdma_cm.map(|minor| (10, minor).into()), mads };
        let given = nodes::parse(&[text.into()]).expect(text);
        nodes::compare(&given, &host, devices, &container)
    };
    let one = &devices[..1];
    let right = || vec![mad("umad0", 0, "0000:3b:00.2", "mlx5_2")];
    check("umad0=231:0", one, right(), None).expect("its own");
    check("rdma_cm=10:60", one, Vec::new(), Some(60)).expect("the number");
    for (text, mads, rdma_cm, words) in [
        ("umad0=231:0", Vec::new(), None, "found no umad0"),
        (
            "umad0=231:0",
            vec![mad("umad0", 0, "0000:3b:00.3", "mlx5_2")],
            None,
            "found that of mlx5_2 (0000:3b:00.3)",
        ),
        ("umad0=231:0", vec![mad("umad0", 0, "0000:3b:00.2", "smi2")], None, "found that of smi2"),
        ("umad0=231:0", vec![mad("umad0", 9, "0000:3b:00.2", "mlx5_2")], None, "found 231:9"),
        // The host is right, and the container has another one.
        ("issm0=231:64", vec![mad("issm0", 64, "0000:3b:00.2", "mlx5_2")], None, "found c 231:65"),
        ("issm1=231:65", vec![mad("issm1", 65, "0000:3b:00.2", "mlx5_2")], None, "neither in"),
        ("rdma_cm=10:60", Vec::new(), None, "found no rdma_cm"),
        ("rdma_cm=10:60", Vec::new(), Some(61), "expected rdma_cm as 10:60, found 10:61"),
        ("rdma_cm=10:61", Vec::new(), Some(61), "found c 10:60"),
    ] {
        refused(check(text, one, mads, rdma_cm), words);
    }
    // A container that was given all devices of the function has the nodes of both.
    let of_both = vec![mad("umad1", 1, "0000:3b:00.2", "smi2")];
    check("umad1=231:1", &devices, of_both, None).expect("the other one's");
}
