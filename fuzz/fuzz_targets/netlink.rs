//! Answers of RDMA netlink.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| uverbs::fuzzing::netlink(bytes));
