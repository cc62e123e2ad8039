//! The behaviour of the simulated kernel, observed through the calls of the seam.

mod device;
mod netlink;
mod pds;

use std::ffi::CString;
use std::os::fd::AsFd;

use super::super::{
    Attr, AttrData, Errno, FileType, Handle, Kernel, OFlags, Resolve, SYSFS_MAGIC, Sys, VerbsCall,
};
use super::{DeviceId, DeviceSpec, Machine, NodeKind, NodeOpened, Stage, Verdict};

const DIR: OFlags = OFlags::DIRECTORY;
const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
const NODE: OFlags =
    OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
const RXE: u32 = 14;

struct Host {
    kernel: Kernel,
    machine: Machine,
    sys: Handle,
    dev: Handle,
}

impl Host {
    fn new() -> Self {
        let machine = Machine::new();
        Self {
            kernel: Kernel::Sim(machine.clone()),
            sys: Handle::Sim(machine.root_sys()),
            dev: Handle::Sim(machine.root_dev()),
            machine,
        }
    }

    fn add(&self, name: &str) -> DeviceId {
        self.machine.add(DeviceSpec::new(name)).unwrap()
    }

    /// A device whose driver does not disassociate.
    fn add_stubborn(&self, name: &str) -> DeviceId {
        self.machine.add(DeviceSpec::new(name).disassociates(false)).unwrap()
    }

    fn at(&self, dir: &Handle, path: &str, flags: OFlags) -> Sys<Handle> {
        let path = CString::new(path).unwrap();
        self.kernel.openat2(dir, &path, flags, Resolve::Sys)
    }

    fn sys(&self, path: &str, flags: OFlags) -> Sys<Handle> {
        self.at(&self.sys, path, flags)
    }

    fn uverbs_dir(&self, number: u32) -> Sys<Handle> {
        self.sys(&format!("devices/virtual/infiniband_verbs/uverbs{number}"), DIR)
    }

    fn node(&self, number: u32) -> Sys<Handle> {
        self.at(&self.dev, &format!("infiniband/uverbs{number}"), NODE)
    }

    fn text(&self, file: &Handle) -> Sys<Vec<u8>> {
        let mut buffer = [0; 128];
        let len = self.kernel.pread(file, &mut buffer)?;
        Ok(buffer[..len].to_vec())
    }

    fn read(&self, dir: &Handle, name: &str) -> Sys<Vec<u8>> {
        self.text(&self.at(dir, name, OFlags::RDONLY)?)
    }

    fn link(&self, path: &str) -> String {
        let mut buffer = [0; 128];
        let link = self.sys(path, PATH).unwrap();
        let len = self.kernel.readlink(&link, c"", &mut buffer).unwrap();
        // By its name in its directory, it is the same.
        let (directory, name) = path.rsplit_once('/').unwrap();
        let directory = self.sys(directory, OFlags::DIRECTORY).unwrap();
        let mut by_name = [0; 128];
        let name = CString::new(name).unwrap();
        assert_eq!(self.kernel.readlink(&directory, &name, &mut by_name), Ok(len));
        assert_eq!(buffer, by_name);
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    fn names(&self, dir: &Handle) -> Sys<Vec<String>> {
        let mut names = Vec::new();
        while self.kernel.getdents(dir, &mut |entry| {
            names.push(entry.name.escape_ascii().to_string());
        })? {}
        Ok(names)
    }

    fn ino(&self, file: &Handle) -> u64 {
        self.kernel.fstat(file).unwrap().ino
    }

    fn ctime(&self, dir: &Handle) -> (i64, u32) {
        let ibdev = self.at(dir, "ibdev", OFlags::PATH).unwrap();
        self.kernel.fstat(&ibdev).unwrap().ctime
    }

    fn ioctl<'a>(&self, fd: &impl AsFd, method: u16, attrs: &'a mut [Attr<'a>]) -> Sys<()> {
        let mut call = VerbsCall { object: 0, method, driver_id: RXE, attrs };
        self.kernel.verbs_ioctl(fd.as_fd(), &mut call)
    }

    fn get_context(&self, fd: &impl AsFd) -> Sys<()> {
        self.ioctl(fd, 3, &mut [])
    }

    /// The node GUID, queried through the descriptor.
    fn guid(&self, fd: &impl AsFd) -> Sys<u64> {
        let mut answer = [0; 176];
        let mut attrs = [
            Attr { id: 0, data: AttrData::In(&[0; 8]) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut answer, len: 176 } },
            Attr { id: 2, data: AttrData::Const(1) },
        ];
        self.ioctl(fd, 0, &mut attrs)?;
        assert_eq!(answer[171], 1);
        Ok(u64::from_be_bytes(answer[8..16].try_into().unwrap()))
    }
}

