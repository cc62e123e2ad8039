//! What a C caller can do wrong, and how structs of other versions are treated.
#![allow(unsafe_code)]
#![allow(clippy::multiple_unsafe_ops_per_block)] // they are the subject, and have one reason each

mod structs;

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use uverbs::Host;
use uverbs::sim::{DeviceId, DeviceSpec, Machine};
use uverbs_capi::*;

type Slot<'a> = Option<&'a mut MaybeUninit<*mut uverbs_error>>;

/// Calls a function. Returns its number, and the kind and cause of its error.
fn call(function: impl FnOnce(Slot<'_>) -> c_int) -> (c_int, u32, String) {
    let mut slot = MaybeUninit::new(ptr::dangling_mut());
    let number = function(Some(&mut slot));
    // SAFETY: every function sets it.
    let error: *mut uverbs_error = unsafe { slot.assume_init() };
    // SAFETY: it is null, or was set by the function that failed.
    let found = unsafe { error.as_ref() };
    // SAFETY: it is a C string.
    let cause = unsafe { CStr::from_ptr(uverbs_error_cause(found)) };
    let result = (number, uverbs_error_kind(found), cause.to_str().expect("escaped").to_owned());
    // SAFETY: it belongs to the caller.
    unsafe { uverbs_error_free(error) };
    result
}

/// A call has to refuse an argument. It is repeated without an error argument.
fn refuses(what: &str, function: impl Fn(Slot<'_>) -> c_int) {
    let (number, kind, cause) = call(&function);
    assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT), "{what}: {cause}");
    assert!(!cause.is_empty());
    assert_eq!(function(None), -libc::EINVAL, "{what}");
}

