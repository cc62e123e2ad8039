//! Texts that are copied to a buffer of the caller.

use std::ffi::{c_char, c_int};
use std::fmt::Display;

use uverbs::{AsyncEventKind, DriverId, Guid};

use crate::fault::Fault;
use crate::guarded::run_plain;

/// A buffer for a name: 63 bytes and a NUL, as in the kernel.
pub const UVERBS_NAME_SIZE: usize = 64;

/// The caller's buffer.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    start: *mut c_char,
    size: usize,
}

impl Buffer {
    /// # Safety
    /// `start` is null, or `size` bytes can be written there until the buffer is no longer used.
    pub(crate) unsafe fn new(start: *mut c_char, size: usize) -> Self {
        Self { start, size }
    }

    /// Copies as many bytes as fit before a NUL. Returns the number of bytes that there are.
    pub(crate) fn put(self, bytes: &[u8]) -> Result<c_int, Fault> {
        let Self { start, size } = self;
        if let Some(room) = size.checked_sub(1) {
            if start.is_null() {
                return Err(Fault::Null("the buffer"));
            }
            let copied = bytes.len().min(room);
            // SAFETY: `start` has room for these and one more, and is not where a Rust value is.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), copied) };
            // SAFETY: as above.
            unsafe { start.wrapping_add(copied).write(0) };
        }
        Ok(c_int::try_from(bytes.len()).unwrap_or(c_int::MAX))
    }

    pub(crate) fn print(self, text: impl Display) -> Result<c_int, Fault> {
        self.put(text.to_string().as_bytes())
    }
}

/// The bytes in a field of a struct, ended by a NUL, without those that do not fit.
pub(crate) fn cut<const N: usize>(bytes: &[u8]) -> [c_char; N] {
    let mut field = [0; N];
    for (to, &byte) in field.iter_mut().take(N.saturating_sub(1)).zip(bytes) {
        *to = byte as c_char;
    }
    field
}

/// Escapes bytes for a terminal or a log: printable ASCII characters stay, others become \n, \x1b and the like. At
/// most four characters stand for a byte. Copies the text to `buffer` by the rule of texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_escape(
    bytes: *const c_char,
    length: usize,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    run_plain(|| {
        let bytes: &[u8] = match (bytes.is_null(), length) {
            (_, 0) => &[],
            (true, _) => return Err(Fault::Null("bytes")),
            // SAFETY: the caller has that many bytes there.
            (false, _) => unsafe { std::slice::from_raw_parts(bytes.cast(), length) },
        };
        // SAFETY: as the caller promises.
        unsafe { Buffer::new(buffer, size) }.print(bytes.escape_ascii())
    })
}

/// Copies a GUID (in host byte order) as sysfs prints it, such as 0002:c903:0005:1234, to `buffer` by the rule of
/// texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_guid_text(guid: u64, buffer: *mut c_char, size: usize) -> c_int {
    // SAFETY: as the caller promises.
    run_plain(|| unsafe { Buffer::new(buffer, size) }.print(Guid(guid)))
}

/// Copies the name of a driver (enum rdma_driver_id, rdma/ib_user_ioctl_verbs.h), such as mlx5, or unknown(N), to
/// `buffer` by the rule of texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_driver_name(
    driver_id: u32,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    // SAFETY: as the caller promises.
    run_plain(|| unsafe { Buffer::new(buffer, size) }.print(DriverId::from_raw(driver_id)))
}

/// Copies the name of a kind of async event (enum ibv_event_type), such as "port active", or unknown(N), to `buffer`
/// by the rule of texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_async_event_name(
    kind: u32,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    // SAFETY: as the caller promises.
    run_plain(|| unsafe { Buffer::new(buffer, size) }.print(AsyncEventKind::from_raw(kind)))
}

/// The version of the library, such as "0.1.0". The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
