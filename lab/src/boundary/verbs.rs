//! Contexts and protection domains that are allocated directly, without any check.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// A cmd fd with a context, opened by path.
pub(super) fn open(path: &str) -> io::Result<OwnedFd> {
    let node: OwnedFd = File::options().read(true).write(true).open(path)?.into();
    invoke(&node, Method::GetContext, &mut [])?;
    Ok(node)
}

/// Allocates a protection domain, which stays until it is freed or the descriptor is closed. Returns its handle.
pub(super) fn allocate_domain(node: &OwnedFd) -> io::Result<u32> {
    const ALLOC_PD: u64 = 3;
    let mut handle = 0_u32;
    let address = (&raw mut handle).expose_provenance() as u64;
    let mut attributes = [
        // Eight bytes of input are in the attribute itself: the address of the response in the older ABI.
        Attribute { id: 0, len: 8, flags: MANDATORY, ..Attribute::default() },
        Attribute { id: 1, len: 4, flags: MANDATORY, data: address, ..Attribute::default() },
        Attribute { id: 2, len: 8, flags: MANDATORY, data: ALLOC_PD, ..Attribute::default() },
    ];
    invoke(node, Method::InvokeWrite, &mut attributes)?;
    Ok(handle)
}

/// Frees a protection domain.
pub(super) fn free_domain(node: &OwnedFd, handle: u32) -> io::Result<()> {
    const DEALLOC_PD: u64 = 4;
    let handle = u64::from(handle);
    let mut attributes = [
        Attribute { id: 0, len: 4, flags: MANDATORY, data: handle, ..Attribute::default() },
        Attribute { id: 2, len: 8, flags: MANDATORY, data: DEALLOC_PD, ..Attribute::default() },
    ];
    invoke(node, Method::InvokeWrite, &mut attributes)
}

/// Methods of `UVERBS_OBJECT_DEVICE`.
#[derive(Clone, Copy)]
enum Method {
    InvokeWrite = 0,
    GetContext = 3,
}

/// `UVERBS_ATTR_F_MANDATORY`.
const MANDATORY: u16 = 1;

/// `struct ib_uverbs_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attribute {
    id: u16,
    len: u16,
    flags: u16,
    reserved: u16,
    data: u64,
}

/// `struct ib_uverbs_ioctl_hdr`, with its attributes.
#[repr(C)]
struct Command {
    length: u16,
    object: u16,
    method: u16,
    attributes: u16,
    reserved1: u64,
    driver: u32,
    reserved2: u32,
    attribute: [Attribute; 3],
}

/// Sends a command to soft-RoCE, or to a test HCA that poses as soft-RoCE.
#[allow(unsafe_code)]
fn invoke(node: &OwnedFd, method: Method, attributes: &mut [Attribute]) -> io::Result<()> {
    const RDMA_VERBS_IOCTL: libc::Ioctl = 0xc018_1b01;
    const RXE: u32 = 14;
    const HEADER: usize = size_of::<Command>() - size_of::<[Attribute; 3]>();
    let mut command = Command {
        length: (HEADER + size_of_val(attributes)) as u16,
        object: 0,
        method: method as u16,
        attributes: attributes.len() as u16,
        reserved1: 0,
        driver: RXE,
        reserved2: 0,
        attribute: [Attribute::default(); 3],
    };
    command.attribute[..attributes.len()].copy_from_slice(attributes);
    // SAFETY: the command is at least as long as it states. Where an attribute has an address, the caller keeps
    // that many writable bytes there.
    let done = unsafe { libc::ioctl(node.as_raw_fd(), RDMA_VERBS_IOCTL, &raw mut command) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