#[test]
fn sysfs_shows_a_device() {
    let host = Host::new();
    let id = host.add("mlx5_0");
    assert_eq!(host.kernel.fstatfs_type(&host.sys), Ok(SYSFS_MAGIC));
    let class = host.sys("class/infiniband_verbs", DIR).unwrap();
    assert_eq!(host.names(&class).unwrap(), [".", "..", "abi_version", "uverbs0"]);
    let class = host.sys("class/infiniband_verbs", OFlags::DIRECTORY).unwrap();
    for (name, errno) in [(c"uverbs9", Errno::NOENT), (c"abi_version", Errno::INVAL)] {
        assert_eq!(host.kernel.readlink(&class, name, &mut [0; 128]), Err(errno), "{name:?}");
    }
    let text = host.link("class/infiniband_verbs/uverbs0");
    assert_eq!(text, "../../devices/virtual/infiniband_verbs/uverbs0");
    let text = host.link("class/infiniband/mlx5_0");
    assert_eq!(text, "../../devices/virtual/infiniband/mlx5_0");
    let dir = host.uverbs_dir(0).unwrap();
    assert_eq!(host.ino(&dir), host.machine.directory(id).unwrap());
    assert_eq!(host.read(&dir, "dev").unwrap(), b"231:192\n");
    assert_eq!(host.read(&dir, "ibdev").unwrap(), b"mlx5_0\n");
    let ib = host.sys("devices/virtual/infiniband/mlx5_0", DIR).unwrap();
    assert_eq!(host.read(&ib, "node_type").unwrap(), b"1: CA\n");
    assert_eq!(host.read(&ib, "node_guid").unwrap(), b"0200:5eff:fe00:0001\n");
}

#[test]
fn the_paths_contain_the_parent() {
    let host = Host::new();
    let spec = DeviceSpec::new("a").parent("pci0000:00/0000:00:03.0", "pci:v000015B3");
    host.machine.add(spec).unwrap();
    let text = host.link("class/infiniband_verbs/uverbs0");
    assert_eq!(text, "../../devices/pci0000:00/0000:00:03.0/infiniband_verbs/uverbs0");
    let device = "devices/pci0000:00/0000:00:03.0/infiniband_verbs/uverbs0/device";
    assert_eq!(host.link(device), "../../../0000:00:03.0");
}

#[test]
fn a_path_stays_beneath_and_follows_no_link() {
    let host = Host::new();
    host.add("a");
    let class = host.sys("class", PATH | DIR).unwrap();
    let fails = |path, flags| host.at(&class, path, flags).map(drop).unwrap_err();
    assert_eq!(fails("../class", DIR), Errno::XDEV);
    assert_eq!(fails("/class", DIR), Errno::XDEV);
    assert_eq!(fails("", DIR), Errno::NOENT);
    assert_eq!(fails("infiniband_verbs/uverbs0", OFlags::RDONLY), Errno::LOOP);
    assert_eq!(fails("infiniband_verbs/uverbs0/dev", OFlags::RDONLY), Errno::LOOP);
    assert_eq!(fails("infiniband_verbs/uverbs0", OFlags::NOFOLLOW), Errno::LOOP);
    assert_eq!(fails("infiniband_verbs/abi_version", DIR), Errno::NOTDIR);
    assert_eq!(fails("infiniband_verbs/abi_version", OFlags::RDWR), Errno::ACCESS);
    assert_eq!(fails("infiniband_verbs", OFlags::PATH | OFlags::RDWR), Errno::INVAL);
    assert!(host.at(&class, "infiniband/../infiniband_verbs/.", DIR).is_ok());
    let link = host.at(&class, "infiniband_verbs/uverbs0", PATH).unwrap();
    assert_eq!(host.kernel.fstat(&link).unwrap().kind, FileType::Symlink);
}

