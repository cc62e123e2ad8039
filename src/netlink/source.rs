//! Where a host's netlink sockets come from.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, ThreadId};

use super::{FILTERED, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, Kernel, retry};

/// The source of a host's netlink socket.
#[derive(Debug)]
pub(crate) enum Source {
    /// The program passed it in when it made the host.
    Given(Arc<Socket>),
    /// Each user opens its own, so that they do not wait for each other, unless its thread keeps one open. A socket
    /// that stays open keeps ib_core from being unloaded.
    Ambient(Kept),
    /// There is no socket: nothing can be proved.
    Denied,
}

/// The sockets that the program keeps open, one for each thread that does.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<(ThreadId, Weak<Socket>)>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Vec<(ThreadId, Weak<Socket>)>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The one of the calling thread.
    fn get(&self) -> Option<Arc<Socket>> {
        let kept = self.lock();
        // Without a lookup of the thread where nobody keeps one.
        let thread = (!kept.is_empty()).then(|| thread::current().id())?;
        kept.iter().find(|(of, _)| *of == thread)?.1.upgrade()
    }

    fn set(&self, socket: &Arc<Socket>) {
        let mut kept = self.lock();
        kept.retain(|(_, socket)| socket.strong_count() > 0);
        kept.push((thread::current().id(), Arc::downgrade(socket)));
    }
}

const WITHOUT: &str = "without RDMA netlink nothing shows which device a context is on";

impl Source {
    /// The socket, which the calling thread uses from now on until the last of those who keep it has dropped it.
    pub(crate) fn keep(&self, kernel: &Kernel) -> Result<Arc<Socket>> {
        let socket = self.socket(kernel)?;
        if let Self::Ambient(kept) = self
            && kept.get().is_none()
        {
            kept.set(&socket);
        }
        Ok(socket)
    }

    /// The socket.
    ///
    /// # Errors
    /// `NetlinkUnavailable`, with the errno of `socket(2)`, if there is none.
    pub(crate) fn socket(&self, kernel: &Kernel) -> Result<Arc<Socket>> {
        match self {
            Self::Given(socket) => Ok(socket.clone()),
            Self::Ambient(kept) => {
                if let Some(socket) = kept.get() {
                    return Ok(socket);
                }
                let handle = retry(|| kernel.rdma_socket()).map_err(|errno| {
                    let error = Error::call("socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA)", errno);
                    match errno {
                        // The process has no room for another descriptor, which says nothing about netlink.
                        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => error,
                        _ => {
                            error.into_kind(ErrorKind::NetlinkUnavailable).with_hint(match errno {
                                Errno::PROTONOSUPPORT => "ib_core is not loaded",
                                Errno::PERM | Errno::ACCESS | Errno::AFNOSUPPORT => FILTERED,
                                _ => WITHOUT,
                            })
                        }
                    }
                })?;
                Ok(Arc::new(Socket::made(kernel.clone(), handle)))
            }
            Self::Denied => {
                let text = "no RDMA netlink socket was passed in";
                Err(Error::new(ErrorKind::NetlinkUnavailable, text).with_hint(WITHOUT))
            }
        }
    }
}
