//! The guard: a library that is preloaded into a program on libibverbs, and refuses it a device that is not the one
//! of the handle.
//!
//! All opens of libibverbs go through a provider library, and each provider calls two functions of libibverbs across
//! a library border: `_verbs_init_and_alloc_context`, with the handle and the cmd fd, and then `ibv_cmd_get_context`,
//! which allocates the kernel's context. This library takes the place of both ([`open`]). Before the second one it
//! finds the device that the handle stands for, and after it the descriptor has to be proved to be on that device.
//! Otherwise the second one fails with `ENODEV`, the provider closes the descriptor, and `ibv_open_device` returns
//! `NULL`.
//!
//! It also takes the place of `ibv_get_device_list` ([`list`]), to know how old a handle can be, and to mend names
//! that libibverbs kept of a renamed device.
//!
//! `audits/guard.md` has the argument.
//!
//! # What the rest of the process may do
//! It may fork, close all descriptors, unload libibverbs, be cancelled, or run out of descriptors. So nothing is kept
//! but numbers: every call opens what it needs and closes it. Nothing depends on a constructor having run. No panic
//! leaves a function, messages are written by one `write(2)`, and `errno` is as the real function left it.
#![allow(unsafe_code)] // all of it stands between C and C
#![cfg_attr(test, allow(dead_code))] // nothing calls what C calls; the lab has the tests of that

mod config;
mod ffi;
mod guarded;
mod list;
mod lock;
mod log;
mod open;
mod real;

use uverbs::{Host, IbvHandles};

/// The epochs of this process's lists.
static HANDLES: IbvHandles = IbvHandles::new();

/// Runs when the library is loaded. Handles of lists that are not seen are taken to be of the present epoch.
extern "C" fn start() {
    guarded::run((), || {
        log::start();
        lock::wait_before_forks();
        config::get();
        if !is_first() {
            log::line(
                "NOT GUARDED: another library before this one defines ibv_cmd_get_context, so no open is checked",
            );
        }
        if let Ok(host) = host() {
            let _ = HANDLES.begin(&host);
        }
    });
}

/// The host, for one call. The guard itself opens no node.
fn host() -> uverbs::Result<Host> {
    Host::builder().without_dev().build()
}

/// Whether the loader finds this library's function before any other. If libibverbs itself is preloaded before it, providers
/// call that.
fn is_first() -> bool {
    // SAFETY: the name ends with NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ibv_cmd_get_context".as_ptr()) };
    // The address of the exported function is looked up, too. That of a local one is this library's.
    let own = start as extern "C" fn() as *const libc::c_void;
    library_of(found) == library_of(own)
}

/// Where the library begins that has this address.
fn library_of(address: *const libc::c_void) -> usize {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the structure is writable.
    let is_found = unsafe { libc::dladdr(address, found.as_mut_ptr()) } != 0;
    // SAFETY: all zeroes is a valid value, and the call fills it in.
    let base = unsafe { found.assume_init() }.dli_fbase.addr();
    if is_found { base } else { 0 }
}

#[cfg(not(test))]
#[used]
// SAFETY: the loader calls each function in this section once, with arguments that it may ignore.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
