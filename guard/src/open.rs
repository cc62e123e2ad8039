//! The two functions that every provider calls when a device is opened, and the one that it calls instead of the
//! second when a context is imported.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::mem::transmute;
use std::os::fd::BorrowedFd;
use std::ptr;

use uverbs::{Error, ErrorKind, FoundDevice, Guid, IbvHandle, OldNames, Registry};

use crate::ffi::{Handle, IbvDevice};
use crate::guarded::{run, set_errno};
use crate::real::{GetContext, GetDeviceGuid, GetDeviceIndex, Ibverbs, InitContext};
use crate::{HANDLES, config, host, log};

/// The open that this thread began last.
#[derive(Clone, Copy)]
struct Opening {
    device: *mut IbvDevice,
    cmd_fd: c_int,
    /// The address of libibverbs' part of the context.
    context: usize,
    /// The descriptor was refused. Some providers ask for a context again, in another way.
    is_refused: bool,
}

const NO_OPENING: Opening =
    Opening { device: ptr::null_mut(), cmd_fd: -1, context: 0, is_refused: false };

thread_local! {
    static OPENING: Cell<Opening> = const { Cell::new(NO_OPENING) };
}

/// Takes the place of libibverbs' function. Notes the handle and the descriptor.
///
/// # Safety
/// As for libibverbs' function: a provider calls it from its `alloc_context`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _verbs_init_and_alloc_context(
    device: *mut IbvDevice,
    cmd_fd: c_int,
    size: usize,
    offset: *mut c_void,
    driver: u32,
) -> *mut c_void {
    OPENING.set(NO_OPENING);
    let Some((library, real)) = private(c"_verbs_init_and_alloc_context") else {
        // Like libibverbs' function, this one owns the descriptor.
        if cmd_fd >= 0 {
            run((), || {
                // SAFETY: the caller passed the descriptor on.
                unsafe { libc::close(cmd_fd) };
            });
        }
        set_errno(libc::ENODEV);
        return ptr::null_mut();
    };
    // SAFETY: it is the function of that name in a known version of the private interface.
    let real: InitContext = unsafe { transmute(real) };
    // SAFETY: the arguments are the caller's.
    let context = unsafe { real(device, cmd_fd, size, offset, driver) };
    if !context.is_null() {
        let context = context.addr().wrapping_add(offset.addr());
        OPENING.set(Opening { device, cmd_fd, context, is_refused: false });
    }
    run((), move || drop(library));
    context
}

/// Takes the place of libibverbs' function: returns 0 only if the context is proved to be on the handle's device.
///
/// # Safety
/// As for libibverbs' function: a provider calls it on the context that it has begun.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_cmd_get_context(
    context: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
) -> c_int {
    // SAFETY: the arguments are the caller's.
    let real = |real: GetContext| unsafe { real(context, a, b, c, d, e) };
    guarded(c"ibv_cmd_get_context", real, |opening| opening.context == context)
}

/// Takes the place of libibverbs' function, which an import calls on a descriptor whose context exists already.
///
/// # Safety
/// As for libibverbs' function.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_cmd_query_context(
    context: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
) -> c_int {
    // SAFETY: the arguments are the caller's.
    let real = |real: GetContext| unsafe { real(context, a, b, c, d, e) };
    // The argument is a member of the context at an offset that differs between versions.
    guarded(c"ibv_cmd_query_context", real, |opening| context > opening.context)
}

fn guarded(
    name: &CStr,
    call: impl FnOnce(GetContext) -> c_int,
    is_of: impl Fn(&Opening) -> bool,
) -> c_int {
    let opening = OPENING.get();
    let Some((library, real)) = private(name) else { return refuse(None) };
    // SAFETY: it is the function of that name in a known version of the private interface.
    let real: GetContext = unsafe { transmute(real) };
    let is_of = opening.context != 0 && is_of(&opening);
    // Descriptors are closed inside `run` alone: a thread may be cancelled in close(2).
    let result = if is_of && opening.cmd_fd == -1 {
        // A device that a program drives without the kernel (VFIO) has no cmd fd.
        call(real)
    } else if opening.is_refused {
        refuse(None)
    } else if !is_of {
        refuse(Some(Refusal::of("the context is not the one that this thread began")))
    } else {
        match run(Err(Refusal::panicked()), || find(&opening)) {
            Err(reason) => refuse(Some(reason)),
            Ok(found) => {
                let result = call(real);
                let prove = move || match result {
                    0 => found.verify(opening.cmd_fd),
                    _ => Ok(()),
                };
                match run(Err(Refusal::panicked()), prove) {
                    Ok(()) => result,
                    Err(reason) => refuse(Some(reason)),
                }
            }
        }
    };
    run((), move || drop(library));
    result
}

/// Why a descriptor is refused.
struct Refusal {
    text: String,
    /// `ENODEV`, or what this process or the kernel is short of.
    errno: c_int,
}

impl Refusal {
    fn of(text: impl Into<String>) -> Self {
        Self { text: text.into(), errno: libc::ENODEV }
    }

