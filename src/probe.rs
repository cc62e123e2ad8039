//! Single system calls on the kernel of a host, to compare the simulated kernel with a real one. The calls are
//! those of the seam, so any difference is the kernel's.

mod pds;
mod wire;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use crate::host::Host;
use crate::ids::DriverId;
use crate::kernel::netlink::{Message, Messages, NLMSG_DONE, NLMSG_ERROR, Request};
use crate::kernel::nldev::{Chardev, Command, DeviceInfo, Resource, attr, parse_resources};
use crate::kernel::retry;
use crate::kernel::{Errno, FileType, Handle, Kernel, OFlags, Resolve, Stat, VerbsCall};
use crate::verbs;

pub use self::wire::Wire;

/// rxe needs no driver data.
const DRIVER: DriverId = DriverId::RXE;

/// Makes system calls as a program does that checks nothing. Errors are their errno.
#[derive(Debug, Clone)]
pub struct Probe(Host);

/// The directory where a path begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // outside of Semantic Versioning
pub enum Root {
    /// `/sys`
    Sys,
    /// `/dev`
    Dev,
}

/// The kind of descriptor to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // outside of Semantic Versioning
pub enum As {
    /// A reference (`O_PATH | O_NOFOLLOW`).
    Reference,
    /// A file to read, or a directory to list.
    File,
    /// A node to use (`O_RDWR`).
    Node,
}

impl As {
    fn flags(self) -> OFlags {
        OFlags::NOFOLLOW
            | match self {
                Self::Reference => OFlags::PATH,
                Self::File => OFlags::NONBLOCK,
                Self::Node => OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY,
            }
    }
}

/// A descriptor that a [`Probe`] opened.
#[derive(Debug)]
pub struct Probed {
    kernel: Kernel,
    handle: Handle,
}

/// The fields of `fstat`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Inode number.
    pub ino: u64,
    /// The kind of file, in a word.
    pub kind: String,
    /// Number of links.
    pub nlink: u64,
    /// Device number of a node.
    pub rdev: (u32, u32),
    /// Change time.
    pub ctime: (i64, u32),
}

impl Probe {
    /// A probe on the kernel of this host.
    pub fn new(host: &Host) -> Self {
        Self(host.clone())
    }

    /// The id of this thread, as the kernel's lists have it.
    pub fn thread(&self) -> u32 {
        self.0.kernel().gettid()
    }

    /// `openat2` beneath a root, without following links.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn open(&self, root: Root, path: &str, how: As) -> Result<Probed, i32> {
        let (dir, resolve) = match root {
            Root::Sys => (self.0.sys(), Resolve::Sys),
            Root::Dev => {
                let dev = self.0.dev().map_err(|_| Errno::NOENT.raw_os_error())?;
                (dev, Resolve::Dev)
            }
        };
        open(self.0.kernel(), dir, path, how, resolve)
    }

    /// The name and node GUID that netlink reports for an index.
    ///
    /// # Errors
    /// The errno of the refusal.
    pub fn device(&self, index: u32) -> Result<(Vec<u8>, u64), i32> {
        let mut found = Err(Errno::NODATA.raw_os_error());
        self.query(Command::Get, index, |message| {
            found = DeviceInfo::parse(message)
                .map(|info| (info.name.to_vec(), info.node_guid))
                .map_err(|_| Errno::BADMSG.raw_os_error());
        })?;
        found
    }

    /// The device number of the node that belongs to an index.
    ///
    /// # Errors
    /// The errno of the refusal.
    pub fn chardev(&self, index: u32) -> Result<(u32, u32), i32> {
        let mut found = Err(Errno::NODATA.raw_os_error());
        self.query(Command::GetChardev, index, |message| {
            found = Chardev::parse(message)
                .map(|chardev| chardev.dev)
                .map_err(|_| Errno::BADMSG.raw_os_error());
        })?;
        found
    }

    /// How many contexts an index has, of all threads, and how many of them belong to this thread.
    ///
    /// # Errors
    /// The errno of the refusal.
    pub fn contexts(&self, index: u32) -> Result<(usize, usize), i32> {
        let thread = Some(self.0.kernel().gettid());
        let (mut all, mut own) = (0, 0);
        self.query(Command::ResCtxGet, index, |message| {
            let counted = parse_resources(message, Resource::Context, index, &mut |entry| {
                all += 1;
                own += usize::from(entry.thread == thread);
            });
            // A malformed list must not look like a plausible count.
            all += usize::from(counted.is_err()) * 1_000_000;
        })?;
        Ok((all, own))
    }

    /// Sends one request about an index on a new socket, and passes the answer to `each`.
    fn query(
        &self,
        command: Command,
        index: u32,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), i32> {
        let kernel = self.0.kernel();
        let socket = kernel.rdma_socket().map_err(Errno::raw_os_error)?;
        let dump = command == Command::ResCtxGet;
        let mut request = Request::new(command.message_type(), dump, 1)
            .attr(attr::DEV_INDEX, &index.to_ne_bytes());
        if command == Command::GetChardev {
            request = request.attr(attr::CHARDEV_TYPE, b"uverbs\0");
        }
        kernel.send(&socket, request.finish()).map_err(Errno::raw_os_error)?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let datagram = kernel.recv(&socket, &mut buffer).map_err(Errno::raw_os_error)?;
            let bytes = buffer.get(..datagram.len).ok_or(Errno::MSGSIZE.raw_os_error())?;
            for message in Messages(bytes) {
                let message = message.map_err(|_| Errno::BADMSG.raw_os_error())?;
                if matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                    let errno = message.errno().map_err(|_| Errno::BADMSG.raw_os_error())?;
                    return errno.map_or(Ok(()), |errno| Err(errno.raw_os_error()));
                }
                each(&message);
            }
            if !dump {
                return Ok(());
            }
        }
    }
}

