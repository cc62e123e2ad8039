//! The C interface of `uverbs`. `include/uverbs.h` is made from this crate by cbindgen: the comments of exported
//! items are written for readers of that header.
//!
//! Conventions, beyond those in the head of `uverbs.h`:
//! - Each function runs inside `guarded`, so that no panic leaves it and the thread is not cancelled in it.
//! - A reference-counted handle is an `Arc`. Its pointer is the one of `Arc::into_raw`. A borrowed handle that a
//!   function returns is the pointer of `Arc::as_ptr`, because a caller may pass it to the `_ref` function.
//! - Arguments that C passes by pointer are `Option<&T>` where possible, so that a null pointer is an ordinary value.
//!   Pointers that C may not have initialised are `MaybeUninit`.
//! - There is no global state and no thread-local storage.
#![allow(unsafe_code)] // everything here is called by C
#![allow(non_camel_case_types)] // the names are C's
#![allow(clippy::missing_safety_doc)] // the head of uverbs.h has the rules of all pointers

mod changes;
mod context;
mod device;
mod entry;
mod error;
mod events;
mod evidence;
mod fault;
mod guarded;
mod handle;
mod list;
mod parent;
mod ports;
mod queries;
mod registry;
mod sized;
mod text;
mod verify;
mod watch;

pub use changes::*;
pub use context::*;
pub use device::*;
pub use error::*;
pub use events::*;
pub use evidence::*;
pub use list::*;
pub use parent::*;
pub use ports::*;
pub use queries::*;
pub use registry::*;
pub use text::*;
pub use verify::*;
pub use watch::*;