fn make<T>(function: impl FnOnce(Option<&mut MaybeUninit<*mut T>>, Slot<'_>) -> c_int) -> *mut T {
    let mut made = MaybeUninit::uninit();
    let (number, _, cause) = call(|error| function(Some(&mut made), error));
    assert!(number >= 0, "{cause}");
    // SAFETY: it was set.
    unsafe { made.assume_init() }
}

/// A machine with a device, its registry, and the first device.
struct Scene {
    machine: Machine,
    id: DeviceId,
    registry: *mut uverbs_registry,
    device: *mut uverbs_device,
}

impl Scene {
    fn new() -> Self {
        Self::of(|_| DeviceSpec::new("rxe0").guid(0xa0))
    }

    fn of(spec: impl FnOnce(&Machine) -> DeviceSpec) -> Self {
        let machine = Machine::new();
        let spec = spec(&machine);
        let id = machine.add(spec).expect("added");
        let registry = registry_of(Host::simulated(&machine).expect("a host"));
        // SAFETY: the registry is alive.
        let live = unsafe { registry.as_ref() };
        let list = make(|list, error| uverbs_registry_list(live, list, error));
        // SAFETY: the list is alive.
        let device = uverbs_list_get(unsafe { list.as_ref() }, 0);
        // SAFETY: the device is alive.
        let device = unsafe { uverbs_device_ref(device) };
        // SAFETY: the reference is dropped once.
        unsafe { uverbs_list_unref(list) };
        Self { machine, id, registry, device }
    }

    fn registry(&self) -> Option<&uverbs_registry> {
        // SAFETY: it is alive as long as this object.
        unsafe { self.registry.as_ref() }
    }

    fn device(&self) -> Option<&uverbs_device> {
        // SAFETY: it is alive as long as this object.
        unsafe { self.device.as_ref() }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // SAFETY: the reference is dropped once.
        unsafe { uverbs_device_unref(self.device) };
        // SAFETY: the reference is dropped once.
        unsafe { uverbs_registry_unref(self.registry) };
    }
}

#[test]
fn a_null_argument_is_refused() {
    let scene = Scene::new();
    let (registry, device) = (scene.registry(), scene.device());
    let context = make(|context, error| uverbs_open(device, context, error));
    // SAFETY: it is alive until the end of this test.
    let open = unsafe { context.as_ref() };
    let list = make(|list, error| uverbs_registry_list(registry, list, error));
    // SAFETY: it is alive until the end of this test.
    let listed = unsafe { list.as_ref() };
    let watch = make(|watch, error| uverbs_watch_open(registry, watch, error));
    // SAFETY: it is alive until the end of this test.
    let watching = unsafe { watch.as_ref() };
    let events = make(|events, error| uverbs_events_open(open, events, error));
    // SAFETY: it is alive until the end of this test.
    let listening = unsafe { events.as_ref() };

    // SAFETY: all pointers of these calls are null or valid.
    unsafe {
        let mut made = MaybeUninit::uninit();
        refuses("open", |e| uverbs_registry_open(None, e));
        refuses("open_with", |e| uverbs_registry_open_with(ptr::null(), 20, None, e));
        refuses("list", |e| uverbs_registry_list(None, None, e));
        refuses("list", |e| uverbs_registry_list(registry, None, e));
        refuses("by_index", |e| uverbs_registry_by_index(registry, 0, None, e));
        refuses("by_index", |e| uverbs_registry_by_index(None, 0, None, e));
        refuses("check_netlink", |e| uverbs_registry_check_netlink(None, e));
        refuses("by_name", |e| uverbs_list_by_name(listed, c"a".as_ptr(), None, e));
        refuses("by_name", |e| uverbs_list_by_name(None, c"a".as_ptr(), None, e));
        let (number, kind, _) =
            call(|e| uverbs_list_by_name(listed, ptr::null(), Some(&mut made), e));
        assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
        assert!(made.assume_init().is_null());
        refuses("by_guid", |e| uverbs_list_by_guid(None, 0, None, e));
        refuses("by_index", |e| uverbs_list_by_index(None, 0, None, e));
        refuses("by_number", |e| uverbs_list_by_uverbs_number(None, 0, None, e));
        let pci = c"0000:3b:00.2".as_ptr();
        refuses("by_pci", |e| uverbs_list_by_pci(None, pci, None, e));
        refuses("by_pci", |e| uverbs_list_by_pci(listed, pci, None, e));
        refuses("all_by_pci", |e| uverbs_list_all_by_pci(None, pci, ptr::null_mut(), 0, e));
        refuses("all_by_pci", |e| {
            uverbs_list_all_by_pci(listed, ptr::null(), ptr::null_mut(), 0, e)
        });
        refuses("changes", |e| uverbs_list_changes_since(None, None, None, e));
        refuses("changes", |e| uverbs_list_changes_since(listed, None, None, e));
        refuses("index", |e| uverbs_device_index(None, None, e));
        refuses("index", |e| uverbs_device_index(device, None, e));
        refuses("driver", |e| uverbs_device_driver_id(device, None, e));
        refuses("guid", |e| uverbs_device_node_guid(device, None, e));
        refuses("query", |e| uverbs_device_query(device, ptr::null_mut(), 8, e));
        refuses("query", |e| uverbs_device_query(None, ptr::null_mut(), 8, e));
        refuses("parent", |e| uverbs_device_parent(device, ptr::null_mut(), 8, e));
        refuses("parent", |e| uverbs_device_parent(None, ptr::null_mut(), 8, e));
        refuses("netdevs", |e| uverbs_device_netdevs(device, ptr::null_mut(), 24, 1, e));
        refuses("netdevs", |e| uverbs_device_netdevs(None, ptr::null_mut(), 24, 1, e));
        refuses("ports", |e| uverbs_device_ports(device, ptr::null_mut(), 32, 1, e));
        refuses("ports", |e| uverbs_device_ports(None, ptr::null_mut(), 32, 1, e));
        refuses("ready", |e| uverbs_device_check_ready(None, e));
        refuses("open", |e| uverbs_open(None, None, e));
        refuses("open", |e| uverbs_open(device, None, e));
        refuses("open_with", |e| uverbs_open_with(device, 0, None, e));
        refuses("take_fd", |e| uverbs_context_take_fd(ptr::null_mut(), None, e));
        refuses("take_fd", |e| uverbs_context_take_fd(context, None, e));
        refuses("present", |e| uverbs_context_is_device_present(None, e));
        refuses("query_device", |e| uverbs_query_device(open, ptr::null_mut(), 8, e));
        refuses("query_device_ex", |e| uverbs_query_device_ex(open, ptr::null_mut(), 8, e));
        refuses("query_port", |e| uverbs_query_port(open, 1, ptr::null_mut(), 8, e));
        refuses("query_gids", |e| uverbs_query_gids(open, ptr::null_mut(), 32, 4, e));
        refuses("query_pkeys", |e| uverbs_query_pkeys(open, 1, ptr::null_mut(), 4, e));
        refuses("query_device", |e| uverbs_query_device(None, ptr::null_mut(), 8, e));
        refuses("query_device_ex", |e| uverbs_query_device_ex(None, ptr::null_mut(), 8, e));
        refuses("query_port", |e| uverbs_query_port(None, 1, ptr::null_mut(), 8, e));
        refuses("query_gids", |e| uverbs_query_gids(None, ptr::null_mut(), 32, 4, e));
        refuses("query_pkeys", |e| uverbs_query_pkeys(None, 1, ptr::null_mut(), 4, e));
        refuses("events", |e| uverbs_events_open(None, None, e));
        refuses("events", |e| uverbs_events_open(open, None, e));
        refuses("event", |e| uverbs_events_next(listening, ptr::null_mut(), 16, e));
        refuses("event", |e| uverbs_events_wait(None, 0, ptr::null_mut(), 16, e));
        refuses("watch", |e| uverbs_watch_open(None, None, e));
        refuses("watch", |e| uverbs_watch_open(registry, None, e));
        refuses("watch", |e| uverbs_watch_open_since(None, listed, None, e));
        refuses("change", |e| uverbs_watch_next(watching, None, e));
        refuses("change", |e| uverbs_watch_wait(None, 0, None, e));
        refuses("watch_list", |e| uverbs_watch_list(watching, None, e));
        refuses("verify", |e| uverbs_device_verify(None, 0, None, e));
        let (null, text) = (ptr::null(), c"uverbs0".as_ptr());
        refuses("ibv", |e| uverbs_verify_ibv(None, 0, text, text, 0, 0, None, e));
        refuses("ibv", |e| uverbs_verify_ibv(registry, 0, null, text, 0, 0, None, e));
        refuses("ibv", |e| uverbs_verify_ibv(registry, 0, text, null, 0, 0, None, e));
        refuses("call", |e| uverbs_error_of_call(null, 5, e));

        let mut buffer: [c_char; 8] = [0; 8];
        for number in [
            uverbs_device_name(None, buffer.as_mut_ptr(), 8),
            uverbs_device_name(device, ptr::null_mut(), 8),
            uverbs_device_label(None, buffer.as_mut_ptr(), 8),
            uverbs_device_node_name(None, buffer.as_mut_ptr(), 8),
            uverbs_device_uverbs_number(None, None),
            uverbs_device_uverbs_number(device, None),
            uverbs_device_number(None, None, None),
            uverbs_device_instance(None, ptr::null_mut(), 40),
            uverbs_device_instance(device, ptr::null_mut(), 40),
            uverbs_escape(null, 1, buffer.as_mut_ptr(), 8),
            uverbs_escape(text, 3, ptr::null_mut(), 8),
            uverbs_guid_text(0, ptr::null_mut(), 8),
            uverbs_driver_name(0, ptr::null_mut(), 8),
            uverbs_async_event_name(0, ptr::null_mut(), 8),
            uverbs_evidence_get(None, 0, ptr::null_mut(), 8),
            uverbs_context_fd(None),
            uverbs_events_fd(None),
            uverbs_watch_fd(None),
        ] {
            assert_eq!(number, -libc::EINVAL);
        }
        uverbs_events_unref(events);
        uverbs_watch_unref(watch);
        uverbs_list_unref(list);
        uverbs_context_unref(context);
    }
}

#[test]
fn accessors_of_nothing_return_nothing() {
    assert_eq!(uverbs_error_kind(None), UVERBS_ERROR_NONE);
    assert_eq!((uverbs_error_step(None), uverbs_error_errno(None)), (-1, 0));
    for text in [uverbs_error_code(None), uverbs_error_cause(None), uverbs_error_message(None)] {
        // SAFETY: it is a C string.
        assert_eq!(unsafe { CStr::from_ptr(text) }, c"no error");
    }
    assert!(uverbs_error_device(None).is_null() && uverbs_error_hint(None).is_null());
    assert!(uverbs_error_step_name(None).is_null() && uverbs_error_evidence(None).is_null());
    assert_eq!((uverbs_evidence_count(None), uverbs_evidence_index(None)), (0, -1));
    assert_eq!(uverbs_evidence_context_number(None), -1);
    assert!(!uverbs_evidence_leaked_pd(None));
    assert_eq!((uverbs_list_count(None), uverbs_list_fault_count(None)), (0, 0));
    assert!(uverbs_list_get(None, 0).is_null() && uverbs_list_fault(None, 0).is_null());
    assert!(!uverbs_device_is_known_gone(None) && uverbs_device_equal(None, None));
    assert!(uverbs_context_device(None).is_null() && uverbs_context_evidence(None).is_null());
    assert!(uverbs_context_unproven_reason(None).is_null() && !uverbs_context_is_proven(None));
    assert_eq!((uverbs_context_driver_id(None), uverbs_context_completion_vectors(None)), (0, 0));
    assert!(!uverbs_events_has_ended(None));
    assert_eq!((uverbs_change_kind(None), uverbs_changes_count(None)), (UVERBS_CHANGE_OTHER, 0));
    assert!(uverbs_change_device(None).is_null() && uverbs_change_old_device(None).is_null());
    assert!(uverbs_change_name(None).is_null() && uverbs_change_old_name(None).is_null());
    assert!(uverbs_change_reason(None).is_null() && uverbs_change_text(None).is_null());
    assert!(uverbs_changes_get(None, 0).is_null());
    // SAFETY: it is a C string.
    let version = unsafe { CStr::from_ptr(uverbs_version()) };
    assert_eq!(version.to_str(), Ok(env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_unref_of_null_does_nothing() {
    // `p = x_unref(p)` twice is safe, as the first one returns null.
    macro_rules! twice {
        ($($unref:ident $add:ident)*) => {
            $(
                // SAFETY: null is allowed.
                assert!(unsafe { $unref(ptr::null_mut()) }.is_null());
                // SAFETY: null is allowed.
                assert!(unsafe { $add(ptr::null()) }.is_null());
            )*
        };
    }
    twice! {
        uverbs_registry_unref uverbs_registry_ref
        uverbs_list_unref uverbs_list_ref
        uverbs_device_unref uverbs_device_ref
        uverbs_context_unref uverbs_context_ref
        uverbs_evidence_unref uverbs_evidence_ref
        uverbs_events_unref uverbs_events_ref
        uverbs_watch_unref uverbs_watch_ref
        uverbs_change_unref uverbs_change_ref
        uverbs_changes_unref uverbs_changes_ref
    }
    // SAFETY: null is allowed.
    unsafe { uverbs_error_free(ptr::null_mut()) };
}

#[test]
fn the_last_reference_closes_the_context() {
    let scene = Scene::new();
    let before = scene.machine.open_handles();
    let context = make(|context, error| uverbs_open(scene.device(), context, error));
    // SAFETY: the context is alive.
    let other = unsafe { uverbs_context_ref(context) };
    assert_eq!(other, context);
    // SAFETY: the context is alive.
    let evidence = uverbs_context_evidence(unsafe { context.as_ref() });
    // SAFETY: the evidence is alive.
    let evidence = unsafe { uverbs_evidence_ref(evidence) };
    // SAFETY: the first of two references.
    unsafe { uverbs_context_unref(context) };
    assert!(scene.machine.open_handles() > before);
    // SAFETY: the second one.
    unsafe { uverbs_context_unref(other) };
    assert_eq!(scene.machine.open_handles(), before);
    // SAFETY: it has a reference of its own.
    assert!(uverbs_evidence_count(unsafe { evidence.as_ref() }) > 0);
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_evidence_unref(evidence) };
}

#[test]
fn options_are_checked() {
    let open = |bytes: &[u8]| {
        let mut registry = MaybeUninit::new(ptr::dangling_mut());
        let from = bytes.as_ptr().cast();
        // SAFETY: the struct is that long.
        let (number, kind, cause) = call(|error| unsafe {
            uverbs_registry_open_with(from, bytes.len(), Some(&mut registry), error)
        });
        // SAFETY: it was set.
        let registry = unsafe { registry.assume_init() };
        assert_eq!(registry.is_null(), number < 0);
        // SAFETY: the reference is dropped once.
        unsafe { uverbs_registry_unref(registry) };
        (number, kind, cause)
    };
    let options = |flags: u32, fd: i32| {
        let fd = fd.to_ne_bytes();
        [flags.to_ne_bytes(), fd, fd, fd, fd].concat()
    };
    assert_eq!(size_of::<uverbs_host_options>(), 20);
    // A descriptor whose flag is not set is not read. This may fail only for the host's reasons.
    let (number, kind, cause) = open(&options(0, -1));
    assert!(number == 0 || kind != UVERBS_ERROR_ARGUMENT, "{cause}");
    assert_eq!(open(&[0; 4]).0, number);
    assert_eq!(open(&[0; 32]).0, number);
    let mut newer = options(0, 0);
    newer.extend([0, 1]);
    assert_eq!(open(&newer).0, -libc::E2BIG);
    for flags in [128, u32::MAX, 4 | 16, 8 | 32] {
        let (number, kind, _) = open(&options(flags, 0));
        assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT), "{flags}");
    }
    for flags in [1, 2, 4, 8] {
        let (number, kind, _) = open(&options(flags, -1));
        assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT), "{flags}");
        let (number, kind, cause) = open(&options(flags, 99_999));
        assert_eq!((number, kind), (-libc::EBADF, UVERBS_ERROR_OS), "{cause}");
    }
    // The socket is no RDMA socket, and the directories are none.
    let (number, _, cause) = open(&options(1 | 2, 0));
    assert!(number < 0, "{cause}");
}

