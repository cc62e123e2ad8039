//! The watch on a real kernel. Its changes are applied strictly to the list that it began with, so a change that is
//! reported twice, out of order or about the wrong device is found by itself.

mod clock;
pub(super) mod container;
mod counted;
mod follow;
mod living;
mod loads;
mod losing;
mod random;
mod replay;
mod wire;

pub(crate) use container::{follow_role, forge_role};
pub(super) use counted::{idle, synthetic};
pub(crate) use counted::{idle_role, synthetic_role};
pub(super) use living::{a_stream, memory, unload};
pub(super) use losing::{blocked, burst};
pub(super) use random::{between, loads, on_a_thread};
