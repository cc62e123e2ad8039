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
    Container::find(state)?.check_node(0, (231, 192).into())
}

fn refused(result: Result<(), String>, words: &str) {
    let why = result.expect_err("refused");
    assert!(why.contains(words), "{why}");
}

#[test]
fn the_list_of_devices_is_compared() {
    let bundle = Bundle::new();
    refused(bundle.check(), "neither in its root () nor in linux.devices");
    bundle.lists("c", 231, 192).check().expect("the number");
    bundle.lists("u", 231, 192).check().expect("the number");
    refused(bundle.lists("c", 231, 193).check(), "expected /dev/infiniband/uverbs0 as 231:192");
    refused(bundle.lists("c", 231, 193).check(), "found c 231:193");
    refused(bundle.lists("b", 231, 192).check(), "found b 231:192");
    for text in [r#"{"root": {"path": "rootfs"}}"#, "{}", r#"{"linux": null}"#] {
        refused(bundle.configure(text).check(), "neither in its root");
    }
    refused(bundle.configure("{").check(), "is no configuration");
    let missing = r#"{"linux": {"devices": [{"path": "/dev/infiniband/uverbs0", "type": "c"}]}}"#;
    refused(bundle.configure(missing).check(), "found c ?:?");
}

/// crun's state has the root, and in a user namespace a wrong bundle. Without a node in either it is refused.
#[test]
fn the_root_of_the_state_comes_first() {
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    fs::write(bundle.node(), "").expect("written");
    let crun = State { root: Some(bundle.root()), bundle: Some("/".into()), ..bundle.runc() };
    refused(check_at(&crun), "is no character device (RegularFile)");
    fs::remove_file(bundle.node()).expect("removed");
    refused(check_at(&crun), "neither in its root");
    let relative = State { root: Some("rootfs".into()), ..bundle.runc() };
    check_at(&relative).expect("beneath the bundle");
    for pid in [Some(0), None] {
        check_at(&State { pid, ..bundle.runc() }).expect("seen from here");
    }
    refused(check_at(&State { pid: Some(-1), ..bundle.runc() }), "-1");
    refused(check_at(&State { pid: Some(i64::MAX), ..bundle.runc() }), "cannot be opened");
    refused(check_at(&State::default()), "neither in its root ()");
}

/// crun in a user namespace: the bundle is `/`, the root is relative, and the process is in the right bundle.
#[test]
fn a_wrong_bundle_is_made_up_for() {
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    let mut process = std::process::Command::new("sleep");
    let mut process = process.arg("60").current_dir(bundle.0.path()).spawn().expect("it starts");
    let pid = Some(process.id().into());
    let root = Some("rootfs".into());
    let state = State { id: None, pid, root, bundle: Some("/".into()) };
    let listed = check_at(&state);
    fs::write(bundle.node(), "").expect("written");
    let seen = check_at(&state);
    process.kill().expect("killed");
    process.wait().expect("it ended");
    listed.expect("its configuration");
    refused(seen, "is no character device (RegularFile)");
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
        // Nothing is there, so that the list alone decides.
        bundle.check().unwrap_or_else(|why| panic!("{}: {why}", with.display()));
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
    // Its own root has /dev/null; no node of the name is there, but of this number there is.
    let state =
        State { root: Some("/".into()), pid: Some(std::process::id().into()), ..State::default() };
    let container = Container::find(&state).expect("a root");
    let null = rustix::fs::stat("/dev/null").expect("there");
    let number = (rustix::fs::major(null.st_rdev), rustix::fs::minor(null.st_rdev)).into();
    assert_eq!(container.number_of("/dev/null"), Ok(Some(number)));
    assert_eq!(container.number_of("/dev/no such node"), Ok(None));
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
    let bundle = Bundle::new();
    bundle.lists("c", 231, 192);
    let judge = |text: &str| {
        let [expectation] = &parse(&[text.into()]).expect("parsed")[..] else { panic!("one") };
        let container = Container::find(&bundle.runc()).expect("a container");
        judge(expectation, &devices(), None, &container)
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