#[test]
#[allow(clippy::disallowed_methods)] // `/sys` and `/dev`, as a caller opens them
fn descriptors_that_are_passed_in_stay_the_callers() {
    use std::os::fd::AsRawFd as _;

    let directory = |path| std::fs::File::open(path).expect("a directory");
    let (sys, dev) = (directory("/sys"), directory("/dev"));
    let options = uverbs_host_options {
        flags: UVERBS_HOST_SYS | UVERBS_HOST_DEV | UVERBS_HOST_WITHOUT_NETLINK,
        sys_fd: sys.as_raw_fd(),
        dev_fd: dev.as_raw_fd(),
        netlink_fd: -1,
        uevents_fd: -1,
    };
    let mut ambient = MaybeUninit::uninit();
    let (expected, kind, _) = call(|error| uverbs_registry_open(Some(&mut ambient), error));
    let mut made = MaybeUninit::uninit();
    // SAFETY: the struct has that size.
    let found = call(|error| unsafe {
        uverbs_registry_open_with(&raw const options, 20, Some(&mut made), error)
    });
    // Where the host has no openat2, neither works.
    assert_eq!((found.0, found.1), (expected, kind), "{}", found.2);
    for registry in [ambient, made] {
        // SAFETY: it was set.
        let registry = unsafe { registry.assume_init() };
        // SAFETY: the reference is dropped once.
        unsafe { uverbs_registry_unref(registry) };
    }
    assert!(sys.metadata().is_ok() && dev.metadata().is_ok());
}

