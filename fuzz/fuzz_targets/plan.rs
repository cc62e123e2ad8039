//! A whole host and what is asked of the library meanwhile.
#![no_main]

#[path = "../../tests/fuzzed/event.rs"]
mod event;
#[path = "../../tests/fuzzed/input.rs"]
mod input;
#[path = "../../tests/fuzzed/plan.rs"]
mod plan;
#[path = "../../tests/fuzzed/plugged.rs"]
mod plugged;
#[path = "../../tests/fuzzed/told.rs"]
mod told;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| plan::run(bytes));
