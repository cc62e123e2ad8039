//! The manual: why an open can be believed, what that rests on, and why things are as they are.
//!
//! These are documents of the project, so their links and commands are those of its repository.
// Brackets in them are text, and their commands are no examples in Rust.
#![allow(rustdoc::broken_intra_doc_links)]

/// The open protocol: the argument, each assumption with the world that breaks it, and what was explored.
#[cfg_attr(not(doctest), doc = include_str!("../audits/open-protocol.md"))]
pub mod open_protocol {}

/// What the argument and the code take from the kernel.
#[cfg_attr(not(doctest), doc = include_str!("../audits/kernel-facts.md"))]
pub mod kernel_facts {}

/// Hot plug: what a watch promises, each assumption with the world that breaks it, and what was explored.
#[cfg_attr(not(doctest), doc = include_str!("../audits/hot-plug.md"))]
pub mod hot_plug {}

/// The guard: which device a handle of libibverbs stands for, what is covered, and what is not.
#[cfg_attr(not(doctest), doc = include_str!("../audits/guard.md"))]
pub mod guard {}

/// Why one mechanism was chosen over another.
#[cfg_attr(not(doctest), doc = include_str!("../audits/decisions.md"))]
pub mod decisions {}

/// What each driver is given when a context is allocated.
#[cfg_attr(not(doctest), doc = include_str!("../audits/providers.md"))]
pub mod providers {}

/// What the library promises against whom, and what was once broken.
#[cfg_attr(not(doctest), doc = include_str!("../SECURITY.md"))]
pub mod security {}