#[test]
fn objects_may_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<uverbs_registry>();
    shared::<uverbs_list>();
    shared::<uverbs_device>();
    shared::<uverbs_context>();
    shared::<uverbs_evidence>();
    shared::<uverbs_error>();
    shared::<uverbs_events>();
    shared::<uverbs_watch>();
    shared::<uverbs_change>();
    shared::<uverbs_changes>();
}

#[test]
fn an_unknown_flag_of_an_open_is_refused() {
    let scene = Scene::new();
    for flags in [4, 1 << 31, u32::MAX] {
        let mut context = MaybeUninit::new(ptr::dangling_mut());
        let (number, kind, _) =
            call(|error| uverbs_open_with(scene.device(), flags, Some(&mut context), error));
        assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
        // SAFETY: it was set.
        assert!(unsafe { context.assume_init() }.is_null());
    }
    scene.machine.evict();
    let flags = UVERBS_OPEN_STRICT_TIMESTAMPS;
    let mut context = MaybeUninit::uninit();
    let (number, kind, _) =
        call(|error| uverbs_open_with(scene.device(), flags, Some(&mut context), error));
    assert_eq!((number, kind), (-libc::ESTALE, UVERBS_ERROR_REPLACED));
}

#[test]
fn a_wrong_descriptor_is_refused() {
    let scene = Scene::new();
    // SAFETY: no descriptor has these numbers.
    unsafe {
        let (number, kind, _) = call(|e| uverbs_device_verify(scene.device(), -1, None, e));
        assert_eq!((number, kind), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
        let (number, kind, _) = call(|e| uverbs_device_verify(scene.device(), 99_999, None, e));
        assert!(number < 0 && kind != UVERBS_ERROR_INTERNAL, "{number} {kind}");
    }
}

/// The simulated kernel panics in the middle of a call.
#[test]
fn a_panic_does_not_leave_a_function() {
    let scene = Scene::new();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let is_on = std::sync::Arc::new(AtomicBool::new(true));
    let on = std::sync::Arc::clone(&is_on);
    scene.machine.on_call(move |_, _| {
        assert!(!on.load(SeqCst), "a bug");
        uverbs::sim::Verdict::Continue
    });
    let mut list = MaybeUninit::new(ptr::dangling_mut());
    let found = call(|error| uverbs_registry_list(scene.registry(), Some(&mut list), error));
    let expected = (-libc::ENOTRECOVERABLE, UVERBS_ERROR_INTERNAL, "a bug".to_owned());
    assert_eq!(found, expected);
    // SAFETY: it was set.
    assert!(unsafe { list.assume_init() }.is_null());
    let mut context = MaybeUninit::new(ptr::dangling_mut());
    let found = call(|error| uverbs_open(scene.device(), Some(&mut context), error));
    assert_eq!(found, expected);
    assert_eq!(uverbs_open(scene.device(), Some(&mut context), None), -libc::ENOTRECOVERABLE);
    std::panic::set_hook(hook);
    // The library still works.
    is_on.store(false, SeqCst);
    let context = make(|context, error| uverbs_open(scene.device(), context, error));
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_context_unref(context) };
}

