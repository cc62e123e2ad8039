//! A kernel that answers nonsense.
#![no_main]

#[path = "../../tests/fuzzed/input.rs"]
mod input;
#[path = "../../tests/fuzzed/responses.rs"]
mod responses;
#[path = "../../tests/fuzzed/sanity.rs"]
mod sanity;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| responses::run(bytes));
