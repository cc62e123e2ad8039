//! The C interface, called as C calls it.
#![allow(unsafe_code)]

mod parents;

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use uverbs::Host;
use uverbs::sim::Machine;
use uverbs_capi::*;

use crate::api::{
    Answers, Api, Change, Check, Event, Evidence, Facts, Failure, Handle, Netdev, Parent, Port,
    Result,
};

pub(crate) struct C;

/// A reference that is dropped.
pub(crate) struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T) -> *mut T);

impl<T> Owned<T> {
    fn get(&self) -> Option<&T> {
        // SAFETY: the reference is this object's.
        unsafe { self.0.as_ref() }
    }

    /// Gives the reference up.
    fn into_raw(self) -> *mut T {
        let pointer = self.0;
        std::mem::forget(self);
        pointer
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the reference is this object's, and is not used after this.
        assert!(unsafe { (self.1)(self.0) }.is_null());
    }
}

/// Calls a function with an error argument.
fn call(
    function: impl FnOnce(Option<&mut MaybeUninit<*mut uverbs_error>>) -> c_int,
) -> Result<c_int> {
    // A pointer that nobody may read.
    let mut slot = MaybeUninit::new(ptr::dangling_mut());
    let number = function(Some(&mut slot));
    // SAFETY: every function sets it.
    let error: *mut uverbs_error = unsafe { slot.assume_init() };
    assert_eq!(number < 0, !error.is_null(), "{number}");
    if number >= 0 {
        return Ok(number);
    }
    // SAFETY: it was set by the function that failed.
    let failure = failure(unsafe { error.as_ref() }.expect("an error"));
    // SAFETY: it belongs to the caller.
    unsafe { uverbs_error_free(error) };
    let kind = failure.1;
    assert!((1..UVERBS_ERROR_ARGUMENT).contains(&kind), "{failure:?}");
    Err(failure.0)
}

/// Calls a function with a result and an error argument.
fn made<T>(
    unref: unsafe extern "C" fn(*mut T) -> *mut T,
    function: impl FnOnce(
        Option<&mut MaybeUninit<*mut T>>,
        Option<&mut MaybeUninit<*mut uverbs_error>>,
    ) -> c_int,
) -> Result<(Owned<T>, c_int)> {
    let mut slot = MaybeUninit::new(ptr::dangling_mut());
    let result = call(|error| function(Some(&mut slot), error));
    // SAFETY: every function sets it.
    let made = unsafe { slot.assume_init() };
    assert!(result.is_ok() || made.is_null());
    result.map(|number| (Owned(made, unref), number))
}

fn text(pointer: *const c_char) -> Option<String> {
    bytes(pointer).map(|bytes| String::from_utf8(bytes).expect("escaped"))
}

fn bytes(pointer: *const c_char) -> Option<Vec<u8>> {
    // SAFETY: the library returns C strings.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_bytes().to_owned())
}

/// The text that a function copies.
fn copied(function: impl Fn(*mut c_char, usize) -> c_int) -> Vec<u8> {
    let mut buffer = [0x55; 256];
    let length = function(buffer.as_mut_ptr().cast(), buffer.len()) as usize;
    assert_eq!(buffer[length], 0);
    assert_eq!(function(ptr::null_mut(), 0), length as c_int);
    buffer[..length].to_owned()
}

fn failure(error: &uverbs_error) -> (Failure, u32) {
    let error = Some(error);
    let step = text(uverbs_error_step_name(error));
    assert_eq!(uverbs_error_step(error) >= 0, step.is_some());
    let evidence = uverbs_error_evidence(error);
    // SAFETY: it lives as long as the error.
    let evidence = unsafe { evidence.as_ref() };
    let failure = Failure {
        code: text(uverbs_error_code(error)).expect("a code"),
        step: step.map(|name| (uverbs_error_step(error) as u8, name)),
        device: text(uverbs_error_device(error)),
        errno: Some(uverbs_error_errno(error)).filter(|errno| *errno != 0),
        cause: text(uverbs_error_cause(error)).expect("a cause"),
        message: text(uverbs_error_message(error)).expect("a message"),
        hint: text(uverbs_error_hint(error)),
        evidence: evidence.map(evidence_of),
    };
    (failure, uverbs_error_kind(error))
}

