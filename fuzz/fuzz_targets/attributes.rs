//! Contents of attributes and texts of class links.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| uverbs::fuzzing::attributes(bytes));