#[test]
fn an_entry_of_a_link_has_the_number_of_the_link() {
    let host = Host::new();
    host.add("a");
    let mut found = 0;
    let class = host.sys("class/infiniband_verbs", DIR).unwrap();
    while host
        .kernel
        .getdents(&class, &mut |entry| {
            if entry.name == b"uverbs0" {
                found = entry.ino;
            }
        })
        .unwrap()
    {}
    let link = host.sys("class/infiniband_verbs/uverbs0", PATH).unwrap();
    assert_eq!(found, host.ino(&link));
    assert_ne!(found, host.ino(&host.uverbs_dir(0).unwrap()));
}

#[test]
fn eviction_changes_the_times_of_unheld_inodes() {
    let host = Host::new();
    host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    let (ino, before) = (host.ino(&dir), host.kernel.fstat(&dir).unwrap().ctime);
    let first = host.ctime(&dir);
    assert_eq!(host.ctime(&dir), first);
    // A descriptor on a directory does not hold the directory's entries.
    host.machine.evict();
    let second = host.ctime(&dir);
    assert_ne!(second, first);
    assert_eq!(host.ino(&dir), ino);
    assert_eq!(host.kernel.fstat(&dir).unwrap().ctime, before);
    let held = host.at(&dir, "ibdev", OFlags::PATH).unwrap();
    host.machine.evict();
    assert_eq!(host.kernel.fstat(&held).unwrap().ctime, second);
    assert_eq!(host.ctime(&dir), second);
}

#[test]
fn listxattr_changes_times_once() {
    let host = Host::new();
    host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    let held = host.at(&dir, "ibdev", OFlags::PATH).unwrap();
    let ctime = || host.kernel.fstat(&held).unwrap().ctime;
    let before = ctime();
    host.machine.set_listxattr_moves(false);
    host.machine.listxattr(0);
    assert_eq!(ctime(), before);
    host.machine.set_listxattr_moves(true);
    host.machine.listxattr(0);
    let after = ctime();
    assert_ne!(after, before);
    host.machine.listxattr(0);
    assert_eq!(ctime(), after);
    // A node's own attributes outlive the inode.
    drop(held);
    host.machine.evict();
    assert_eq!(host.ctime(&dir), after);
}

#[test]
fn a_dead_directory_answers_as_measured() {
    let host = Host::new();
    let id = host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    let ibdev = host.at(&dir, "ibdev", OFlags::RDONLY).unwrap();
    host.machine.remove(id);
    assert_eq!(host.read(&dir, "ibdev"), Err(Errno::NOENT));
    assert_eq!(host.text(&ibdev), Err(Errno::NODEV));
    assert_eq!(host.kernel.fstat(&dir).unwrap().nlink, 2);
    assert_eq!(host.kernel.fstat(&ibdev).unwrap().nlink, 1);
    assert_eq!(host.names(&dir).unwrap(), [".", ".."]);
    let link = host.sys("class/infiniband_verbs/uverbs0", PATH);
    assert_eq!(link.map(drop), Err(Errno::NOENT));
    let directory = host.at(&host.dev, "infiniband", PATH);
    assert_eq!(directory.map(drop), Err(Errno::NOENT));
}

