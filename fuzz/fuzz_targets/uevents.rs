//! Uevents, their control messages, and a watch that hears them while devices come and go.
#![no_main]

#[path = "../../tests/fuzzed/event.rs"]
mod event;
#[path = "../../tests/fuzzed/input.rs"]
mod input;
#[path = "../../tests/fuzzed/sanity.rs"]
mod sanity;
#[path = "../../tests/fuzzed/uevents.rs"]
mod uevents;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| uevents::run(bytes));
