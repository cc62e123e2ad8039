//! `ibv_get_device_list`: notes how old the handles can be, and mends their names.

use std::arch::global_asm;
use std::ffi::c_int;
use std::mem::transmute;
use std::ptr;

use uverbs::{Error, ErrorKind, IbvNames};

use crate::ffi::{Handle, IbvDevice};
use crate::guarded::{errno, run, set_errno};
use crate::lock::lock;
use crate::real::{FreeDeviceList, GetDeviceIndex, GetDeviceList, Ibverbs};
use crate::{HANDLES, host, log};

// An unversioned symbol would also be found by programs of the version before, `IBVERBS_1.0`, whose handles are of another
// type.
global_asm!(".symver uverbs_guard_list, ibv_get_device_list@@IBVERBS_1.1");

/// Takes the place of libibverbs' function.
///
/// # Safety
/// As for libibverbs' function: `count` is null or writable.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn uverbs_guard_list(count: *mut c_int) -> *mut *mut IbvDevice {
    // SAFETY: the caller passed it, null or writable.
    if let Some(count) = unsafe { count.as_mut() } {
        *count = 0;
    }
    let Some(real) = Real::find() else {
        run((), || log::line("no list: libibverbs.so.1 is not loaded"));
        set_errno(libc::ENOSYS);
        return ptr::null_mut();
    };
    // What the real function leaves in errno is returned, whatever the guard's own calls do to it.
    let mut left = errno();
    let made = |left: &mut c_int| match host() {
        Ok(host) => {
            let _alone = lock();
            HANDLES.list(&host, || real.list(left), |list, names| list.mend(names)).map_err(Some)
        }
        // Nothing that is opened later can be proved, and it is refused then, with this reason.
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(real.list(left)),
        Err(error) => Err(Some(error)),
    };
    let list = run(Err(None), || made(&mut left).map(|list| list.give(count)));
    run((), move || drop(real));
    match list {
        Ok(list) => {
            set_errno(left);
            list
        }
        Err(error) => {
            run((), || log::line(&listing_failed(error.as_ref())));
            let errno = error.as_ref().and_then(Error::raw_os_error);
            set_errno(errno.unwrap_or(libc::EAGAIN));
            ptr::null_mut()
        }
    }
}

fn listing_failed(error: Option<&Error>) -> String {
    match error {
        Some(error) => format!("no list: {error}"),
        None => "no list: internal error: the guard panicked".to_owned(),
    }
}

/// The real functions.
struct Real {
    library: Ibverbs,
    get: GetDeviceList,
    free: FreeDeviceList,
}

impl Real {
    fn find() -> Option<Self> {
        run(None, || {
            let library = Ibverbs::find()?;
            let get = library.function(c"ibv_get_device_list", c"IBVERBS_1.1")?;
            let free = library.function(c"ibv_free_device_list", c"IBVERBS_1.1")?;
            // SAFETY: it is the function of that name and version.
            let get: GetDeviceList = unsafe { transmute(get) };
            // SAFETY: as above.
            let free: FreeDeviceList = unsafe { transmute(free) };
            Some(Self { library, get, free })
        })
    }

    fn list(&self, left: &mut c_int) -> List<'_> {
        let mut count = 0;
        // SAFETY: the count is writable.
        let list = unsafe { (self.get)(&raw mut count) };
        *left = errno();
        List { real: self, list, count }
    }
}

/// A list of libibverbs, freed when it is dropped.
struct List<'a> {
    real: &'a Real,
    list: *mut *mut IbvDevice,
    count: c_int,
}

impl List<'_> {
    fn devices(&self) -> &[*mut IbvDevice] {
        match (self.list.is_null(), usize::try_from(self.count)) {
            // SAFETY: libibverbs returned that many handles, which live as long as the list.
            (false, Ok(count)) => unsafe { std::slice::from_raw_parts(self.list, count) },
            _ => &[],
        }
    }

    /// Gives each handle the name that its device has now.
    fn mend(&self, names: &mut IbvNames<'_>) -> uverbs::Result<()> {
        let index = self.real.library.function(c"ibv_get_device_index", c"IBVERBS_1.9");
        let Some(index) = index else { return Ok(()) };
        // SAFETY: it is the function of that name and version.
        let index: GetDeviceIndex = unsafe { transmute(index) };
        for &device in self.devices() {
            // SAFETY: the handle is one of the list.
            let index = unsafe { index(device) };
            if let Ok(index) = u32::try_from(index) {
                // SAFETY: as above.
                mend(unsafe { Handle::new(device) }, names, index)?;
            }
        }
        Ok(())
    }

    /// Hands the list over to the program.
    fn give(self, count: *mut c_int) -> *mut *mut IbvDevice {
        // SAFETY: the caller of the list passed it.
        if let Some(count) = unsafe { count.as_mut() } {
            *count = self.count;
        }
        let list = self.list;
        std::mem::forget(self);
        list
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        if !self.list.is_null() {
            // SAFETY: libibverbs returned it, and nobody else has it.
            unsafe { (self.real.free)(self.list) };
        }
    }
}

fn mend(handle: Handle, names: &mut IbvNames<'_>, index: u32) -> uverbs::Result<()> {
    let Some(name) = names.get(index)? else { return Ok(()) };
    let known = handle.name();
    if known != name.as_bytes() {
        handle.set_name(name.as_bytes());
        let known = known.escape_ascii();
        log::line(&format!("index {index}: libibverbs still had the name {known}; it is {name}"));
    }
    Ok(())
}
