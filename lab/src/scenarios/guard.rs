//! Programs on libibverbs under the guard: of each kind, on replaced, renamed and moved devices.

mod builds;
mod caller;
mod classes;
mod hca;
mod inside;
mod launcher;
mod programs;
mod rdmacm;
mod stale;
mod threads;

pub(super) use builds::{older_library, symbolic_library, unknown_interface};
pub(super) use classes::each_class;
pub(super) use inside::inside;
pub(crate) use inside::role;
pub(super) use launcher::refuses;
pub(super) use programs::behave_the_same;
pub(super) use rdmacm::after_a_refusal;
pub(super) use stale::{core_reloaded, moved, names_swapped, unproven};
pub(super) use threads::list_at_once;