fn open(
    kernel: &Kernel,
    dir: &Handle,
    path: &str,
    how: As,
    resolve: Resolve,
) -> Result<Probed, i32> {
    let path = CString::new(path).unwrap_or_default();
    let handle = retry(|| kernel.openat2(dir, &path, how.flags(), resolve));
    let handle = handle.map_err(Errno::raw_os_error)?;
    Ok(Probed { kernel: kernel.clone(), handle })
}

impl Probed {
    /// `openat2` beneath this directory in /sys.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn open(&self, path: &str, how: As) -> Result<Self, i32> {
        open(&self.kernel, &self.handle, path, how, Resolve::Sys)
    }

    /// `fstat`.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn facts(&self) -> Result<Facts, i32> {
        let stat = self.kernel.fstat(&self.handle).map_err(Errno::raw_os_error)?;
        let Stat { ino, kind, nlink, rdev, ctime, .. } = stat;
        // Only meaningful for a node.
        let rdev = if kind == FileType::CharacterDevice { rdev } else { (0, 0) };
        Ok(Facts { ino, kind: format!("{kind:?}"), nlink, rdev, ctime })
    }

    /// `pread` from the beginning.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn read(&self) -> Result<Vec<u8>, i32> {
        let mut buffer = [0; 4096];
        let len = self.kernel.pread(&self.handle, &mut buffer).map_err(Errno::raw_os_error)?;
        Ok(buffer[..len].to_vec())
    }

    /// The text of a link that was opened as [`As::Reference`].
    ///
    /// # Errors
    /// The errno of the call.
    pub fn link(&self) -> Result<Vec<u8>, i32> {
        let mut buffer = [0; 4096];
        let len =
            self.kernel.readlink(&self.handle, c"", &mut buffer).map_err(Errno::raw_os_error)?;
        Ok(buffer[..len].to_vec())
    }

    /// The names in a directory that was opened as [`As::File`], sorted, without `.` and `..`.
    ///
    /// # Errors
    /// The errno of `getdents64`.
    pub fn names(&self) -> Result<Vec<String>, i32> {
        let mut names = Vec::new();
        loop {
            let more = self.kernel.getdents(&self.handle, &mut |entry| {
                if !matches!(entry.name, b"." | b"..") {
                    names.push(entry.name.escape_ascii().to_string());
                }
            });
            if !more.map_err(Errno::raw_os_error)? {
                names.sort();
                return Ok(names);
            }
        }
    }

    /// GET_CONTEXT without driver data, which is right for rxe.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn get_context(&self) -> Result<(), i32> {
        let mut call =
            VerbsCall { object: 0, method: 3, driver_id: DRIVER.to_raw(), attrs: &mut [] };
        self.kernel.verbs_ioctl(self.as_fd(), &mut call).map_err(Errno::raw_os_error)
    }

    /// The node GUID that QUERY_DEVICE returns.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn query_device(&self) -> Result<u64, i32> {
        let answer = verbs::query_device(&self.kernel, self.as_fd(), DRIVER);
        answer.map(|answer| verbs::node_guid(&answer).0).map_err(Errno::raw_os_error)
    }
}

impl AsFd for Probed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
