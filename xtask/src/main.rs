//! Build tooling of the workspace. `cargo xtask lab run` boots a kernel and runs a command in it. `cargo xtask
//! test` runs all tests, including those in kernels. `cargo xtask prove` runs the proofs that take hours. `cargo
//! xtask bench` measures. `cargo xtask install` installs.

mod apt;
mod bench;
mod capi;
mod containers;
mod cpio;
mod guest;
mod image;
mod install;
mod job;
mod kernel;
mod lab;
mod module;
mod packages;
mod paths;
mod progress;
mod prove;
mod qemu;
mod runner;
mod test;
mod toolchain;
mod tools;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::kernel::KernelChoice;
use crate::lab::LabRun;
use crate::prove::Proof;

/// Build tooling of the uverbs workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Kernels with RDMA devices under QEMU
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
    /// Run every test: the workspace's own, then the scenarios in each kernel
    Test(TestArgs),
    /// Run the full versions of the proofs, which take hours; their logs go to target/prove
    Prove(ProveArgs),
    /// Measure the cost of listing and opening, compared with libibverbs, and check it against the targets
    Bench(BenchArgs),
    /// Build and install the command, the C library with its headers and manual pages, and the guard
    Install(InstallArgs),
}

#[derive(Subcommand)]
enum LabCommand {
    /// Boot a kernel, run COMMAND in it as root, print its output, return its exit status
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Debian kernel series (5.10, 6.1, 6.12, 7.3), `newest` (of the backports), or a directory with boot/vmlinuz-*
    /// and lib/modules/*
    #[arg(long, default_value = "6.12")]
    kernel: KernelChoice,

    /// File to put in the guest: in /bin if it is executable, otherwise in /add
    #[arg(long, value_name = "PATH")]
    add: Vec<PathBuf>,

    /// Kill the guest after this long
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,

    /// Memory of the guest
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    memory: u32,

    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,

    /// Give the guest a PCI function with 64 virtual functions, 0000:3b:00.0, on NUMA node 1
    #[arg(long)]
    sriov: bool,

    /// Put crun, runc, podman and promtool in the guest, with a root directory for containers; needs --memory 2048
    #[arg(long)]
    containers: bool,

    /// Use the release builds as they are; without this option they are built first
    #[arg(long)]
    no_build: bool,

    /// Command to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct TestArgs {
    /// Kernel to run the scenarios in (repeatable; default: 6.12, 6.1, and 5.10 without the samples)
    #[arg(long)]
    kernel: Vec<KernelChoice>,

    /// Passed to `uverbs-lab scenarios`
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<OsString>,
}

#[derive(Args)]
struct ProveArgs {
    /// Proofs to run; default: all
    proofs: Vec<Proof>,

    /// Kernel for the proofs that need one (repeatable; default: 6.12, 6.1 and newest)
    #[arg(long)]
    kernel: Vec<KernelChoice>,

    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    fuzz_seconds: u64,

    /// Number of guests that run at the same time, each with 1 GB; at most the number of processors
    #[arg(long, value_name = "N", default_value_t = 2)]
    guests: usize,
}

#[derive(Args)]
struct BenchArgs {
    /// Kernel to measure on
    #[arg(long, default_value = "6.12")]
    kernel: KernelChoice,

    /// How many times everything is measured
    #[arg(long, value_name = "N", default_value_t = 1)]
    runs: usize,

    /// Maximum number of devices; targets about more are left out
    #[arg(long, value_name = "DEVICES", default_value_t = 8000)]
    most: usize,

    /// Rewrite benches/RESULTS.md and benches/devices.svg
    #[arg(long)]
    write: bool,
}

#[derive(Args)]
struct InstallArgs {
    /// Where the files belong
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,

    /// Directory to put before every path, for packages
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,

    /// Directory of the library [default: PREFIX/lib]
    #[arg(long, value_name = "DIR")]
    libdir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Lab { command: LabCommand::Run(args) } => run(args),
        Task::Test(args) => test::run(&args.kernel, &args.filter),
        Task::Prove(args) => prove::run(&prove::Plan {
            proofs: args.proofs,
            kernels: args.kernel,
            fuzz_seconds: args.fuzz_seconds,
            guests: args.guests,
        }),
        Task::Bench(args) => bench::run(&bench::Plan {
            kernel: args.kernel,
            runs: args.runs,
            most: args.most,
            write: args.write,
        }),
        Task::Install(args) => install::run(&install::Places {
            prefix: args.prefix,
            destdir: args.destdir,
            libdir: args.libdir,
        }),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(lab::EXIT_LAB_FAILED)
        }
    }
}

fn run(args: RunArgs) -> anyhow::Result<u8> {
    if !args.no_build {
        guest::build()?;
    }
    let outcome = lab::run(&LabRun {
        kernel: args.kernel,
        add: args.add,
        timeout: Duration::from_secs(args.timeout),
        memory_mb: args.memory,
        cpus: args.cpus,
        sriov: args.sriov,
        containers: args.containers,
        command: args.command,
    })?;
    if let Some(problem) = outcome.problem() {
        eprintln!("xtask: {problem}");
    }
    Ok(outcome.exit_code())
}
