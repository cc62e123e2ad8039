//! libibverbs of the guest, as a control: it has to open the replacement. Otherwise the scenarios do not notice
//! what they are meant to notice.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use anyhow::{Context as _, Result, ensure};

/// The functions that the control needs, resolved at run time.
pub(crate) struct Ibverbs {
    get_device_list: unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void,
    free_device_list: unsafe extern "C" fn(*mut *mut c_void),
    get_device_name: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    get_device_guid: unsafe extern "C" fn(*mut c_void) -> u64,
    get_device_index: unsafe extern "C" fn(*mut c_void) -> c_int,
    open_device: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    close_device: unsafe extern "C" fn(*mut c_void) -> c_int,
    query_device: unsafe extern "C" fn(*mut c_void, *mut DeviceAttr) -> c_int,
}

/// `struct ibv_device_attr`, as far as its GUID. The rest is room.
#[repr(C)]
struct DeviceAttr {
    fw_ver: [u8; 64],
    node_guid: u64,
    rest: [u8; 512],
}

/// A list of devices of libibverbs.
pub(crate) struct List<'a> {
    ibverbs: &'a Ibverbs,
    list: *mut *mut c_void,
    len: usize,
}

/// Where the functions are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// In libibverbs itself, whatever is preloaded.
    Library,
    /// In the program's own scope, as for a program that is linked: what is preloaded comes first.
    Program,
}

impl Ibverbs {
    /// Loads libibverbs.
    pub(crate) fn load() -> Result<Self> {
        Self::load_as(Lookup::Library)
    }

    /// Loads libibverbs, as a program of that kind does.
    pub(crate) fn load_as(lookup: Lookup) -> Result<Self> {
        let flags = libc::RTLD_NOW | libc::RTLD_GLOBAL;
        // SAFETY: the library's initialisers may run here: nothing else has loaded it yet.
        let library = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), flags) };
        ensure!(!library.is_null(), "libibverbs.so.1 cannot be loaded");
        let library = if lookup == Lookup::Program { libc::RTLD_DEFAULT } else { library };
        let find = |name: &CStr| -> Result<*mut c_void> {
            // SAFETY: `library` is a live handle, never closed, or stands for the program's scope.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            ensure!(!symbol.is_null(), "libibverbs has no {name:?}");
            Ok(symbol)
        };
        macro_rules! symbol {
            ($name:literal) => {{
                let symbol = find($name)?;
                // SAFETY: it is the function of that name, and `verbs.h` declares it with this type.
                unsafe { std::mem::transmute_copy(&symbol) }
            }};
        }
        Ok(Self {
            get_device_list: symbol!(c"ibv_get_device_list"),
            free_device_list: symbol!(c"ibv_free_device_list"),
            get_device_name: symbol!(c"ibv_get_device_name"),
            get_device_guid: symbol!(c"ibv_get_device_guid"),
            get_device_index: symbol!(c"ibv_get_device_index"),
            open_device: symbol!(c"ibv_open_device"),
            close_device: symbol!(c"ibv_close_device"),
            query_device: symbol!(c"ibv_query_device"),
        })
    }

    /// The node GUID of an open context, which is closed; or the errno of the query.
    fn query_and_close(&self, context: *mut c_void) -> std::result::Result<u64, i32> {
        let mut attr = DeviceAttr { fw_ver: [0; 64], node_guid: 0, rest: [0; 512] };
        // SAFETY: the context is open, and `attr` is longer than `struct ibv_device_attr`.
        let status = unsafe { (self.query_device)(context, ptr::from_mut(&mut attr)) };
        // SAFETY: the context is open and not used after this.
        unsafe { (self.close_device)(context) };
        if status == 0 { Ok(u64::from_be(attr.node_guid)) } else { Err(status) }
    }

    /// `ibv_get_device_list`.
    pub(crate) fn list(&self) -> Result<List<'_>> {
        let mut len = 0;
        // SAFETY: `len` is writable.
        let list = unsafe { (self.get_device_list)(&raw mut len) };
        ensure!(!list.is_null(), "ibv_get_device_list: {}", std::io::Error::last_os_error());
        Ok(List { ibverbs: self, list, len: len as usize })
    }
}

