//! Nodes, cmd fds, and how a removal affects them.

use std::os::fd::OwnedFd;

use super::*;

#[test]
fn a_node_opens_its_device() {
    let host = Host::new();
    let (a, b) = (host.add("a"), host.add("b"));
    let node = host.node(1).unwrap();
    let stat = host.kernel.fstat(&node).unwrap();
    assert_eq!((stat.kind, stat.rdev), (FileType::CharacterDevice, (231, 193)));
    assert_eq!(host.kernel.fstat_cmd(node.as_fd()), Ok(stat));
    assert_eq!(host.machine.device_of(node.as_fd()), Some(b));
    assert_eq!(host.machine.instance_of(0), Some(a));
    assert_eq!(host.guid(&node), Err(Errno::INVAL));
    assert_eq!(host.get_context(&node), Ok(()));
    assert_eq!(host.get_context(&node), Err(Errno::INVAL));
    assert_eq!(host.guid(&node), Ok(host.machine.guid_of(b)));
    assert_eq!(host.machine.contexts_of(b), [0]);
    assert_eq!(host.machine.node_opens(), [NodeOpened::Verbs(b)]);
    drop(node);
    assert!(host.machine.contexts_of(b).is_empty());
}

#[test]
fn the_ioctl_checks_in_order() {
    let host = Host::new();
    host.add("a");
    let node = host.node(0).unwrap();
    let mut call = VerbsCall { object: 99, method: 3, driver_id: 1, attrs: &mut [] };
    assert_eq!(host.kernel.verbs_ioctl(node.as_fd(), &mut call), Err(Errno::INVAL));
    call.driver_id = RXE;
    assert_eq!(host.kernel.verbs_ioctl(node.as_fd(), &mut call), Err(Errno::PROTONOSUPPORT));
    assert_eq!(host.ioctl(&node, 77, &mut []), Err(Errno::PROTONOSUPPORT));
    let unknown = || Attr { id: 9, data: AttrData::Const(0) };
    assert_eq!(host.ioctl(&node, 3, &mut [unknown()]), Err(Errno::PROTONOSUPPORT));
    let twice = || Attr { id: 0x1000, data: AttrData::In(&[]) };
    assert_eq!(host.ioctl(&node, 3, &mut [twice(), twice()]), Err(Errno::INVAL));
    // A handle that is not a cmd fd answers no ioctl.
    assert_eq!(host.get_context(&host.dev), Err(Errno::NOTTY));
    assert_eq!(host.kernel.fstat_cmd(host.dev.as_fd()), Err(Errno::BADF));
}

