//! The host and its registry.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use uverbs::{ErrorKind, Host, IbvHandles, Registry};

use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::{Fault, require};
use crate::handle;
use crate::list::uverbs_list;
use crate::sized::{self, Plain};

/// `sys_fd` is the directory to use as /sys.
pub const UVERBS_HOST_SYS: u32 = 1;
/// `dev_fd` is the directory to use as /dev.
pub const UVERBS_HOST_DEV: u32 = 2;
/// `netlink_fd` is the RDMA netlink socket to use.
pub const UVERBS_HOST_NETLINK: u32 = 4;
/// `uevents_fd` is the uevent socket to use.
pub const UVERBS_HOST_UEVENTS: u32 = 8;
/// Use no RDMA netlink. Devices are listed, but none can be proved.
pub const UVERBS_HOST_WITHOUT_NETLINK: u32 = 16;
/// Use no uevents. A watch then finds changes only by looking again and again.
pub const UVERBS_HOST_WITHOUT_UEVENTS: u32 = 32;
/// Accept a /sys that is not sysfs. Nothing that is opened there is ever proved.
pub const UVERBS_HOST_FOREIGN_SYS: u32 = 64;

const KNOWN: u32 = 127;

/// What a registry is made of. Fields whose flag is not set are not read. A struct of zeros stands for this process's
/// own /sys, /dev, RDMA netlink and uevents.
///
/// If one of the directories is passed in, the library opens no socket of its own: nothing can be proved without
/// `netlink_fd` then. With both directories and a socket, everything afterwards uses no path and makes no socket, and
/// the process may be sandboxed before or after.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_host_options {
    /// UVERBS_HOST_SYS and so on.
    pub flags: u32,
    /// The directory /sys.
    pub sys_fd: i32,
    /// The directory /dev.
    pub dev_fd: i32,
    /// A socket as of socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA), which is not subscribed to a group and which nobody
    /// else reads.
    pub netlink_fd: i32,
    /// A socket as of socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT), bound to group 1, which nobody else reads.
    /// One watch at a time can use it.
    pub uevents_fd: i32,
}

// SAFETY: numbers of 4 bytes.
unsafe impl Plain for uverbs_host_options {}

/// The devices of a host. Reference-counted. Threads may share it. A forked child makes one of its own.
pub struct uverbs_registry {
    pub(crate) registry: Registry,
    /// The epoch of ib_core when the registry was made.
    pub(crate) handles: IbvHandles,
}

impl uverbs_registry {
    fn of(host: Host) -> Result<Self, Fault> {
        let handles = IbvHandles::new();
        match handles.begin(&host) {
            // A foreign /sys has no epoch. No handle of libibverbs is verified there.
            Err(error) if error.kind() != ErrorKind::Unsupported => return Err(error.into()),
            _ => {}
        }
        Ok(Self { registry: Registry::new(host), handles })
    }
}

/// A registry of a given host, for this package's tests.
#[doc(hidden)]
pub fn registry_of(host: Host) -> *mut uverbs_registry {
    let mut made = MaybeUninit::new(std::ptr::null_mut());
    if let Ok(registry) = uverbs_registry::of(host) {
        handle::give(&mut made, registry);
    }
    // SAFETY: it was initialised above.
    unsafe { made.assume_init() }
}

/// Makes a registry of this process's /sys, /dev and RDMA netlink. It looks at no device yet.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_registry_open(
    registry: Option<&mut MaybeUninit<*mut uverbs_registry>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let registry = handle::clear(registry);
    run(error, || {
        let registry = require(registry, "registry")?;
        handle::give(registry, uverbs_registry::of(Host::open()?)?);
        Ok(0)
    })
}

/// Makes a registry of parts that the caller passes in. `size` is sizeof(struct uverbs_host_options). The library
/// duplicates the descriptors; the caller keeps its own, and may close them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_registry_open_with(
    options: *const uverbs_host_options,
    size: usize,
    registry: Option<&mut MaybeUninit<*mut uverbs_registry>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let registry = handle::clear(registry);
    run(error, || {
        let registry = require(registry, "registry")?;
        // SAFETY: the caller's struct has that size.
        let options = unsafe { sized::get(options, size) }?;
        handle::give(registry, uverbs_registry::of(host_of(&options)?)?);
        Ok(0)
    })
}