/// The second use happens in the middle of the first one.
#[test]
fn a_watch_in_use_is_busy() {
    let scene = Scene::new();
    let watch = make(|watch, error| uverbs_watch_open(scene.registry(), watch, error));
    let address = watch.expose_provenance();
    let busy = std::sync::Arc::new(std::sync::Mutex::new(None));
    let found = std::sync::Arc::clone(&busy);
    scene.machine.on_call(move |_, _| {
        let watch = ptr::with_exposed_provenance::<uverbs_watch>(address);
        // SAFETY: the watch is alive.
        let watch = unsafe { watch.as_ref() };
        let mut change = MaybeUninit::new(ptr::dangling_mut());
        let result = call(|error| uverbs_watch_next(watch, Some(&mut change), error));
        // SAFETY: it was set.
        let change = unsafe { change.assume_init() };
        *found.lock().expect("a lock") = Some((result.0, result.1, change.is_null()));
        uverbs::sim::Verdict::Continue
    });
    let mut change = MaybeUninit::uninit();
    // SAFETY: the watch is alive.
    let live = unsafe { watch.as_ref() };
    assert_eq!(call(|error| uverbs_watch_next(live, Some(&mut change), error)).0, 0);
    scene.machine.clear_hook();
    let found = *busy.lock().expect("a lock");
    assert_eq!(found, Some((-libc::EBUSY, UVERBS_ERROR_BUSY, true)));
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_watch_unref(watch) };
}