impl List<'_> {
    fn device(&self, name: &str) -> Result<*mut c_void> {
        // SAFETY: the list has `len` entries and lives as long as `self`.
        let devices = unsafe { std::slice::from_raw_parts(self.list, self.len) };
        for &device in devices {
            // SAFETY: the device is of this list.
            let name_of = unsafe { (self.ibverbs.get_device_name)(device) };
            // SAFETY: a listed device has a name, which ends with NUL and lives with the list.
            let found = unsafe { CStr::from_ptr(name_of) };
            if found.to_bytes() == name.as_bytes() {
                return Ok(device);
            }
        }
        anyhow::bail!("libibverbs does not list {name}")
    }

    /// `ibv_get_device_guid` of a listed device.
    pub(crate) fn guid(&self, name: &str) -> Result<u64> {
        let device = self.device(name)?;
        // SAFETY: the device is of this list.
        Ok(u64::from_be(unsafe { (self.ibverbs.get_device_guid)(device) }))
    }

    /// `ibv_get_device_index` of a listed device.
    pub(crate) fn index(&self, name: &str) -> Result<u32> {
        let device = self.device(name)?;
        // SAFETY: the device is of this list.
        let index = unsafe { (self.ibverbs.get_device_index)(device) };
        u32::try_from(index).context("the handle has no index")
    }

    /// The number of devices.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A listed device, found once.
    pub(crate) fn find(&self, name: &str) -> Result<Listed<'_>> {
        Ok(Listed { list: self, device: self.device(name)? })
    }

    /// Opens a listed device and leaves it open as long as the process lives.
    pub(crate) fn open_and_keep(&self, name: &str) -> Result<()> {
        let device = self.device(name)?;
        // SAFETY: the device is of this list, which is alive.
        let context = unsafe { (self.ibverbs.open_device)(device) };
        ensure!(!context.is_null(), "ibv_open_device: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Opens a listed device, queries its GUID and closes it.
    pub(crate) fn guid_when_opened(&self, name: &str) -> Result<u64> {
        let device = self.device(name)?;
        // SAFETY: the device is of this list, which is alive.
        let context = unsafe { (self.ibverbs.open_device)(device) };
        ensure!(!context.is_null(), "ibv_open_device: {}", std::io::Error::last_os_error());
        let queried = self.ibverbs.query_and_close(context);
        queried.map_err(|errno| anyhow::anyhow!("ibv_query_device: {errno}"))
    }
}

/// A device of a list.
pub(crate) struct Listed<'a> {
    list: &'a List<'a>,
    device: *mut c_void,
}

// SAFETY: the list is not changed while it lives, and libibverbs may be called by several threads.
unsafe impl Sync for List<'_> {}

// SAFETY: as of the list; opening takes libibverbs' own lock.
unsafe impl Sync for Listed<'_> {}

impl Listed<'_> {
    /// `ibv_open_device`, the node GUID through the context, and `ibv_close_device`; or the errno of either of the
    /// first two.
    pub(crate) fn guid_or_errno(&self) -> Result<std::result::Result<u64, i32>> {
        // SAFETY: the device is of the list, which is alive.
        let context = unsafe { (self.list.ibverbs.open_device)(self.device) };
        if context.is_null() {
            return Ok(Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)));
        }
        Ok(self.list.ibverbs.query_and_close(context))
    }

    /// `ibv_open_device` and `ibv_close_device`.
    pub(crate) fn open_and_close(&self) -> Result<()> {
        // SAFETY: the device is of the list, which is alive.
        let context = unsafe { (self.list.ibverbs.open_device)(self.device) };
        ensure!(!context.is_null(), "ibv_open_device: {}", std::io::Error::last_os_error());
        // SAFETY: the context is open and not used after this.
        unsafe { (self.list.ibverbs.close_device)(context) };
        Ok(())
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: the list is freed once, here.
        unsafe { (self.ibverbs.free_device_list)(self.list) };
    }
}
