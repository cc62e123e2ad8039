//! Proofs of descriptors that another library opened.

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;

use uverbs::{Guid, IbvHandle, OldNames};

use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::evidence::uverbs_evidence;
use crate::fault::{Fault, require};
use crate::handle;
use crate::registry::{borrow, uverbs_registry};

/// Proves that a cmd fd is bound to this device. Another library or another process may have opened it, at any time.
/// It must have a context. Sets `evidence` to what was checked, unless the pointer is null; drop that with
/// uverbs_evidence_unref.
///
/// Fails with UVERBS_ERROR_NODE_MISMATCH if the descriptor is on another device, with UVERBS_ERROR_REMOVED or
/// UVERBS_ERROR_REPLACED if the device is gone, and with UVERBS_ERROR_UNPROVEN if the kernel cannot show it.
///
/// A protection domain is allocated through the descriptor and freed. On bnxt_re this must not happen while the
/// descriptor's owner may be allocating its first domain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_verify(
    device: Option<&uverbs_device>,
    fd: c_int,
    evidence: Option<&mut MaybeUninit<*mut uverbs_evidence>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let evidence = handle::clear(evidence);
    run(error, || {
        let device = require(device, "device")?;
        // SAFETY: the caller keeps it open during this call.
        let fd = unsafe { borrow(fd) }?;
        let found = device.device.verify(fd)?;
        if let Some(evidence) = evidence {
            handle::give_arc(evidence, uverbs_evidence::shared(found));
        }
        Ok(0)
    })
}

/// Proves that a cmd fd is bound to the device that a device handle of libibverbs stands for. uverbs_ibv_open in
/// uverbs/ibverbs.h calls this with the fields of a struct ibv_device. The handle is proved to be of one device: its
/// index, its GUID, its name and its node are those of one device now, and ib_core was not reloaded since the registry
/// was made. So make the registry before libibverbs lists devices.
///
/// `index` is what ibv_get_device_index returns, `dev_name` and `name` are fields of the handle, `node_guid` is its
/// GUID in host byte order, and `fd` is the cmd_fd of the context that libibverbs opened by the handle.
///
/// Sets `evidence` as uverbs_device_verify does. Fails with UVERBS_ERROR_REPLACED if the handle is older than its
/// device or joins several devices, with UVERBS_ERROR_REMOVED if its device is gone, with UVERBS_ERROR_UNPROVEN if it
/// has no index, and otherwise as uverbs_device_verify.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_verify_ibv(
    registry: Option<&uverbs_registry>,
    index: c_int,
    dev_name: *const c_char,
    name: *const c_char,
    node_guid: u64,
    fd: c_int,
    evidence: Option<&mut MaybeUninit<*mut uverbs_evidence>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let evidence = handle::clear(evidence);
    run(error, || {
        let registry = require(registry, "registry")?;
        // SAFETY: the caller passes a C string or null.
        let dev_name = unsafe { text(dev_name, "dev_name") }?;
        // SAFETY: as above.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the caller keeps it open during this call.
        let fd = unsafe { borrow(fd) }?;
        let wanted = IbvHandle::new(index, dev_name, name, Guid(node_guid))?;
        let handles = &registry.handles;
        let found = handles.find(&registry.registry, &wanted, OldNames::AfterList)?.verify(fd)?;
        if let Some(evidence) = evidence {
            handle::give_arc(evidence, uverbs_evidence::shared(found));
        }
        Ok(0)
    })
}

/// # Safety
/// It is null, or a C string that lives as long as the present call.
unsafe fn text<'a>(text: *const c_char, name: &'static str) -> Result<&'a [u8], Fault> {
    if text.is_null() {
        return Err(Fault::Null(name));
    }
    // SAFETY: as the caller promises.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Makes an error of a call that failed, for code that adds calls of its own to those of this library, as
/// uverbs/ibverbs.h does. Sets *error to an error of kind UVERBS_ERROR_OS, unless the pointer is null. `call` is the
/// call's name. Returns -errnum.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_error_of_call(
    call: *const c_char,
    errnum: c_int,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        // SAFETY: the caller passes a C string or null.
        let call = unsafe { text(call, "call") }?;
        Err(Fault::Call(call.escape_ascii().to_string(), errnum))
    })
}