#[test]
fn texts_follow_the_rule() {
    let escape = |bytes: &[u8], size: usize| {
        let mut buffer = [0x55_u8; 16];
        let (from, to) = (bytes.as_ptr().cast(), buffer.as_mut_ptr().cast());
        // SAFETY: both are that long.
        let length = unsafe { uverbs_escape(from, bytes.len(), to, size) };
        assert!(buffer[size..].iter().all(|&byte| byte == 0x55));
        (length, buffer[..size].to_vec())
    };
    assert_eq!(escape(b"a\n", 16), (3, b"a\\n\0UUUUUUUUUUUU".to_vec()));
    assert_eq!(escape(b"a\n", 4), (3, b"a\\n\0".to_vec()));
    assert_eq!(escape(b"a\n", 3), (3, b"a\\\0".to_vec()));
    assert_eq!(escape(b"a\n", 1), (3, b"\0".to_vec()));
    assert_eq!(escape(b"a\n", 0), (3, vec![]));
    assert_eq!(escape(b"", 2), (0, b"\0U".to_vec()));
    let mut buffer = [0x55_u8; 32];
    let to = buffer.as_mut_ptr().cast();
    // SAFETY: there is room.
    assert_eq!(unsafe { uverbs_guid_text(0x0002_c903_0005_1234, to, 32) }, 19);
    assert_eq!(&buffer[..20], b"0002:c903:0005:1234\0");
    // SAFETY: there is room.
    assert_eq!(unsafe { uverbs_driver_name(14, to, 32) }, 3);
    assert_eq!(&buffer[..4], b"rxe\0");
    // SAFETY: there is room.
    assert_eq!(unsafe { uverbs_async_event_name(9, to, 32) }, 11);
    assert_eq!(&buffer[..12], b"port active\0");
}

#[test]
fn an_error_of_a_call_is_made() {
    // SAFETY: the name is a C string.
    let found =
        call(|error| unsafe { uverbs_error_of_call(c"ibv_open_device".as_ptr(), 12, error) });
    assert_eq!((found.0, found.1), (-12, UVERBS_ERROR_OS));
    assert!(found.2.starts_with("ibv_open_device: "), "{}", found.2);
    // SAFETY: as above. An error is never a success.
    assert_eq!(unsafe { uverbs_error_of_call(c"a".as_ptr(), 0, None) }, -libc::EIO);
}
