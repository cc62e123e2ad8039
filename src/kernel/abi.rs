//! What has to be handed to the kernel as raw memory: the one place of the library with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use openat2::{OpenHow, ResolveFlags, openat2_cstr};
use rustix::ioctl::{Opcode, Updater, opcode};

#[cfg(feature = "tokio")]
use tokio::io::{Interest, unix::AsyncFd};

#[cfg(feature = "tokio")]
use crate::context::AsyncEvents;

use super::{AttrData, Errno, Handle, OFlags, Resolve, Sys, VerbsCall};

/// `openat2(2)` beneath a directory descriptor.
pub(super) fn openat2(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: Resolve,
) -> Sys<OwnedFd> {
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    let mut how = OpenHow::new(flags, 0);
    how.resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    if resolve == Resolve::Sys {
        how.resolve |= ResolveFlags::NO_XDEV;
    }
    match openat2_cstr(Some(dir.as_raw_fd()), path, &how) {
        // SAFETY: the call has just made this descriptor, and nothing else knows its number.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// While this exists the calling thread runs no signal handler
/// ([`Kernel::undisturbed`](super::Kernel::undisturbed)).
pub(crate) struct Undisturbed {
    /// The mask that was there before.
    before: libc::sigset_t,
    /// It is of the thread that made it.
    _not_send: PhantomData<*const ()>,
}

impl Undisturbed {
    pub(super) fn begin() -> Sys<Self> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: it writes the set that it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: it was written, as `sigfillset` fails for no set.
        let all: libc::sigset_t = unsafe { all.assume_init() };
        // SAFETY: both point to sets, of which the first is initialised and the second is written.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, before.as_mut_ptr()) };
        if failed != 0 {
            return Err(Errno::from_raw_os_error(failed));
        }
        // SAFETY: the call has succeeded, so it has written the mask before.
        let before = unsafe { before.assume_init() };
        Ok(Self { before, _not_send: PhantomData })
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        // SAFETY: the set is initialised; where the one before it should go is left out.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut())
        };
    }
}

/// `PTHREAD_CANCEL_DISABLE` (`pthread.h` of glibc and musl).
const CANCEL_DISABLE: libc::c_int = 1;

unsafe extern "C" {
    /// `pthread_setcancelstate(3)`.
    safe fn pthread_setcancelstate(
        state: libc::c_int,
        before: Option<&mut libc::c_int>,
    ) -> libc::c_int;
}

/// While this exists the calling thread is not cancelled (`pthread_cancel(3)`), so that what it holds is closed.
pub(crate) struct Uncancelled(libc::c_int, PhantomData<*const ()>);

impl Uncancelled {
    pub(crate) fn begin() -> Self {
        let mut before = 0;
        pthread_setcancelstate(CANCEL_DISABLE, Some(&mut before));
        Self(before, PhantomData)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        let mut now = 0;
        pthread_setcancelstate(self.0, Some(&mut now));
    }
}

/// Room for what runs there, which calls the kernel and keeps its buffers on the heap, and for the program's
/// thread-local variables.
const STACK: usize = 256 << 10;

/// Runs something on a thread that was made for it, and waits for it. By the C library and not by std, whose
/// threads allocate a signal stack when they start, and abort the process where that cannot be had.
pub(super) fn on_new_thread<T: Send, F: FnMut() -> T + Send>(run: &mut F) -> Sys<T> {
    struct Job<'a, T, F> {
        run: &'a mut F,
        result: Option<std::thread::Result<T>>,
    }
    extern "C" fn start<T, F: FnMut() -> T>(job: *mut c_void) -> *mut c_void {
        // SAFETY: it is the job below, which waits for this thread and does not touch it before.
        let job = unsafe { &mut *job.cast::<Job<'_, T, F>>() };
        job.result = Some(catch_unwind(AssertUnwindSafe(|| (job.run)())));
        std::ptr::null_mut()
    }
    let mut job: Job<'_, T, F> = Job { run, result: None };
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: it initialises the attributes.
    let failed = unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::from_raw_os_error(failed));
    }
    // SAFETY: the attributes are initialised. A size that is too small is refused, and leaves the default.
    unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK) };
    let mut thread = MaybeUninit::uninit();
    let mut create = |attributes| {
        // SAFETY: the attributes are initialised or none, and the job outlives the thread, which is joined below.
        unsafe {
            libc::pthread_create(
                thread.as_mut_ptr(),
                attributes,
                start::<T, F>,
                (&raw mut job).cast(),
            )
        }
    };
    let mut failed = create(attributes.as_ptr());
    if failed == libc::EINVAL {
        // The program's thread-local variables alone are larger than that.
        failed = create(std::ptr::null());
    }
    // SAFETY: the attributes are initialised and not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::from_raw_os_error(failed));
    }
    // SAFETY: the thread was created.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: the thread is joinable, and nobody else knows it. (A join fails for no such thread.)
    unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    match job.result {
        Some(Ok(result)) => Ok(result),
        Some(Err(panic)) => resume_unwind(panic),
        None => Err(Errno::AGAIN),
    }
}

