//! The lab's program in the guest, which runs as root on its own kernel: scenarios that remove, replace, rename and
//! fake real kernel devices, and check how the library reacts.
//!
//! `uverbs-lab scenarios [--group GROUP] [--without-samples] [FILTER…]` runs the scenarios of a group, each in its own
//! process and on a clean host: `plain` in any guest, `sriov` in one with virtual functions, `containers` in one with
//! container runtimes, too. `uverbs-lab scenario NAME` runs one of them in this process. `uverbs-lab boundary [--full
//! [--spread I/N] [--shard I/N] | --old-rule]` disturbs programs at each of their system calls. `uverbs-lab compare
//! [--full | --seconds N]` compares the simulated kernel with the real one. `uverbs-lab soak [--replacements N]` opens
//! devices while they are replaced. `uverbs-lab bench [--most DEVICES]` measures the cost of listing and opening.
//! `uverbs-lab latency [--most DEVICES] [--rounds N]` measures how soon a watch reports a change. `uverbs-lab role
//! NAME ARG…` is a program that a scenario starts under strace, as another user or in a namespace.

mod alloc;
mod bench;
mod boundary;
mod compare;
mod container;
mod functions;
mod guest;
mod ibverbs;
mod latency;
mod other_crates;
mod roles;
mod runner;
mod scenarios;
mod spawn;
mod syslog;

use std::process::ExitCode;

#[global_allocator]
static COUNTER: alloc::Counting = alloc::Counting;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["scenarios", ref filters @ ..] => return runner::run_all(filters),
        ["scenario", name] => runner::run_one(name),
        ["boundary", ref rest @ ..] => boundary::run(rest),
        ["compare", ref rest @ ..] => compare::run(rest),
        ["bench", ref rest @ ..] => bench::run(rest),
        ["latency", ref rest @ ..] => latency::run(rest),
        ["soak", ref rest @ ..] => scenarios::soak::run(rest),
        ["other-crates"] => other_crates::all(),
        ["role", name, ref rest @ ..] => roles::run(name, rest),
        ["list"] => {
            runner::all().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        _ => {
            eprintln!(
                "usage: uverbs-lab scenarios [--group GROUP] [--without-samples] [FILTER...] | scenario NAME | boundary [--full [--spread I/N] [--shard I/N] | --old-rule] | compare [--full | --seconds N | --old-rule] | soak [--replacements N | --old-rule] | bench [--most DEVICES] | latency [--most DEVICES] [--rounds N] | other-crates | role NAME ... | list"
            );
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