#[test]
fn a_directory_is_read_in_pages() {
    let host = Host::new();
    let ids: Vec<_> = (0..10).map(|n| host.add(&format!("d{n}"))).collect();
    host.machine.set_entries_a_page(3);
    let class = host.sys("class/infiniband", DIR).unwrap();
    let mut names = Vec::new();
    let mut page = || {
        let mut count = 0;
        let more = host.kernel.getdents(&class, &mut |entry| {
            names.push(entry.name.to_vec());
            count += 1;
        });
        (more.unwrap(), count)
    };
    assert_eq!(page(), (true, 3));
    assert_eq!(page(), (true, 3));
    // Entries that go and come between two pages do not affect the others.
    host.machine.remove(ids[2]);
    while page().0 {}
    assert_eq!(names.len(), 12);
}

#[test]
fn a_live_entry_is_skipped() {
    let host = Host::new();
    let ids: Vec<_> = (0..4).map(|n| host.add(&format!("d{n}"))).collect();
    let class = || host.sys("class/infiniband_verbs", DIR).unwrap();
    host.machine.remove_while_listed(ids[1]);
    assert_eq!(
        host.names(&class()),
        Ok(vec![
            ".".into(),
            "..".into(),
            "abi_version".into(),
            "uverbs0".into(),
            "uverbs1".into(),
            "uverbs3".into(),
        ])
    );
    assert!(!host.machine.is_alive(ids[1]) && host.machine.is_alive(ids[2]));
    let names = host.names(&class()).unwrap();
    assert_eq!(names[3..], ["uverbs0", "uverbs2", "uverbs3"]);
    // This also happens across two pages, and no longer from 7.3 on.
    host.machine.set_entries_a_page(1);
    host.machine.set_lists_reversed(true);
    host.machine.remove_while_listed(ids[3]);
    assert_eq!(host.names(&class()).unwrap()[2..], ["uverbs3", "uverbs0", "abi_version"]);
    host.machine.set_steps_over(false);
    host.machine.remove_while_listed(ids[2]);
    assert_eq!(host.names(&class()).unwrap()[2..], ["uverbs2", "uverbs0", "abi_version"]);
    assert_eq!(host.names(&class()).unwrap()[2..], ["uverbs0", "abi_version"]);
}

#[test]
fn a_page_skips_the_entry_after_a_removed_one() {
    let host = Host::new();
    let add = |n| host.machine.add(DeviceSpec::new(format!("d{n}")).disassociates(false)).unwrap();
    let ids: Vec<_> = (0..4).map(add).collect();
    let names = |class: &str| host.names(&host.sys(class, DIR).unwrap()).unwrap()[2..].join(" ");
    host.machine.remove_while_listed(ids[0]);
    assert_eq!(names("class/infiniband_verbs"), "abi_version uverbs0 uverbs2 uverbs3");
    assert_eq!(names("class/infiniband_verbs"), "abi_version uverbs1 uverbs2 uverbs3");
    // A rename moves the entry: it may be shown twice.
    host.machine.rename_while_listed(ids[1], b"d9");
    assert_eq!(names("class/infiniband"), "d1 d3 d9");
    assert_eq!(names("class/infiniband"), "d2 d3 d9");
    // A device whose removal waits for a descriptor keeps its place.
    let node = host.node(2).unwrap();
    host.machine.remove_while_listed(ids[2]);
    assert_eq!(names("class/infiniband"), "d2 d3 d9");
    drop(node);
    assert_eq!(names("class/infiniband"), "d3 d9");
}

#[test]
fn a_slash_in_a_name_breaks_the_sweep() {
    let host = Host::new();
    let id = host.add("a/b");
    assert_eq!(host.machine.name_of(id), b"a!b");
    host.machine.rename(id, b"a/b").unwrap();
    let class = host.sys("class/infiniband", DIR).unwrap();
    assert_eq!(host.names(&class), Err(Errno::IO));
    assert_eq!(host.read(&host.uverbs_dir(0).unwrap(), "ibdev").unwrap(), b"a/b\n");
    for name in [&b".."[..], b"x\ny", b"\xff\xfe"] {
        host.machine.rename(id, name).unwrap();
        let line = [name, b"\n"].concat();
        assert_eq!(host.read(&host.uverbs_dir(0).unwrap(), "ibdev").unwrap(), line);
    }
    assert_eq!(host.machine.rename(id, b""), Err(22));
    assert_eq!(host.machine.rename(id, &[b'x'; 64]), Err(22));
}

