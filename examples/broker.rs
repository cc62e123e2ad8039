//! A broker that opens a device, and a worker that cannot open any path, proves the descriptor and uses it.
//!
//! The worker is a real child process. Its filter refuses every call that connects or starts something, and every
//! open except `openat2`. It works with the descriptor and the claim that the broker sends, and with the two
//! directories and the netlink socket that it opened before. It proves the descriptor with `Context::from_fd`.
//!
//!     cargo run --example broker -- rxe0
//!
//! `broker --try-forbidden DEVICE` makes the worker try the forbidden calls first, to show that they are refused.
#![allow(unsafe_code)] // fork: the child continues with what it has

mod sandbox;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, bail, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, netlink,
    recvmsg, sendmsg, socket_with, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use sandbox::{Allowed, any};
use uverbs::{Context, ContextClaim, Device, Host, Registry};

/// What the worker needs in addition to the descriptor.
const RECEIVE: &[Allowed] = &[
    any(libc::SYS_recvmsg), // the descriptor and the claim
    any(libc::SYS_openat2), // pins the device, beneath its two directories
    any(libc::SYS_pread64), // reads the device's attributes
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (name, tries) = match args[..] {
        [name] => (name, false),
        ["--try-forbidden", name] => (name, true),
        _ => bail!("usage: broker [--try-forbidden] DEVICE"),
    };
    let pair = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, pair, None)?;

    // SAFETY: this process has one thread, so the child may do everything that the parent could.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(std::io::Error::last_os_error()).context("fork"),
        0 => {
            drop(ours);
            let worked = worker(name, &theirs, tries);
            if let Err(error) = &worked {
                eprintln!("worker: {error:#}");
            }
            std::process::exit(i32::from(worked.is_err()));
        }
        child => Pid::from_raw(child).context("a child without a number")?,
    };
    drop(theirs);

    // The worker reports when it is ready: it receives nothing before its filter is in place.
    rustix::io::read(&ours, &mut [0])?;
    let context = Registry::new(Host::open()?).devices()?.by_name(name)?.open()?;
    let claim = context.claim()?;
    println!("broker: {}: {claim}, of driver {}", context.device(), claim.driver);
    let sent = send(&ours, &context, &claim);
    drop(ours);
    // The worker's copy keeps the context alive from here on.
    drop(context);

    let (_, status) = waitpid(Some(child), WaitOptions::empty())?.context("no child")?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => sent,
        (_, Some(signal)) => bail!("the worker was killed by signal {signal}"),
        (status, _) => bail!("the worker failed: {status:?}"),
    }
}

fn send(socket: &OwnedFd, context: &Context, claim: &ContextClaim) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [context.as_fd()];
    ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room");
    sendmsg(socket, &[IoSlice::new(&claim.to_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The other process. It determines for itself which device it expects, and then locks itself in.
fn worker(name: &str, socket: &OwnedFd, tries: bool) -> anyhow::Result<()> {
    let host = host()?;
    let device = Registry::new(host).devices()?.by_name(name)?;
    sandbox::lock_in(&[sandbox::RUNTIME, sandbox::PROVE, RECEIVE])?;
    if tries {
        sandbox::try_forbidden()?;
    }
    rustix::io::write(socket, b"!")?;

    let context = receive(socket, &device)?;
    let guid = context.query_device()?.node_guid;
    let ports = context.query_port(1)?;
    println!("worker: {device}: node GUID {guid}, port 1 {}", ports.state);
    for check in context.evidence().checks() {
        println!("  {}: {}: {}", check.step, check.what(), check.found);
    }
    Ok(())
}

/// The two directories, and a netlink socket that remains when none can be opened any more.
fn host() -> anyhow::Result<Host> {
    #[allow(clippy::disallowed_methods)] // the two roots are the only paths of the program
    let root = |path| cap_std::fs::Dir::open_ambient_dir(path, cap_std::ambient_authority());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;
    Ok(Host::builder().sys(root("/sys")?).dev(root("/dev")?).netlink(netlink).build()?)
}

fn receive(socket: &OwnedFd, device: &Device) -> anyhow::Result<Context> {
    let mut claim = [0; ContextClaim::MAX_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut claim)], &mut ancillary, flags)?;
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    ensure!(got.bytes > 0 && !got.flags.intersects(cut), "the broker sent something else");
    let descriptors = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let fd = descriptors.and_then(|mut all| all.next()).context("no descriptor came")?;
    let claim = ContextClaim::from_bytes(&claim[..got.bytes])?;
    Ok(Context::from_fd(device, fd, &claim)?)
}
