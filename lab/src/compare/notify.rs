//! Stops a thread before one of its system calls, with a seccomp filter that notifies this process first.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::side::Act;

/// `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND` (`linux/seccomp.h`); the numbers contain the sizes of their arguments.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// Runs `act` on a new thread, and `event` before its `at`-th `recvfrom`. Threads that it starts count as well.
pub(super) fn before_receiving(at: usize, act: Act, event: Act) -> Result<()> {
    let (sender, listener) = channel();
    let acting = std::thread::spawn(move || {
        let filtered = filter();
        let is_filtered = filtered.is_ok();
        let _ = sender.send(filtered);
        if is_filtered {
            act();
        }
    });
    let listener = listener.recv().context("no listener")??;
    let (mut turn, mut event) = (0, Some(event));
    let end = Instant::now() + Duration::from_secs(60);
    while !acting.is_finished() {
        ensure!(Instant::now() < end, "the thread does not end");
        let mut polled =
            libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: it is one open descriptor, with room for its result.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 5) };
        if ready <= 0 || polled.revents & libc::POLLIN == 0 {
            continue;
        }
        // SAFETY: the struct has only numbers, and the kernel requires zeros.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes as many bytes as the command's number states, which is the size of the struct.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) };
        if received != 0 {
            // The thread has ended, or a signal arrived: the loop checks again.
            continue;
        }
        turn += 1;
        if turn == at
            && let Some(event) = event.take()
        {
            event();
        }
        let go_on = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: go_on };
        // SAFETY: as above.
        let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
        ensure!(sent == 0, "the call cannot go on: {}", io::Error::last_os_error());
    }
    acting.join().expect("no panic");
    Ok(())
}

/// Makes this thread notify before each `recvfrom`. Returns the descriptor that receives the notifications.
fn filter() -> io::Result<OwnedFd> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        // The data begins with the number of the call.
        step(LOAD, 0, 0, 0),
        step(JUMP_EQUAL, 0, 1, libc::SYS_recvfrom as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program lives until the call returns, and the call copies it.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const program) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