#[test]
fn a_rename_keeps_the_node() {
    let host = Host::new();
    let (a, b) = (host.add("a"), host.add("b"));
    let held = host.sys("devices/virtual/infiniband/a", DIR).unwrap();
    host.machine.swap_names(a, b).unwrap();
    let now = host.sys("devices/virtual/infiniband/b", DIR).unwrap();
    assert_eq!(host.ino(&held), host.ino(&now));
    assert_eq!(host.link("class/infiniband/b"), "../../devices/virtual/infiniband/b");
    assert_eq!(host.machine.rename(a, b"a"), Err(17));
}

#[test]
fn the_class_directory_dies_with_its_module() {
    let host = Host::new();
    let id = host.add("a");
    let (class, dir) = (host.sys("class/infiniband_verbs", DIR).unwrap(), host.uverbs_dir(0));
    let index = host.machine.index_of(id);
    host.machine.reload_ib_uverbs().unwrap();
    assert_eq!(host.names(&class).unwrap(), [".", ".."]);
    assert_eq!(host.read(&class, "abi_version"), Err(Errno::NOENT));
    assert_ne!(host.ino(&dir.unwrap()), host.ino(&host.uverbs_dir(0).unwrap()));
    assert_eq!(host.machine.index_of(id), index);
    host.machine.unload_ib_uverbs().unwrap();
    let class = host.sys("class/infiniband_verbs", DIR);
    assert_eq!(class.map(drop), Err(Errno::NOENT));
    assert!(host.sys("devices/virtual/infiniband/a", DIR).is_ok());
}

#[test]
fn modules_in_use_stay() {
    let host = Host::new();
    host.add("a");
    let node = host.node(0).unwrap();
    assert_eq!(host.machine.unload_ib_uverbs(), Err(16));
    drop(node);
    let socket = host.kernel.rdma_socket().unwrap();
    assert_eq!(host.machine.reload_ib_core(), Err(16));
    assert_eq!(host.machine.reload_ib_uverbs(), Ok(()));
    drop(socket);
    assert_eq!(host.machine.reload_ib_core(), Ok(()));
    let id = host.add("a");
    assert_eq!((host.machine.index_of(id), host.machine.number_of(id)), (0, Some(0)));
}

#[test]
fn a_hook_changes_the_world_and_makes_calls_fail() {
    let host = Host::new();
    let id = host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    let first = host.machine.calls() + 1;
    let mut held = Some(host.uverbs_dir(0).unwrap());
    host.machine.on_call(move |world, call| {
        // Dropping a descriptor in here does not wait for the lock.
        drop(held.take());
        match call.ordinal() - first {
            1 => Verdict::Fail(11),
            2 => {
                world.remove(id);
                Verdict::Continue
            }
            _ => Verdict::Continue,
        }
    });
    assert_eq!(host.read(&dir, "dev"), Err(Errno::AGAIN));
    assert_eq!(host.read(&dir, "dev"), Err(Errno::NOENT));
    host.machine.clear_hook();
    host.machine.record_calls(true);
    let _ = host.read(&dir, "a\nb");
    let log = host.machine.call_log();
    assert_eq!(log, ["openat2(/sys/devices/virtual/infiniband_verbs/uverbs0: a\\nb)"]);
}

#[test]
fn descriptors_are_counted() {
    let host = Host::new();
    let machine = host.machine.clone();
    host.add("a");
    let before = machine.open_handles();
    let open = (host.uverbs_dir(0).unwrap(), host.node(0).unwrap());
    assert_eq!(machine.open_handles(), before + 2);
    drop(open);
    assert_eq!(machine.open_handles(), before);
    drop(host);
    assert_eq!(machine.open_handles(), 0);
}
