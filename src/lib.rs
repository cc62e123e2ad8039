//! uverbs
#![deny(unsafe_code)]
#![allow(dead_code)]
mod kernel;