#[test]
fn a_driver_gets_its_data_and_writes_its_whole_response() {
    let host = Host::new();
    let spec = DeviceSpec::new("a").driver_data(8, 16).response([7; 80]);
    let id = host.machine.add(spec).unwrap();
    let node = host.node(0).unwrap();
    assert_eq!(host.get_context(&node), Err(Errno::INVAL));
    let mut short = [0; 16];
    let mut room = [0; 256];
    fn attrs(buffer: &mut [u8]) -> [Attr<'_>; 2] {
        [
            Attr { id: 0x1000, data: AttrData::In(&[1, 2, 3, 4, 5, 6, 7, 8]) },
            Attr { id: 0x1001, data: AttrData::Out { buffer, len: 16 } },
        ]
    }
    assert_eq!(host.ioctl(&node, 3, &mut attrs(&mut room)), Ok(()));
    assert_eq!((room[79], room[80]), (7, 0));
    assert_eq!(host.machine.driver_data_of(id), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(host.machine.overruns(), 0);
    let node = host.node(0).unwrap();
    assert_eq!(host.ioctl(&node, 3, &mut attrs(&mut short)), Ok(()));
    assert_eq!(host.machine.overruns(), 1);
}

#[test]
fn a_replacement_reuses_everything_but_the_inode_and_the_index() {
    let host = Host::new();
    let old = host.add("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    let (dir, ino) = (host.uverbs_dir(0).unwrap(), host.machine.node_ino(0));
    host.machine.remove(old);
    let new = host.add("a");
    let again = host.uverbs_dir(0).unwrap();
    assert_eq!(host.read(&again, "dev").unwrap(), b"231:192\n");
    assert_ne!(host.ino(&dir), host.ino(&again));
    assert_ne!(host.machine.index_of(new), host.machine.index_of(old));
    assert_ne!(host.machine.node_ino(0), ino);
    // The driver has disassociated the old context; its descriptor reports that permanently.
    assert_eq!(host.machine.device_of(node.as_fd()), Some(old));
    assert_eq!(host.guid(&node), Err(Errno::IO));
    assert_eq!(host.get_context(&node), Err(Errno::IO));
    assert_eq!(host.pd_handles(&node), Ok(vec![]));
    assert_eq!(host.kernel.fstat(&node).unwrap().nlink, 0);
    assert_eq!(host.machine.device_of(host.node(0).unwrap().as_fd()), Some(new));
}

#[test]
fn a_static_node_binds_the_old_device_while_it_is_held() {
    let host = Host::new();
    host.machine.set_node(0, NodeKind::Static);
    let old = host.add_stubborn("rxe0");
    // Somebody opens the device through that very inode.
    let ctxn = host.machine.foreign_context(old).unwrap();
    host.machine.remove(old);
    assert!(!host.machine.is_gone(old));
    let new = host.add_stubborn("rxe1");
    assert_eq!(host.read(&host.uverbs_dir(0).unwrap(), "ibdev").unwrap(), b"rxe1\n");
    let bound = host.node(0).unwrap();
    assert_eq!(host.machine.device_of(bound.as_fd()), Some(old));
    host.get_context(&bound).unwrap();
    assert_eq!(host.guid(&bound), Ok(host.machine.guid_of(old)));
    drop(bound);
    host.machine.close_foreign(old, ctxn);
    assert!(host.machine.is_gone(old));
    assert_eq!(host.machine.device_of(host.node(0).unwrap().as_fd()), Some(new));
}

#[test]
fn a_static_node_of_a_disassociated_device_fails_until_the_last_close() {
    let host = Host::new();
    host.machine.set_devtmpfs(false);
    host.machine.set_node(0, NodeKind::Static);
    let old = host.add("a");
    let held = host.node(0).unwrap();
    host.machine.remove(old);
    assert_eq!(host.node(0).map(drop), Err(Errno::IO));
    let new = host.add("a");
    assert_eq!(host.node(0).map(drop), Err(Errno::IO));
    drop(held);
    assert_eq!(host.machine.device_of(host.node(0).unwrap().as_fd()), Some(new));
}

#[test]
fn a_node_by_hand_in_devtmpfs_survives() {
    let host = Host::new();
    let old = host.add_stubborn("a");
    host.machine.set_node(0, NodeKind::Static);
    let _held = host.node(0).unwrap();
    let ino = host.machine.node_ino(0);
    host.machine.remove(old);
    host.add_stubborn("b");
    assert_eq!(host.machine.node_ino(0), ino);
    let node = host.node(0).unwrap();
    assert_eq!(host.machine.device_of(node.as_fd()), Some(old));
    assert_eq!(host.kernel.fstat(&node).unwrap().nlink, 1);
    // The kernel makes a fresh node in its place.
    host.machine.set_node(0, NodeKind::Kernel);
    assert_ne!(host.machine.device_of(host.node(0).unwrap().as_fd()), Some(old));
}

#[test]
fn removal_goes_in_its_order() {
    let host = Host::new();
    let id = host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    host.machine.set_node(1, NodeKind::Device(231, 192));
    let mut stages = Vec::new();
    while let Some(stage) = host.machine.remove_step(id) {
        stages.push(stage);
        let alive = |name| host.read(&dir, name).is_ok();
        let link = host.sys("class/infiniband_verbs/uverbs0", PATH).is_ok();
        assert_eq!(host.node(0).is_ok(), stage < Stage::NodeGone, "{stage:?}");
        assert_eq!(alive("dev"), stage < Stage::DevGone, "{stage:?}");
        assert_eq!(link, stage < Stage::LinkGone, "{stage:?}");
        assert_eq!(alive("ibdev"), stage < Stage::AttributesGone, "{stage:?}");
        assert_eq!(host.uverbs_dir(0).is_ok(), stage < Stage::DirectoryGone, "{stage:?}");
        host.machine.set_node(1, NodeKind::Device(231, 192));
        let other = host.node(1);
        assert_eq!(other.is_ok(), stage < Stage::Unmapped, "{stage:?}");
        assert_eq!(host.machine.instance_of(0).is_some(), stage < Stage::NumberFreed);
    }
    assert_eq!(stages.len(), 10);
    assert!(stages.is_sorted());
    assert_eq!(host.node(1).map(drop), Err(Errno::NXIO));
}

#[test]
fn a_blocked_removal_keeps_the_name_and_the_context() {
    let host = Host::new();
    let old = host.add_stubborn("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    host.machine.remove(old);
    assert_eq!(host.machine.add(DeviceSpec::new("a")), Err(23));
    assert!(host.sys("devices/virtual/infiniband/a", DIR).is_ok());
    assert_eq!(host.guid(&node), Ok(host.machine.guid_of(old)));
    let other = host.add("b");
    assert_eq!(host.machine.number_of(other), Some(0));
    // A descriptor that was handed out stays open until its last duplicate is closed.
    let owned = OwnedFd::from(node);
    let duplicate = owned.try_clone().unwrap();
    drop(owned);
    assert_eq!(host.machine.device_of(duplicate.as_fd()), Some(old));
    assert_eq!(host.guid(&duplicate), Ok(host.machine.guid_of(old)));
    assert!(!host.machine.is_gone(old));
    drop(duplicate);
    assert!(host.machine.is_gone(old));
    host.add("a");
}

#[test]
fn other_things_at_the_name_of_a_node() {
    let host = Host::new();
    host.add("a");
    let look = || {
        let node = host.at(&host.dev, "infiniband/uverbs0", PATH).unwrap();
        host.kernel.fstat(&node).unwrap().kind
    };
    host.machine.set_node(0, NodeKind::Symlink("/etc/passwd".into()));
    assert_eq!((look(), host.node(0).map(drop)), (FileType::Symlink, Err(Errno::LOOP)));
    host.machine.set_node(0, NodeKind::Directory);
    assert_eq!((look(), host.node(0).map(drop)), (FileType::Directory, Err(Errno::ISDIR)));
    host.machine.set_node(0, NodeKind::Forbidden);
    host.machine.set_node(0, NodeKind::Kernel);
    host.machine.set_node(0, NodeKind::Forbidden);
    assert_eq!((look(), host.node(0).map(drop)), (FileType::CharacterDevice, Err(Errno::ACCESS)));
    assert!(host.machine.node_opens().is_empty());
    host.machine.set_node(0, NodeKind::Fifo);
    assert_eq!(
        (look(), host.get_context(&host.node(0).unwrap())),
        (FileType::Fifo, Err(Errno::NOTTY))
    );
    host.machine.set_node(0, NodeKind::Device(1, 3));
    let zero = host.node(0).unwrap();
    assert_eq!(host.get_context(&zero), Err(Errno::NOTTY));
    assert_eq!(host.kernel.fstat_cmd(zero.as_fd()).unwrap().rdev, (1, 3));
    assert_eq!(host.machine.node_opens(), [NodeOpened::Fifo, NodeOpened::Device(1, 3)]);
    host.machine.set_node(0, NodeKind::Missing);
    assert_eq!(host.node(0).map(drop), Err(Errno::NOENT));
}

#[test]
fn another_network_namespace_may_not_open() {
    let host = Host::new();
    let id = host.add("a");
    host.machine.set_netns_visible(id, false);
    assert_eq!(host.node(0).map(drop), Err(Errno::PERM));
    let class = host.sys("class/infiniband", DIR).unwrap();
    assert_eq!(host.names(&class).unwrap(), [".", ".."]);
    // Its uverbs directory is visible everywhere.
    assert_eq!(host.read(&host.uverbs_dir(0).unwrap(), "ibdev").unwrap(), b"a\n");
    host.machine.set_netns_visible(id, true);
    assert!(host.node(0).is_ok());
}

#[test]
fn a_move_of_namespace_makes_another_instance() {
    let host = Host::new();
    let (id, stubborn) = (host.add("a"), host.add_stubborn("b"));
    let (node, dir) = (host.node(0).unwrap(), host.machine.directory(id));
    let ib = host.sys("devices/virtual/infiniband/a", DIR).unwrap();
    host.machine.recreate_uverbs(id).unwrap();
    assert_eq!(host.machine.directory_of(node.as_fd()), dir);
    assert_ne!(host.machine.directory(id), dir);
    assert_eq!(host.get_context(&node), Err(Errno::IO));
    assert_eq!(host.read(&ib, "node_type").unwrap(), b"1: CA\n");
    assert_eq!(host.machine.recreate_uverbs(stubborn), Err(95));
}

#[test]
fn a_uverbs_directory_has_what_a_real_one_has() {
    let host = Host::new();
    let id = host.add("a");
    let dir = host.uverbs_dir(0).unwrap();
    let expected = [".", "..", "abi_version", "dev", "ibdev", "power", "subsystem", "uevent"];
    assert_eq!(host.names(&dir).unwrap(), expected);
    // Itself, its name and power.
    assert_eq!(host.kernel.fstat(&dir).unwrap().nlink, 3);
    host.machine.remove(id);
    assert_eq!(host.kernel.fstat(&dir).unwrap().nlink, 2);
}

#[test]
fn devtmpfs_removes_its_own_empty_directory_alone() {
    let host = Host::new();
    let there = || host.at(&host.dev, "infiniband", DIR).map(drop);
    let id = host.add("a");
    assert_eq!(there(), Ok(()));
    // A directory that was emptied by hand stays until a node of the kernel's comes and goes.
    host.machine.set_node(0, NodeKind::Missing);
    assert_eq!(there(), Ok(()));
    host.machine.remove(id);
    assert_eq!(there(), Ok(()));
    let id = host.add("b");
    host.machine.remove(id);
    assert_eq!(there(), Err(Errno::NOENT));
    // Missing directories are not created.
    host.machine.set_node(0, NodeKind::Missing);
    assert_eq!(there(), Err(Errno::NOENT));
    // A hand-made directory stays.
    host.machine.set_node(1, NodeKind::Fifo);
    let id = host.add("c");
    host.machine.set_node(1, NodeKind::Missing);
    host.machine.remove(id);
    assert_eq!(there(), Ok(()));
}