fn evidence_of(evidence: &uverbs_evidence) -> Evidence {
    let evidence = Some(evidence);
    let check = |place| {
        let mut check = MaybeUninit::<uverbs_check>::uninit();
        let size = size_of::<uverbs_check>();
        // SAFETY: there is room for one.
        let number = unsafe { uverbs_evidence_get(evidence, place, check.as_mut_ptr(), size) };
        assert_eq!(number, 0);
        // SAFETY: it was filled.
        let check = unsafe { check.assume_init() };
        Check {
            id: text(check.id).expect("an id"),
            what: text(check.what).expect("a text"),
            step: (check.step as u8, text(check.step_name).expect("a step")),
            expected: text(check.expected).expect("a value"),
            found: text(check.found).expect("a value"),
            held: check.held == 1,
        }
    };
    Evidence {
        checks: (0..uverbs_evidence_count(evidence)).map(check).collect(),
        index: uverbs_evidence_index(evidence).try_into().ok(),
        context_number: uverbs_evidence_context_number(evidence).try_into().ok(),
    }
}

fn ino_of(device: *const uverbs_device) -> Option<u64> {
    let mut instance = MaybeUninit::<uverbs_instance>::uninit();
    let size = size_of::<uverbs_instance>();
    // SAFETY: it is null or alive.
    let device = unsafe { device.as_ref() }?;
    // SAFETY: there is room for one.
    let number = unsafe { uverbs_device_instance(Some(device), instance.as_mut_ptr(), size) };
    assert_eq!(number, 0);
    // SAFETY: it was filled.
    Some(unsafe { instance.assume_init() }.ino)
}

fn change_of(change: Option<&uverbs_change>) -> Change {
    let kind = match uverbs_change_kind(change) {
        UVERBS_CHANGE_ADDED => "added",
        UVERBS_CHANGE_READY => "ready",
        UVERBS_CHANGE_REMOVED => "removed",
        UVERBS_CHANGE_REPLACED => "replaced",
        UVERBS_CHANGE_RENAMED => "renamed",
        UVERBS_CHANGE_RESYNCHRONISED => "resynchronised",
        other => panic!("{other}"),
    };
    Change {
        kind,
        device: ino_of(uverbs_change_device(change)),
        old: ino_of(uverbs_change_old_device(change)),
        name: bytes(uverbs_change_name(change)),
        old_name: bytes(uverbs_change_old_name(change)),
        reason: text(uverbs_change_reason(change)),
        text: text(uverbs_change_text(change)).expect("a text"),
    }
}

fn next_of((change, number): (Owned<uverbs_change>, c_int)) -> Option<Change> {
    assert_eq!(change.get().is_some(), number == 1);
    change.get().map(|change| change_of(Some(change)))
}

/// Calls a query that fills a struct.
fn filled<T>(
    function: impl FnOnce(*mut T, usize, Option<&mut MaybeUninit<*mut uverbs_error>>) -> c_int,
) -> Result<T> {
    let mut filled = MaybeUninit::uninit();
    call(|error| function(filled.as_mut_ptr(), size_of::<T>(), error))?;
    // SAFETY: it was filled.
    Ok(unsafe { filled.assume_init() })
}

/// Calls a query that fills an array, which has room for 300 entries.
fn array<T: Copy>(
    function: impl Fn(*mut T, usize, usize, Option<&mut MaybeUninit<*mut uverbs_error>>) -> c_int,
) -> Result<Vec<T>> {
    let mut entries = [const { MaybeUninit::<T>::uninit() }; 300];
    let to = entries.as_mut_ptr().cast();
    let count = call(|error| function(to, size_of::<T>(), entries.len(), error))?;
    let filled = entries[..count as usize].iter();
    // SAFETY: so many were filled.
    Ok(filled.map(|entry| unsafe { entry.assume_init() }).collect())
}

