//! Structs whose size the caller passes, so that a program and a library of different versions agree: what one of
//! them does not know is zero for the other.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use crate::fault::Fault;

/// No struct is longer. A larger size is a mistake of the caller.
const MAX: usize = 4096;

/// A struct of the interface: fields of fixed width, for which every pattern of bits is a value.
///
/// # Safety
/// The type is such a struct, without padding.
pub(crate) unsafe trait Plain: Copy {}

/// Writes as much of `value` as the caller's struct has room for, and zeros to the rest of that.
///
/// # Safety
/// `to` is null, or `size` bytes can be written there.
pub(crate) unsafe fn put<T: Plain>(value: &T, to: *mut T, size: usize) -> Result<(), Fault> {
    let to = require_room(to, size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: both have `known` bytes, and one of them is a Rust value, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast::<u8>(), to, known) };
    // SAFETY: the caller's struct goes on for that long.
    unsafe { std::ptr::write_bytes(to.wrapping_add(known), 0, size - known) };
    Ok(())
}

/// Writes values to an array of the caller's structs, as far as there is room. Returns the number of values.
///
/// # Safety
/// `to` is null, or `room` times `size` bytes can be written there.
pub(crate) unsafe fn put_each<T: Plain>(
    values: impl ExactSizeIterator<Item = T>,
    to: *mut T,
    size: usize,
    room: usize,
) -> Result<c_int, Fault> {
    if room > 0 {
        // A mistake is one also where there is nothing to write.
        require_room(to, size)?;
    }
    let count = values.len();
    for (place, value) in values.take(room).enumerate() {
        let entry = to.wrapping_byte_add(place.wrapping_mul(size));
        // SAFETY: the caller's array goes on for that long.
        unsafe { put(&value, entry, size) }?;
    }
    Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
}

/// Reads the caller's struct. What it lacks is zero.
///
/// # Safety
/// `from` is null, or `size` bytes can be read there.
pub(crate) unsafe fn get<T: Plain>(from: *const T, size: usize) -> Result<T, Fault> {
    let from = require_room(from.cast_mut(), size)?.cast_const();
    let known = size.min(size_of::<T>());
    // SAFETY: the caller's struct is that long.
    let unknown = unsafe { std::slice::from_raw_parts(from.wrapping_add(known), size - known) };
    if unknown.iter().any(|&byte| byte != 0) {
        return Err(Fault::TooNew);
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `known` bytes, and one of them is a Rust value, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from, value.as_mut_ptr().cast::<u8>(), known) };
    // SAFETY: every pattern of bits is a value of it.
    Ok(unsafe { value.assume_init() })
}

fn require_room<T>(pointer: *mut T, size: usize) -> Result<*mut u8, Fault> {
    if pointer.is_null() {
        return Err(Fault::Null("the struct"));
    }
    match size {
        0 => Err(Fault::Argument("the size of the struct is 0")),
        1..=MAX => Ok(pointer.cast()),
        _ => Err(Fault::Argument("the size of the struct is beyond 4096")),
    }
}
