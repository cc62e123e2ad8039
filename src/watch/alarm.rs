//! One descriptor to wait on: for uevents, and for the time of the next look.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::kernel::{Handle, Kernel, retry};

/// A timer behind an epoll descriptor.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: Handle,
    /// When it goes off.
    pub(super) at: Option<Duration>,
}

impl Alarm {
    pub(super) fn new(kernel: &Kernel) -> Result<(Handle, Self)> {
        let epoll = retry(|| kernel.epoll())
            .map_err(|errno| Error::call("epoll_create1(EPOLL_CLOEXEC)", errno))?;
        let timer = retry(|| kernel.timer())
            .map_err(|errno| Error::call("timerfd_create(CLOCK_MONOTONIC)", errno))?;
        add(kernel, &epoll, &timer)?;
        Ok((epoll, Self { timer, at: None }))
    }

    /// Makes it go off at `due` at the latest. If it is set to go off earlier it stays so, which saves a system
    /// call for each event: it then goes off once without need.
    pub(super) fn set(&mut self, kernel: &Kernel, due: Duration) -> Result<()> {
        let now = kernel.now();
        if self.at.is_some_and(|at| now < at && at <= due) {
            return Ok(());
        }
        let after = due.saturating_sub(now);
        retry(|| kernel.set_timer(&self.timer, after))
            .map_err(|errno| Error::call("timerfd_settime(watch)", errno))?;
        self.at = Some(due.max(now));
        Ok(())
    }
}

/// Adds a descriptor to those that are waited for.
pub(super) fn add(kernel: &Kernel, epoll: &Handle, fd: &Handle) -> Result<()> {
    retry(|| kernel.epoll_add(epoll, fd))
        .map_err(|errno| Error::call("epoll_ctl(watch, EPOLL_CTL_ADD)", errno))
}