/// The fields of a struct, as `entries` of the Rust type returns them.
macro_rules! entries {
    ($struct:expr; $($field:ident)*) => { vec![$((stringify!($field), u64::from($struct.$field)),)*] };
}

fn milliseconds(timeout: Duration) -> c_int {
    timeout.as_millis() as c_int
}

impl Api for C {
    type Registry = Owned<uverbs_registry>;
    type List = Owned<uverbs_list>;
    type Device = Owned<uverbs_device>;
    type Context = Owned<uverbs_context>;
    type Watch = Owned<uverbs_watch>;
    type Events = Owned<uverbs_events>;

    fn registry(machine: &Machine) -> Self::Registry {
        let registry = registry_of(Host::simulated(machine).expect("a host"));
        assert!(!registry.is_null());
        Owned(registry, uverbs_registry_unref)
    }

    fn list(registry: &Self::Registry) -> Result<Self::List> {
        let list = |list: Option<&mut _>, error: Option<&mut _>| {
            uverbs_registry_list(registry.get(), list, error)
        };
        Ok(made(uverbs_list_unref, list)?.0)
    }

    fn devices(list: &Self::List) -> Vec<Self::Device> {
        let count = uverbs_list_count(list.get());
        assert!(uverbs_list_get(list.get(), count).is_null());
        let device = |place| {
            // SAFETY: the device is alive, as it is borrowed from the list.
            let device = unsafe { uverbs_device_ref(uverbs_list_get(list.get(), place)) };
            Owned(device, uverbs_device_unref)
        };
        (0..count).map(device).collect()
    }

    fn faults(list: &Self::List) -> Vec<String> {
        let fault = |place| {
            // SAFETY: it is borrowed from the list.
            let fault = unsafe { uverbs_list_fault(list.get(), place).as_ref() };
            text(uverbs_error_message(fault)).expect("a message")
        };
        (0..uverbs_list_fault_count(list.get())).map(fault).collect()
    }

