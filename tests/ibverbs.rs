//! Which device a device handle of libibverbs stands for.

use std::sync::Arc;

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{
    CheckId, Device, ErrorKind, Guid, Host, IbvHandle, IbvHandles, OldNames, Registry, Result, Step,
};

fn host(machine: &Machine) -> Host {
    Host::simulated(machine).expect("a host")
}

fn add(machine: &Machine, name: &str, guid: u64) -> DeviceId {
    machine.add(DeviceSpec::new(name).guid(guid)).expect("added")
}

/// A handle as libibverbs makes it.
fn handle(machine: &Machine, id: DeviceId, number: u32, name: &str) -> IbvHandle {
    let index = machine.index_of(id).cast_signed();
    let node = format!("uverbs{number}");
    let guid = Guid(machine.guid_of(id));
    IbvHandle::new(index, node.as_bytes(), name.as_bytes(), guid).expect("a handle")
}

fn find(machine: &Machine, handles: &IbvHandles, handle: &IbvHandle) -> Result<Device> {
    let found = handles.find(&Registry::new(host(machine)), handle, OldNames::AfterList)?;
    Ok(found.device().clone())
}

fn list(handles: &IbvHandles, host: &Host) -> Result<()> {
    handles.list(host, || (), |(), _| Ok(()))
}

/// The check that refused the handle, and the kind of the error.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, Option<CheckId>) {
    let error = result.expect_err("refused");
    assert_eq!(error.step(), Some(Step::Handle), "{error}");
    assert!(error.device().is_some(), "{error}");
    (error.kind(), error.check().map(|check| check.id))
}

#[test]
fn a_good_handle_finds_its_device() {
    let machine = Machine::new();
    let ids = [add(&machine, "a", 1), add(&machine, "b", 2)];
    let handles = IbvHandles::new();
    handles.begin(&host(&machine)).expect("an epoch");
    for (number, (id, name)) in ids.into_iter().zip(["a", "b"]).enumerate() {
        let handle = handle(&machine, id, number as u32, name);
        let device = find(&machine, &handles, &handle).expect("found");
        assert_eq!(Some(device.instance().ino), machine.directory(id));
    }
}

#[test]
fn a_handle_is_parsed_strictly() {
    for node in ["", "uverbs", "uverbs0x", "uverbs01", "uverbs-1", "umad0", "uverbs4294967296"] {
        let error = IbvHandle::new(0, node.as_bytes(), b"a", Guid(1)).expect_err("malformed");
        assert_eq!(error.kind(), ErrorKind::Malformed, "{node}");
    }
}

#[test]
fn a_handle_without_an_index_is_unproven() {
    let machine = Machine::new();
    add(&machine, "a", 1);
    let handle = IbvHandle::new(-1, b"uverbs0", b"a", Guid(1)).expect("a handle");
    let result = find(&machine, &IbvHandles::new(), &handle);
    let name = result.as_ref().expect_err("refused").device().map(str::to_owned);
    assert_eq!(name.as_deref(), Some("a (uverbs0)"));
    assert_eq!(refused(result), (ErrorKind::Unproven, None));
}

#[test]
fn a_handle_of_a_removed_device_is_refused() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let handle = handle(&machine, id, 0, "a");
    machine.remove(id);
    add(&machine, "a", 1);
    let result = find(&machine, &IbvHandles::new(), &handle);
    assert_eq!(refused(result), (ErrorKind::Removed, None));
}

#[test]
fn a_handle_of_a_device_without_a_node_is_refused() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let handle = handle(&machine, id, 0, "a");
    machine.with(|world| world.unload_ib_uverbs()).expect("unloaded");
    let result = find(&machine, &IbvHandles::new(), &handle);
    assert_eq!(refused(result), (ErrorKind::Removed, None));
}

/// At the start of a process, ib_core need not be loaded. The first open then sets the epoch.
#[test]
fn the_epoch_may_begin_with_the_first_open() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let handle = handle(&machine, id, 0, "a");
    let handles = IbvHandles::new();
    machine.on_call(|world, call| match call.detail(world).contains("class/infiniband") {
        true => Verdict::Fail(2),
        false => Verdict::Continue,
    });
    handles.begin(&host(&machine)).expect("no ib_core");
    list(&handles, &host(&machine)).expect("an empty list");
    machine.clear_hook();
    find(&machine, &handles, &handle).expect("the first open");
    reload(&machine);
    let result = find(&machine, &handles, &handle);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::Epoch)));
}

