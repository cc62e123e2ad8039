//! The real functions of libibverbs.
//!
//! They are looked up again for each call, because a program may unload libibverbs and load another. `RTLD_NEXT` does not
//! find a library that was loaded with `RTLD_LOCAL`; `RTLD_NOLOAD` finds it however it was loaded.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The private interfaces that are known to have the two functions as this library forwards them: the nodes of
/// rdma-core 24 to 65. The number goes up when a private structure changes.
const PRIVATE: [&CStr; 8] = [
    c"IBVERBS_PRIVATE_22",
    c"IBVERBS_PRIVATE_25",
    c"IBVERBS_PRIVATE_33",
    c"IBVERBS_PRIVATE_34",
    c"IBVERBS_PRIVATE_57",
    c"IBVERBS_PRIVATE_59",
    c"IBVERBS_PRIVATE_64",
    c"IBVERBS_PRIVATE_65",
];

/// The position of the private interface that was found last, where the next search begins.
static LAST: AtomicUsize = AtomicUsize::new(3);

/// The loaded libibverbs. It stays loaded until this is dropped.
pub(crate) struct Ibverbs(*mut c_void);

impl Ibverbs {
    /// Finds it, if the program has loaded it.
    pub(crate) fn find() -> Option<Self> {
        // SAFETY: the name ends with NUL. With RTLD_NOLOAD no initialiser runs.
        let library = unsafe {
            libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD)
        };
        (!library.is_null()).then(|| Self(library))
    }

    /// A function of the public interface.
    pub(crate) fn function(&self, name: &CStr, version: &CStr) -> Option<*mut c_void> {
        // SAFETY: the library is loaded, and both texts end with NUL.
        let symbol = unsafe { libc::dlvsym(self.0, name.as_ptr(), version.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }

    /// A function of the private interface, if that is a known one.
    pub(crate) fn private(&self, name: &CStr) -> Option<*mut c_void> {
        let last = LAST.load(Relaxed);
        for at in std::iter::once(last).chain(0..PRIVATE.len()) {
            if let Some(symbol) = self.function(name, PRIVATE[at]) {
                LAST.store(at, Relaxed);
                return Some(symbol);
            }
        }
        None
    }
}

impl Drop for Ibverbs {
    fn drop(&mut self) {
        // SAFETY: `find` opened it. The caller is libibverbs itself, or a library that depends on it, so this is never
        // the last reference.
        unsafe { libc::dlclose(self.0) };
    }
}

/// `ibv_get_device_list`
pub(crate) type GetDeviceList = unsafe extern "C" fn(*mut c_int) -> *mut *mut crate::ffi::IbvDevice;
/// `ibv_free_device_list`
pub(crate) type FreeDeviceList = unsafe extern "C" fn(*mut *mut crate::ffi::IbvDevice);
/// `ibv_get_device_index`
pub(crate) type GetDeviceIndex = unsafe extern "C" fn(*mut crate::ffi::IbvDevice) -> c_int;
/// `ibv_get_device_guid`, in network order
pub(crate) type GetDeviceGuid = unsafe extern "C" fn(*mut crate::ffi::IbvDevice) -> u64;
/// `_verbs_init_and_alloc_context`
pub(crate) type InitContext =
    unsafe extern "C" fn(*mut crate::ffi::IbvDevice, c_int, usize, *mut c_void, u32) -> *mut c_void;
/// `ibv_cmd_get_context` and `ibv_cmd_query_context`: up to six arguments, all of them pointers or integers, so that
/// forwarding six suits every version.
pub(crate) type GetContext =
    unsafe extern "C" fn(usize, usize, usize, usize, usize, usize) -> c_int;