/// How many attributes a command may have here; the kernel's own limit is a page of them.
const MAX_ATTRS: usize = 8;

/// `struct ib_uverbs_attr` (`rdma/rdma_user_ioctl_cmds.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawAttr {
    id: u16,
    len: u16,
    flags: u16,
    reserved: u16,
    data: u64,
}

/// `struct ib_uverbs_ioctl_hdr` with its attributes behind it.
#[repr(C)]
#[derive(Default)]
struct RawCall {
    length: u16,
    object_id: u16,
    method_id: u16,
    num_attrs: u16,
    reserved1: u64,
    driver_id: u32,
    reserved2: u32,
    attrs: [RawAttr; MAX_ATTRS],
}

/// Size of the header alone; the opcode is made of it.
const HEADER: usize = 24;

/// `RDMA_VERBS_IOCTL`: `_IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr)`.
const RDMA_VERBS_IOCTL: Opcode = opcode::read_write::<[u8; HEADER]>(0x1b, 1);

/// `UVERBS_ATTR_F_MANDATORY`: an attribute that the kernel does not know is an error.
const MANDATORY: u16 = 1;

/// What stands for a descriptor before the command has made it: no number that a descriptor can have.
const NO_DESCRIPTOR: u64 = u64::MAX;

/// One command of the verbs ioctl ABI on a cmd fd.
pub(super) fn verbs_ioctl(fd: BorrowedFd<'_>, call: &mut VerbsCall<'_>) -> Sys<()> {
    let count = call.attrs.len();
    if count > MAX_ATTRS {
        return Err(Errno::INVAL);
    }
    let mut raw = RawCall {
        length: (HEADER + count * size_of::<RawAttr>()) as u16,
        object_id: call.object,
        method_id: call.method,
        num_attrs: count as u16,
        driver_id: call.driver_id,
        ..RawCall::default()
    };
    for (raw, attr) in raw.attrs.iter_mut().zip(call.attrs.iter_mut()) {
        let (len, data) = match &mut attr.data {
            AttrData::In(bytes) if bytes.len() <= 8 => {
                let mut inline = [0; 8];
                inline[..bytes.len()].copy_from_slice(bytes);
                (bytes.len(), u64::from_ne_bytes(inline))
            }
            AttrData::In(bytes) => (bytes.len(), bytes.as_ptr() as u64),
            AttrData::Const(value) => (8, *value),
            AttrData::Out { buffer, len } if usize::from(*len) <= buffer.len() => {
                (usize::from(*len), buffer.as_mut_ptr() as u64)
            }
            AttrData::Out { .. } => return Err(Errno::INVAL),
            AttrData::Descriptor(_) => (0, NO_DESCRIPTOR),
        };
        let len = u16::try_from(len).map_err(|_| Errno::INVAL)?;
        *raw = RawAttr { id: attr.id, len, flags: MANDATORY, reserved: 0, data };
    }
    // SAFETY: the argument is of the form that the opcode names: the kernel reads `length` bytes
    // of it and writes flags within the same. (A descriptor of something else than a uverbs
    // device answers ENOTTY; `RDMA_VERBS_IOCTL` is of no other driver's number space.)
    let updater = unsafe { Updater::<RDMA_VERBS_IOCTL, RawCall>::new(&mut raw) };
    // SAFETY: the memory that the attributes point to is borrowed by `call` for the whole call,
    // outputs exclusively, each as long as the length it is given with.
    unsafe { rustix::ioctl::ioctl(fd, updater) }?;
    for (raw, attr) in raw.attrs.iter().zip(call.attrs.iter_mut()) {
        if let AttrData::Descriptor(made) = &mut attr.data {
            let number = i32::try_from(raw.data).map_err(|_| Errno::BADF)?;
            // SAFETY: the command succeeded, so the kernel has just made this descriptor and written
            // its number here, and nothing else knows it.
            **made = Some(Handle::Real(unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    Ok(())
}

/// Has the tokio runtime of this thread watch the descriptor of async events.
#[cfg(feature = "tokio")]
pub(crate) fn register(events: AsyncEvents<'_>) -> Sys<AsyncFd<AsyncEvents<'_>>> {
    // SAFETY: `events` owns its descriptor and gives out no other; nobody takes it out of the `AsyncFd`
    // or puts another one in.
    let registered = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    registered.map_err(|error| Errno::from_io_error(&error.into()).unwrap_or(Errno::IO))
}

/// The layouts that are used here, under what they are in C.
#[cfg(test)]
pub(crate) fn layout() -> Vec<(&'static str, u64)> {
    use std::mem::offset_of;
    let opcode: u64 = RDMA_VERBS_IOCTL.into();
    let places = [
        ("offsetof(struct ib_uverbs_ioctl_hdr, length)", offset_of!(RawCall, length)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, object_id)", offset_of!(RawCall, object_id)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, method_id)", offset_of!(RawCall, method_id)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, num_attrs)", offset_of!(RawCall, num_attrs)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, reserved1)", offset_of!(RawCall, reserved1)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, driver_id)", offset_of!(RawCall, driver_id)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, reserved2)", offset_of!(RawCall, reserved2)),
        ("offsetof(struct ib_uverbs_ioctl_hdr, attrs)", offset_of!(RawCall, attrs)),
        ("sizeof(struct ib_uverbs_ioctl_hdr)", HEADER),
        ("offsetof(struct ib_uverbs_attr, attr_id)", offset_of!(RawAttr, id)),
        ("offsetof(struct ib_uverbs_attr, len)", offset_of!(RawAttr, len)),
        ("offsetof(struct ib_uverbs_attr, flags)", offset_of!(RawAttr, flags)),
        ("offsetof(struct ib_uverbs_attr, attr_data)", offset_of!(RawAttr, reserved)),
        ("offsetof(struct ib_uverbs_attr, data)", offset_of!(RawAttr, data)),
        ("sizeof(struct ib_uverbs_attr)", size_of::<RawAttr>()),
        ("UVERBS_ATTR_F_MANDATORY", MANDATORY.into()),
    ];
    let places = places.map(|(name, place)| (name, place as u64));
    places.into_iter().chain([("RDMA_VERBS_IOCTL", opcode)]).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    static HANDLED: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn handle(_signal: libc::c_int) {
        HANDLED.fetch_add(1, Relaxed);
    }

    #[test]
    fn signal_handlers_wait_until_the_guard_is_dropped() {
        // SAFETY: the handler only counts, and nothing else here uses the signal.
        unsafe { libc::signal(libc::SIGUSR1, handle as *const () as libc::sighandler_t) };
        let raise = || {
            // SAFETY: it sends a signal to this thread, which has a handler.
            unsafe { libc::raise(libc::SIGUSR1) };
            HANDLED.load(Relaxed)
        };
        let outer = Undisturbed::begin().expect("masked");
        let inner = Undisturbed::begin().expect("masked");
        assert_eq!(raise(), 0);
        drop(inner);
        assert_eq!(raise(), 0, "the outer one is still there");
        drop(outer);
        assert_eq!(HANDLED.load(Relaxed), 1, "both were pending as one");
        assert_eq!(raise(), 2);
    }
}