#[test]
fn each_field_must_be_that_of_the_index() {
    let machine = Machine::new();
    let ids = [add(&machine, "a", 1), add(&machine, "b", 2)];
    let right = handle(&machine, ids[0], 0, "a");
    let handles = IbvHandles::new();
    let mut other = right.clone();
    other.node_guid = Guid(2);
    let result = find(&machine, &handles, &other);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::HandleGuid)));
    let mut other = right.clone();
    other.name = handle(&machine, ids[1], 1, "b").name;
    let result = find(&machine, &handles, &other);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::HandleName)));
    let mut other = right.clone();
    other.uverbs_number = 1;
    let result = find(&machine, &handles, &other);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::HandleNode)));
    find(&machine, &handles, &right).expect("the right one");
}

#[test]
fn an_older_name_is_a_rename_after_a_list() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let old = handle(&machine, id, 0, "a");
    let handles = IbvHandles::new();
    machine.rename(id, b"b").expect("renamed");
    let result = find(&machine, &handles, &old);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::HandleName)));
    let registry = Registry::new(host(&machine));
    handles.find(&registry, &old, OldNames::Allow).expect("allowed");
    list(&handles, registry.host()).expect("a list");
    handles.find(&registry, &old, OldNames::AfterList).expect("renamed since the list");
}

#[test]
fn a_list_is_mended() {
    let machine = Machine::new();
    let ids = [add(&machine, "a", 1), add(&machine, "b", 2)];
    machine.with(|world| world.swap_names(ids[0], ids[1])).expect("swapped");
    let indices = ids.map(|id| machine.index_of(id));
    let mut found = Vec::new();
    let handles = IbvHandles::new();
    handles
        .list(
            &host(&machine),
            || (),
            |(), names| {
                for index in indices.into_iter().chain([77]) {
                    found.push(names.get(index)?.map(|name| name.to_string()));
                }
                Ok(())
            },
        )
        .expect("a list");
    let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    assert_eq!(found, [Some("b"), Some("a"), None]);
}

#[test]
fn a_list_that_cannot_be_mended_does_not_count() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let old = handle(&machine, id, 0, "a");
    let (host, index) = (host(&machine), machine.index_of(id));
    let handles = IbvHandles::new();
    machine.rename(id, b"b").expect("renamed");
    machine.with(|world| world.deny_netlink(Some(13)));
    let mut made = 0;
    let error = handles
        .list(&host, || made += 1, |(), names| names.get(index).map(drop))
        .expect_err("no names");
    assert_eq!((made, error.kind()), (3, ErrorKind::NetlinkUnavailable));
    // Where libibverbs has no indices, either, there is nothing to mend.
    handles.list(&host, || (), |(), _| Ok(())).expect("a list");
    machine.with(|world| world.deny_netlink(None));
    let fresh = IbvHandles::new();
    fresh.list(&host, || (), |(), names| names.get(77).map(drop)).expect("a list");
    let failed = IbvHandles::new();
    machine.with(|world| world.deny_netlink(Some(13)));
    failed.list(&host, || (), |(), names| names.get(index).map(drop)).expect_err("no names");
    machine.with(|world| world.deny_netlink(None));
    find(&machine, &fresh, &old).expect("renamed since the list");
    let result = find(&machine, &failed, &old);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::HandleName)));
}

/// Everything is as it was before, and only the epoch shows the reload.
fn reload(machine: &Machine) {
    machine.with(|world| world.reload_ib_core()).expect("reloaded");
    add(machine, "a", 1);
}

#[test]
fn after_a_reload_of_ib_core_older_handles_are_refused() {
    let machine = Machine::new();
    let handle = {
        let id = add(&machine, "a", 1);
        handle(&machine, id, 0, "a")
    };
    let stale = (ErrorKind::Replaced, Some(CheckId::Epoch));
    let (began, listed, opened) = (IbvHandles::new(), IbvHandles::new(), IbvHandles::new());
    began.begin(&host(&machine)).expect("an epoch");
    list(&listed, &host(&machine)).expect("a list");
    find(&machine, &opened, &handle).expect("the first open");
    let fresh = IbvHandles::new();
    reload(&machine);
    for handles in [&began, &listed, &opened] {
        assert_eq!(refused(find(&machine, handles, &handle)), stale);
        // A later beginning does not count.
        handles.begin(&host(&machine)).expect("an epoch");
        assert_eq!(refused(find(&machine, handles, &handle)), stale);
    }
    // Nothing shows that the handle is older.
    find(&machine, &fresh, &handle).expect("the first open");
    for handles in [&began, &listed, &opened] {
        list(handles, &host(&machine)).expect("a list");
        find(&machine, handles, &handle).expect("listed again");
    }
}