fn host_of(options: &uverbs_host_options) -> Result<Host, Fault> {
    let has = |flag| options.flags & flag != 0;
    if options.flags & !KNOWN != 0 {
        return Err(Fault::Argument("a flag that this version of the library does not have"));
    }
    if has(UVERBS_HOST_NETLINK) && has(UVERBS_HOST_WITHOUT_NETLINK)
        || has(UVERBS_HOST_UEVENTS) && has(UVERBS_HOST_WITHOUT_UEVENTS)
    {
        return Err(Fault::Argument("a socket is passed in and excluded at the same time"));
    }
    let mut builder = Host::builder().allow_foreign_sys(has(UVERBS_HOST_FOREIGN_SYS));
    if has(UVERBS_HOST_SYS) {
        builder = builder.sys(duplicate(options.sys_fd, "sys_fd")?);
    }
    if has(UVERBS_HOST_DEV) {
        builder = builder.dev(duplicate(options.dev_fd, "dev_fd")?);
    }
    if has(UVERBS_HOST_NETLINK) {
        builder = builder.netlink(duplicate(options.netlink_fd, "netlink_fd")?);
    }
    if has(UVERBS_HOST_WITHOUT_NETLINK) {
        builder = builder.without_netlink();
    }
    if has(UVERBS_HOST_UEVENTS) {
        builder = builder.uevents(duplicate(options.uevents_fd, "uevents_fd")?);
    }
    if has(UVERBS_HOST_WITHOUT_UEVENTS) {
        builder = builder.without_uevents();
    }
    Ok(builder.build()?)
}

fn duplicate(fd: c_int, name: &'static str) -> Result<OwnedFd, Fault> {
    // SAFETY: the caller keeps it open during this call.
    let made = unsafe { borrow(fd) }?.try_clone_to_owned();
    made.map_err(|error| {
        let call = format!("fcntl({name}, F_DUPFD_CLOEXEC)");
        Fault::Call(call, error.raw_os_error().unwrap_or(libc::EIO))
    })
}

/// A descriptor of the caller.
///
/// # Safety
/// The caller keeps it open during the present call.
pub(crate) unsafe fn borrow<'a>(fd: c_int) -> Result<BorrowedFd<'a>, Fault> {
    if fd < 0 {
        return Err(Fault::Argument("a negative descriptor"));
    }
    // SAFETY: it is not -1, and open as the caller promises.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Adds a reference. Returns the registry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_registry_ref(
    registry: *const uverbs_registry,
) -> *mut uverbs_registry {
    // SAFETY: as the caller promises.
    unsafe { handle::add(registry) }
}

/// Drops a reference. Returns null. Lists, devices, contexts and watches stay valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_registry_unref(
    registry: *mut uverbs_registry,
) -> *mut uverbs_registry {
    // SAFETY: as the caller promises.
    unsafe { handle::release(registry) }
}

/// Whether RDMA netlink is available: 0, or an error with the reason. Without it devices are listed, but none can be
/// proved.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_registry_check_netlink(
    registry: Option<&uverbs_registry>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        require(registry, "registry")?.registry.host().check_netlink()?;
        Ok(0)
    })
}

/// Looks at the host and lists its devices (ibv_get_device_list). A device that is still the same keeps its record. A
/// device that is gone is marked, and its handles report that from then on. A problem of one device does not stop the
/// listing: see uverbs_list_fault.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_registry_list(
    registry: Option<&uverbs_registry>,
    list: Option<&mut MaybeUninit<*mut uverbs_list>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let list = handle::clear(list);
    run(error, || {
        let registry = require(registry, "registry")?;
        let list = require(list, "list")?;
        handle::give(list, uverbs_list::new(registry.registry.devices()?));
        Ok(0)
    })
}

/// Finds the device that has this index in RDMA netlink (ibv_get_device_index), without a list.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_registry_by_index(
    registry: Option<&uverbs_registry>,
    index: u32,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let device = handle::clear(device);
    run(error, || {
        let registry = require(registry, "registry")?;
        let device = require(device, "device")?;
        handle::give(device, uverbs_device { device: registry.registry.by_index(index)? });
        Ok(0)
    })
}
