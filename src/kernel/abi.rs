//! Everything that is passed to the kernel as raw memory: the only place in the library with `unsafe`.
#![allow(unsafe_code)]

mod message;
mod thread;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use openat2::{OpenHow, ResolveFlags, openat2_cstr};
use rustix::ioctl::{Opcode, Updater, opcode};

#[cfg(feature = "tokio")]
use tokio::io::{Interest, unix::AsyncFd};

use super::{AttrData, Errno, Handle, OFlags, Resolve, Sys, VerbsCall};

pub(super) use message::recv_uevent;
#[cfg(any(fuzzing, feature = "sim"))]
pub(crate) use message::sender;
pub(super) use thread::on_new_thread;
pub(crate) use thread::{Uncancelled, Undisturbed};

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

/// `faccessat2(2)` on a file that was opened with `O_PATH`. rustix' `accessat` refuses `AT_EMPTY_PATH`.
pub(super) fn check_access(fd: BorrowedFd<'_>) -> Sys<()> {
    let (mode, flags) = (libc::R_OK | libc::W_OK, libc::AT_EMPTY_PATH | libc::AT_EACCESS);
    // SAFETY: the path is a string that ends with a NUL. The kernel only reads it.
    let failed =
        unsafe { libc::syscall(libc::SYS_faccessat2, fd.as_raw_fd(), c"".as_ptr(), mode, flags) };
    if failed == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The maximum number of attributes of a command here. The kernel's own limit is a page of them.
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

/// Size of the header alone. The opcode contains it.
const HEADER: usize = 24;

/// `RDMA_VERBS_IOCTL`: `_IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr)`.
const RDMA_VERBS_IOCTL: Opcode = opcode::read_write::<[u8; HEADER]>(0x1b, 1);

/// `UVERBS_ATTR_F_MANDATORY`: the kernel refuses the command if it does not know the attribute.
const MANDATORY: u16 = 1;

/// Stands for a descriptor before the command has created it. No descriptor can have this number.
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
    // SAFETY: the argument has the form that the opcode names: the kernel reads `length` bytes of it and writes
    // flags within the same bytes. (A descriptor of anything but a uverbs device returns ENOTTY, because no other
    // driver's numbers include `RDMA_VERBS_IOCTL`.)
    let updater = unsafe { Updater::<RDMA_VERBS_IOCTL, RawCall>::new(&mut raw) };
    // SAFETY: `call` borrows the memory that the attributes point to for the whole call, outputs exclusively. Each
    // attribute's memory is at least as long as its length.
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

/// Registers a descriptor with the tokio runtime of this thread.
#[cfg(feature = "tokio")]
pub(crate) fn register(handle: Handle) -> Sys<AsyncFd<Handle>> {
    // SAFETY: the handle owns its descriptor, which is always the same. Nobody takes it out of the `AsyncFd` or
    // replaces it.
    let registered = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    registered.map_err(|error| Errno::from_io_error(&error.into()).unwrap_or(Errno::IO))
}

/// The layouts that are used here, with their names in C.
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