#[test]
fn a_list_during_a_reload_is_made_again() {
    let machine = Machine::new();
    add(&machine, "a", 1);
    let host = host(&machine);
    let handles = IbvHandles::new();
    let alive = Arc::new(());
    let mut made = 0;
    let make = || {
        made += 1;
        assert_eq!(Arc::strong_count(&alive), 1, "an older list is still there");
        if made < 3 {
            reload(&machine);
        }
        Arc::clone(&alive)
    };
    let list = handles.list(&host, make, |_, _| Ok(()));
    assert_eq!((made, Arc::strong_count(&list.expect("a list"))), (3, 2));
    let error =
        handles.list(&host, || reload(&machine), |(), _| Ok(())).expect_err("reloaded each time");
    assert_eq!(error.kind(), ErrorKind::Unstable);
    // The last good list is older than the last reload.
    let id = machine.with(|world| world.instance_of(0)).expect("there");
    let handle = handle(&machine, id, 0, "a");
    let result = find(&machine, &handles, &handle);
    assert_eq!(refused(result), (ErrorKind::Replaced, Some(CheckId::Epoch)));
}

#[test]
fn nothing_is_found_where_sys_is_not_sysfs() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    machine.with(|world| world.set_sys_type(1));
    let host = Host::builder().simulated(&machine).allow_foreign_sys(true).build().expect("a host");
    let handle = handle(&machine, id, 0, "a");
    let result = IbvHandles::new().find(&Registry::new(host), &handle, OldNames::AfterList);
    assert_eq!(refused(result), (ErrorKind::Unsupported, None));
}

#[test]
fn an_error_of_netlink_or_sysfs_is_returned() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let handle = handle(&machine, id, 0, "a");
    let handles = IbvHandles::new();
    machine.with(|world| world.deny_netlink(Some(13)));
    let result = find(&machine, &handles, &handle);
    assert_eq!(refused(result), (ErrorKind::NetlinkUnavailable, None));
    machine.with(|world| world.deny_netlink(None));
    let registry = Registry::new(host(&machine));
    machine.on_call(|_, call| match call.kind() {
        CallKind::Openat2 => Verdict::Fail(13),
        _ => Verdict::Continue,
    });
    let result = handles.find(&registry, &handle, OldNames::AfterList);
    assert_eq!(refused(result), (ErrorKind::PermissionDenied, None));
    list(&handles, registry.host()).expect_err("no epoch");
    machine.clear_hook();
}

/// Nothing is opened through such a host, so it holds no `/dev`.
#[test]
fn a_host_without_dev_finds_and_verifies() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let opened = Registry::new(host(&machine))
        .by_index(machine.index_of(id))
        .expect("listed")
        .open()
        .expect("open");
    let host = Host::builder().simulated(&machine).without_dev().build().expect("a host");
    let registry = Registry::new(host);
    let handle = handle(&machine, id, 0, "a");
    let found = IbvHandles::new().find(&registry, &handle, OldNames::AfterList).expect("found");
    let evidence = found.verify(&opened).expect("proved");
    let first = evidence.checks().first().expect("checks");
    assert_eq!((first.step, first.id), (Step::Handle, CheckId::Epoch));
    let error = found.device().open().map(drop).expect_err("no /dev");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// The device is held from before the context is allocated, so a device that takes its place is not taken for it.
#[test]
fn a_device_that_goes_between_find_and_verify_is_refused() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let registry = Registry::new(host(&machine));
    let opened = registry.by_index(machine.index_of(id)).expect("listed").open().expect("open");
    let handle = handle(&machine, id, 0, "a");
    let found = IbvHandles::new().find(&registry, &handle, OldNames::AfterList).expect("found");
    machine.remove(id);
    add(&machine, "a", 1);
    let error = found.verify(&opened).expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Replaced, "{error}");
    assert!(error.evidence().is_some());
}

/// What the guard adds to an open, apart from the host's own calls and the `close`s: fewer than an open by the library.
#[test]
fn a_handle_is_found_and_proved_in_few_calls() {
    let machine = Machine::new();
    let id = add(&machine, "a", 1);
    let registry = Registry::new(host(&machine));
    let opened = registry.by_index(machine.index_of(id)).expect("listed").open().expect("open");
    let handle = handle(&machine, id, 0, "a");
    let registry = Registry::new(host(&machine));
    let before = machine.calls();
    let found = IbvHandles::new().find(&registry, &handle, OldNames::AfterList).expect("found");
    found.verify(&opened).expect("proved");
    assert_eq!(machine.calls() - before, 27);
}