    fn panicked() -> Self {
        Self::of("internal error: the guard panicked")
    }

    fn error(handle: &IbvHandle, error: &Error) -> Self {
        // An errno of a driver is no shortage of this process.
        let errno = match error.raw_os_error().filter(|_| error.kind() == ErrorKind::Os) {
            Some(short @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)) => short,
            _ => libc::ENODEV,
        };
        Self { text: show(handle, error), errno }
    }
}

/// Refuses the descriptor of the present open. The provider closes it.
fn refuse(reason: Option<Refusal>) -> c_int {
    OPENING.set(Opening { is_refused: true, ..OPENING.get() });
    let errno = reason.as_ref().map_or(libc::ENODEV, |reason| reason.errno);
    if let Some(reason) = reason {
        run((), move || log::line(&format!("refused: {}", reason.text)));
    }
    set_errno(errno);
    errno
}

/// A function of the private interface.
fn private(name: &CStr) -> Option<(Ibverbs, *mut c_void)> {
    run(None, || {
        let found = Ibverbs::find().and_then(|library| {
            let symbol = library.private(name)?;
            Some((library, symbol))
        });
        if found.is_none() {
            log::line(
                "refused: this libibverbs has a private interface that the guard does not know \
                 (it knows those of rdma-core 24 to 65)",
            );
        }
        found
    })
}

/// The device of a handle.
struct Found {
    handle: IbvHandle,
    /// `None` if it could not be found, and the user allows that.
    device: Option<FoundDevice>,
}

/// Finds the device that the handle stands for, before the context is allocated.
fn find(opening: &Opening) -> Result<Found, Refusal> {
    // SAFETY: libibverbs passed the handle to its provider, which is in the middle of the open.
    let handle = unsafe { Handle::new(opening.device) };
    let handle = handle_of(handle).map_err(|error| Refusal::of(error.to_string()))?;
    let old_names = match config::get().allows_old_names {
        true => OldNames::Allow,
        false => OldNames::AfterList,
    };
    let device = host().and_then(|host| HANDLES.find(&Registry::new(host), &handle, old_names));
    let device = match device {
        Ok(device) => Some(device),
        Err(error) => {
            require_allowed(&handle, &error)?;
            None
        }
    };
    Ok(Found { handle, device })
}

impl Found {
    /// Proves that the descriptor is on the device.
    fn verify(&self, cmd_fd: c_int) -> Result<(), Refusal> {
        let Some(device) = &self.device else { return Ok(()) };
        // SAFETY: the provider is in the middle of the open, and closes the descriptor after that.
        let fd = unsafe { BorrowedFd::borrow_raw(cmd_fd) };
        match device.verify(fd) {
            Ok(_) => Ok(()),
            Err(error) => require_allowed(&self.handle, &error),
        }
    }
}

/// Logs an open that the user allows although it cannot be proved.
fn require_allowed(handle: &IbvHandle, error: &Error) -> Result<(), Refusal> {
    let is_unproven = matches!(
        error.kind(),
        ErrorKind::Unproven | ErrorKind::NetlinkUnavailable | ErrorKind::Unsupported
    );
    if !is_unproven || !config::get().allows_unproven {
        return Err(Refusal::error(handle, error));
    }
    log::line(&format!("UNPROVEN: {}", show(handle, error)));
    Ok(())
}

/// An error with the evidence so far, in one line.
fn show(handle: &IbvHandle, error: &Error) -> String {
    let mut text = match error.device() {
        None => format!("{} (uverbs{}): {error}", handle.name, handle.uverbs_number),
        Some(_) => error.to_string(),
    };
    for (number, check) in error.evidence().iter().flat_map(|all| all.checks()).enumerate() {
        let before = if number == 0 { "; evidence: " } else { ", " };
        text.push_str(&format!("{before}{} {}", check.what(), check.found));
    }
    text
}

/// The fields of libibverbs' handle.
fn handle_of(handle: Handle) -> uverbs::Result<IbvHandle> {
    let library = Ibverbs::find();
    let function = |name, version| library.as_ref()?.function(name, version);
    // Since rdma-core 30. Without it there is no index.
    let index = match function(c"ibv_get_device_index", c"IBVERBS_1.9") {
        Some(symbol) => {
            // SAFETY: it is the function of that name and version.
            let real: GetDeviceIndex = unsafe { transmute(symbol) };
            // SAFETY: the handle is alive.
            unsafe { real(handle.as_ptr()) }
        }
        None => -1,
    };
    let guid = match function(c"ibv_get_device_guid", c"IBVERBS_1.1") {
        Some(symbol) => {
            // SAFETY: it is the function of that name and version.
            let real: GetDeviceGuid = unsafe { transmute(symbol) };
            // SAFETY: as above.
            u64::from_be(unsafe { real(handle.as_ptr()) })
        }
        None => 0,
    };
    IbvHandle::new(index, &handle.dev_name(), &handle.name(), Guid(guid))
}
