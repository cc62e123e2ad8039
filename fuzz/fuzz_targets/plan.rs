//! A whole host, and a program that uses the library meanwhile.
#![no_main]

#[path = "../../tests/fuzzed/event.rs"]
mod event;
#[path = "../../tests/fuzzed/input.rs"]
mod input;
#[path = "../../tests/fuzzed/plan.rs"]
mod plan;
#[path = "../../tests/fuzzed/plugged.rs"]
mod plugged;
#[path = "../../tests/fuzzed/sanity.rs"]
mod sanity;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plan::run(bytes));