    fn by_name(list: &Self::List, name: &[u8]) -> Result<Self::Device> {
        let name = CString::new(name).expect("no NUL");
        // SAFETY: the name is a C string.
        let find = |device: Option<&mut _>, error: Option<&mut _>| unsafe {
            uverbs_list_by_name(list.get(), name.as_ptr(), device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn by_guid(list: &Self::List, guid: u64) -> Result<Self::Device> {
        let find = |device: Option<&mut _>, error: Option<&mut _>| {
            uverbs_list_by_guid(list.get(), guid, device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn by_index(list: &Self::List, index: u32) -> Result<Self::Device> {
        let find = |device: Option<&mut _>, error: Option<&mut _>| {
            uverbs_list_by_index(list.get(), index, device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn by_number(list: &Self::List, number: u32) -> Result<Self::Device> {
        let find = |device: Option<&mut _>, error: Option<&mut _>| {
            uverbs_list_by_uverbs_number(list.get(), number, device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn by_pci(list: &Self::List, address: &str) -> Result<Self::Device> {
        let address = CString::new(address).expect("no NUL");
        // SAFETY: the address is a C string.
        let find = |device: Option<&mut _>, error: Option<&mut _>| unsafe {
            uverbs_list_by_pci(list.get(), address.as_ptr(), device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn all_by_pci(list: &Self::List, address: &str) -> Result<Vec<u64>> {
        let address = CString::new(address).expect("no NUL");
        let (list, address) = (list.get(), address.as_ptr());
        // SAFETY: with room for none, no pointer is used.
        let count = call(|error| unsafe {
            uverbs_list_all_by_pci(list, address, ptr::null_mut(), 0, error)
        })?;
        let mut devices = vec![ptr::null(); count as usize + 1];
        let (to, room) = (devices.as_mut_ptr(), devices.len());
        // SAFETY: the array has that much room.
        let again =
            call(|error| unsafe { uverbs_list_all_by_pci(list, address, to, room, error) })?;
        assert_eq!(again, count);
        assert!(devices.pop().is_some_and(|device| device.is_null()));
        Ok(devices.into_iter().map(|device| ino_of(device).expect("a device")).collect())
    }

    fn by_index_at_once(registry: &Self::Registry, index: u32) -> Result<Self::Device> {
        let find = |device: Option<&mut _>, error: Option<&mut _>| {
            uverbs_registry_by_index(registry.get(), index, device, error)
        };
        Ok(made(uverbs_device_unref, find)?.0)
    }

    fn name(device: &Self::Device) -> Vec<u8> {
        // SAFETY: the buffer has that size.
        copied(|buffer, size| unsafe { uverbs_device_name(device.get(), buffer, size) })
    }

    fn label(device: &Self::Device) -> String {
        // SAFETY: the buffer has that size.
        let node = copied(|to, size| unsafe { uverbs_device_node_name(device.get(), to, size) });
        // SAFETY: the buffer has that size.
        let label = copied(|to, size| unsafe { uverbs_device_label(device.get(), to, size) });
        let label = String::from_utf8(label).expect("escaped");
        assert!(label.contains(str::from_utf8(&node).expect("a node")), "{label}");
        label
    }

    fn number(device: &Self::Device) -> u32 {
        let mut number = MaybeUninit::uninit();
        assert_eq!(uverbs_device_uverbs_number(device.get(), Some(&mut number)), 0);
        // SAFETY: it was set.
        unsafe { number.assume_init() }
    }

    fn device_number(device: &Self::Device) -> (u32, u32) {
        let (mut major, mut minor) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        assert_eq!(uverbs_device_number(device.get(), Some(&mut major), Some(&mut minor)), 0);
        assert_eq!(uverbs_device_number(device.get(), None, None), 0);
        // SAFETY: it was set.
        let major = unsafe { major.assume_init() };
        // SAFETY: it was set.
        (major, unsafe { minor.assume_init() })
    }

    fn ino(device: &Self::Device) -> u64 {
        ino_of(device.0).expect("a device")
    }

    fn same(one: &Self::Device, other: &Self::Device) -> bool {
        uverbs_device_equal(one.get(), other.get())
    }

    fn is_known_gone(device: &Self::Device) -> bool {
        uverbs_device_is_known_gone(device.get())
    }

    fn index(device: &Self::Device) -> Result<u32> {
        let mut index = MaybeUninit::uninit();
        call(|error| uverbs_device_index(device.get(), Some(&mut index), error))?;
        // SAFETY: it was set.
        Ok(unsafe { index.assume_init() })
    }

    fn driver_id(device: &Self::Device) -> Result<u32> {
        let mut driver = MaybeUninit::uninit();
        call(|error| uverbs_device_driver_id(device.get(), Some(&mut driver), error))?;
        // SAFETY: it was set.
        Ok(unsafe { driver.assume_init() })
    }

    fn facts(device: &Self::Device) -> Result<Facts> {
        // SAFETY: the struct has that size.
        let facts = filled(|to, size, error| unsafe {
            uverbs_device_query(device.get(), to, size, error)
        })?;
        let facts: uverbs_device_facts = facts;
        let mut guid = MaybeUninit::uninit();
        call(|error| uverbs_device_node_guid(device.get(), Some(&mut guid), error))?;
        // SAFETY: it was set.
        assert_eq!(facts.node_guid, unsafe { guid.assume_init() });
        Ok(Facts {
            node_guid: facts.node_guid,
            sys_image_guid: facts.sys_image_guid,
            index: facts.index,
            driver_id: facts.driver_id,
            node_type: facts.node_type,
            port_count: facts.port_count,
            firmware_version: bytes(facts.firmware_version.as_ptr()).expect("a text"),
        })
    }

    fn parent(device: &Self::Device) -> Result<Parent> {
        // SAFETY: the struct has that size.
        let parent: uverbs_parent = filled(|to, size, error| unsafe {
            uverbs_device_parent(device.get(), to, size, error)
        })?;
        Ok(parents::parent(&parent))
    }

    fn netdevs(device: &Self::Device) -> Result<Vec<Netdev>> {
        // SAFETY: the array has that much room.
        let found: Vec<uverbs_netdev> = array(|to, size, room, error| unsafe {
            uverbs_device_netdevs(device.get(), to, size, room, error)
        })?;
        let name = |netdev: &uverbs_netdev| bytes(netdev.name.as_ptr()).expect("a name");
        Ok(found.iter().map(|netdev| (netdev.port, netdev.index, name(netdev))).collect())
    }

    fn ports(device: &Self::Device) -> Result<Vec<Port>> {
        // SAFETY: the array has that much room.
        let found: Vec<uverbs_port_facts> = array(|to, size, room, error| unsafe {
            uverbs_device_ports(device.get(), to, size, room, error)
        })?;
        Ok(found.iter().map(parents::port).collect())
    }

    fn check_ready(device: &Self::Device) -> Result<()> {
        call(|error| uverbs_device_check_ready(device.get(), error)).map(drop)
    }

    fn open(device: &Self::Device) -> Result<Self::Context> {
        let open = |context: Option<&mut _>, error: Option<&mut _>| {
            uverbs_open(device.get(), context, error)
        };
        let (context, number) = made(uverbs_context_unref, open)?;
        assert!(uverbs_context_is_proven(context.get()) && number == 0);
        assert!(uverbs_context_unproven_reason(context.get()).is_null());
        Ok(context)
    }

    fn open_unproven(device: &Self::Device) -> Result<(Self::Context, Option<String>)> {
        let open = |context: Option<&mut _>, error: Option<&mut _>| {
            uverbs_open_with(device.get(), UVERBS_OPEN_ALLOW_UNPROVEN, context, error)
        };
        let (context, number) = made(uverbs_context_unref, open)?;
        assert_eq!(uverbs_context_is_proven(context.get()), number == 0);
        // SAFETY: it lives as long as the context.
        let reason = unsafe { uverbs_context_unproven_reason(context.get()).as_ref() };
        let reason = reason.map(|error| text(uverbs_error_message(Some(error))).expect("a text"));
        assert_eq!(reason.is_some(), number == 1);
        Ok((context, reason))
    }

    fn evidence(context: &Self::Context) -> Evidence {
        // SAFETY: it lives as long as the context.
        evidence_of(unsafe { uverbs_context_evidence(context.get()).as_ref() }.expect("evidence"))
    }

    fn device_of(context: &Self::Context) -> u64 {
        ino_of(uverbs_context_device(context.get())).expect("a device")
    }

    fn fd(context: &Self::Context) -> BorrowedFd<'_> {
        // SAFETY: it lives as long as the context.
        unsafe { BorrowedFd::borrow_raw(uverbs_context_fd(context.get())) }
    }

    fn take_fd(context: Self::Context) -> OwnedFd {
        let mut fd = MaybeUninit::new(-1);
        // SAFETY: another reference, which is dropped below.
        let other = unsafe { uverbs_context_ref(context.0) };
        // SAFETY: the context is alive, and there is room for the descriptor.
        let result = call(|error| unsafe { uverbs_context_take_fd(other, Some(&mut fd), error) });
        assert_eq!(result.expect_err("two references").code, "busy");
        // SAFETY: the call has failed, so the reference is still there.
        unsafe { uverbs_context_unref(other) };
        let context = context.into_raw();
        // SAFETY: the only reference goes with this call.
        call(|error| unsafe { uverbs_context_take_fd(context, Some(&mut fd), error) })
            .expect("taken");
        // SAFETY: it was set.
        let fd = unsafe { fd.assume_init() };
        // SAFETY: the descriptor belongs to the caller.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn answers(context: &Self::Context) -> Result<Answers> {
        let it = context.get();
        // SAFETY: the struct has that size.
        let device: uverbs_device_attr =
            filled(|to, size, error| unsafe { uverbs_query_device(it, to, size, error) })?;
        // SAFETY: the struct has that size.
        let extended: uverbs_device_attr_ex =
            filled(|to, size, error| unsafe { uverbs_query_device_ex(it, to, size, error) })?;
        // SAFETY: the struct has that size.
        let port: uverbs_port_attr =
            filled(|to, size, error| unsafe { uverbs_query_port(it, 1, to, size, error) })?;
        let none = uverbs_gid_entry { gid: [0; 16], index: 0, port: 0, kind: 0, netdev_index: 0 };
        let mut gids = [none; 32];
        let size = size_of::<uverbs_gid_entry>();
        // SAFETY: there is room for 32 entries.
        let count = call(|error| unsafe {
            uverbs_query_gids(it, gids.as_mut_ptr(), size, gids.len(), error)
        })?;
        let gids = gids[..count as usize].iter();
        let mut pkeys = [0; 256];
        // SAFETY: there is room for 256 entries.
        let count = call(|error| unsafe {
            uverbs_query_pkeys(it, 1, pkeys.as_mut_ptr(), pkeys.len(), error)
        })?;
        Ok(Answers {
            device: entries! { device;
                firmware_version node_guid sys_image_guid max_mr_size page_size_cap
                vendor_id vendor_part_id hardware_version max_qp max_qp_wr device_cap_flags
                max_sge max_sge_rd max_cq max_cqe max_mr max_pd max_qp_rd_atom
                max_ee_rd_atom max_res_rd_atom max_qp_init_rd_atom max_ee_init_rd_atom
                atomic_cap max_ee max_rdd max_mw max_raw_ipv6_qp max_raw_ethy_qp
                max_mcast_grp max_mcast_qp_attach max_total_mcast_qp_attach max_ah max_fmr
                max_map_per_fmr max_srq max_srq_wr max_srq_sge max_pkeys local_ca_ack_delay
                phys_port_count
            },
            extended: entries! { extended;
                odp_general_caps rc_odp_caps uc_odp_caps ud_odp_caps xrc_odp_caps
                completion_timestamp_mask hca_core_clock_khz device_cap_flags_ex
                rss_supported_qpts max_rwq_indirection_tables max_rwq_indirection_table_size
                max_wq_type_rq raw_packet_caps tm_max_rndv_hdr_size tm_max_num_tags tm_flags
                tm_max_ops tm_max_sge max_cq_moderation_count max_cq_moderation_period
                max_device_memory
            },
            port_state: port.state,
            active_mtu: port.active_mtu,
            rate: Some(port.rate).filter(|rate| *rate != 0),
            gids: gids.map(|entry| (entry.gid, entry.index, entry.port, entry.kind)).collect(),
            pkeys: pkeys[..count as usize].to_owned(),
            driver_id: uverbs_context_driver_id(it),
            completion_vectors: uverbs_context_completion_vectors(it),
            is_present: call(|error| uverbs_context_is_device_present(it, error))? == 1,
        })
    }

    fn verify(device: &Self::Device, fd: BorrowedFd<'_>) -> Result<Evidence> {
        // SAFETY: the descriptor is open.
        let verify = |evidence: Option<&mut _>, error: Option<&mut _>| unsafe {
            uverbs_device_verify(device.get(), fd.as_raw_fd(), evidence, error)
        };
        let (evidence, _) = made(uverbs_evidence_unref, verify)?;
        Ok(evidence_of(evidence.get().expect("evidence")))
    }

    fn verify_ibv(
        registry: &Self::Registry,
        handle: &Handle<'_>,
        fd: BorrowedFd<'_>,
    ) -> Result<Evidence> {
        let node = CString::new(handle.dev_name).expect("no NUL");
        let name = CString::new(handle.name).expect("no NUL");
        // SAFETY: the descriptor is open, and the names are C strings.
        let verify = |evidence: Option<&mut _>, error: Option<&mut _>| unsafe {
            uverbs_verify_ibv(
                registry.get(),
                handle.index,
                node.as_ptr(),
                name.as_ptr(),
                handle.guid,
                fd.as_raw_fd(),
                evidence,
                error,
            )
        };
        let (evidence, _) = made(uverbs_evidence_unref, verify)?;
        Ok(evidence_of(evidence.get().expect("evidence")))
    }

    fn changes(list: &Self::List, older: Option<&Self::List>) -> Vec<Change> {
        let older = older.and_then(Owned::get);
        let find = |changes: Option<&mut _>, error: Option<&mut _>| {
            uverbs_list_changes_since(list.get(), older, changes, error)
        };
        let (changes, _) = made(uverbs_changes_unref, find).expect("changes");
        let count = uverbs_changes_count(changes.get());
        assert!(uverbs_changes_get(changes.get(), count).is_null());
        // SAFETY: it lives as long as the changes.
        let change = |place| unsafe { uverbs_changes_get(changes.get(), place).as_ref() };
        (0..count).map(|place| change_of(change(place))).collect()
    }

    fn watch(registry: &Self::Registry) -> Result<Self::Watch> {
        let open = |watch: Option<&mut _>, error: Option<&mut _>| {
            uverbs_watch_open(registry.get(), watch, error)
        };
        Ok(made(uverbs_watch_unref, open)?.0)
    }

    fn watch_since(registry: &Self::Registry, older: Option<&Self::List>) -> Result<Self::Watch> {
        let older = older.and_then(Owned::get);
        let open = |watch: Option<&mut _>, error: Option<&mut _>| {
            uverbs_watch_open_since(registry.get(), older, watch, error)
        };
        Ok(made(uverbs_watch_unref, open)?.0)
    }

    fn next(watch: &mut Self::Watch) -> Result<Option<Change>> {
        let next = |change: Option<&mut _>, error: Option<&mut _>| {
            uverbs_watch_next(watch.get(), change, error)
        };
        Ok(next_of(made(uverbs_change_unref, next)?))
    }

    fn wait(watch: &mut Self::Watch, timeout: Duration) -> Result<Option<Change>> {
        let next = |change: Option<&mut _>, error: Option<&mut _>| {
            uverbs_watch_wait(watch.get(), milliseconds(timeout), change, error)
        };
        Ok(next_of(made(uverbs_change_unref, next)?))
    }

    fn list_of(watch: &Self::Watch) -> Self::List {
        assert!(uverbs_watch_fd(watch.get()) >= 0);
        let list = |list: Option<&mut _>, error: Option<&mut _>| {
            uverbs_watch_list(watch.get(), list, error)
        };
        made(uverbs_list_unref, list).expect("a list").0
    }

    fn events(context: &Self::Context) -> Result<Self::Events> {
        let open = |events: Option<&mut _>, error: Option<&mut _>| {
            uverbs_events_open(context.get(), events, error)
        };
        let (events, _) = made(uverbs_events_unref, open)?;
        assert!(uverbs_events_fd(events.get()) >= 0);
        Ok(events)
    }

    fn next_event(events: &mut Self::Events) -> Result<Option<Event>> {
        event(|to, size| {
            // SAFETY: the struct has that size.
            call(|slot| unsafe { uverbs_events_next(events.get(), to, size, slot) })
        })
    }

    fn wait_for_event(events: &mut Self::Events, timeout: Duration) -> Result<Option<Event>> {
        event(|to, size| {
            let limit = milliseconds(timeout);
            // SAFETY: the struct has that size.
            call(|slot| unsafe { uverbs_events_wait(events.get(), limit, to, size, slot) })
        })
    }

    fn have_ended(events: &Self::Events) -> bool {
        uverbs_events_has_ended(events.get())
    }
}

fn event(
    function: impl FnOnce(*mut uverbs_async_event, usize) -> Result<c_int>,
) -> Result<Option<Event>> {
    let mut event = MaybeUninit::uninit();
    let number = function(event.as_mut_ptr(), size_of::<uverbs_async_event>())?;
    // SAFETY: it was filled.
    let event = unsafe { event.assume_init() };
    let port = u8::try_from(event.port).expect("a port");
    Ok((number == 1).then_some((event.kind, event.element, Some(port).filter(|port| *port != 0))))
}
