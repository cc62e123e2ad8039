//! A simulated kernel behind the same seam as the real one: sysfs, /dev, RDMA netlink and the verbs ioctl, with the
//! semantics that matter for hot plug. A [`Machine`] is one such kernel. Between any two calls of the library, its
//! devices may be added, removed, replaced or renamed.
//!
//! A call is one step and takes no time, except that waiting advances a clock. What waits in a real kernel, such as the
//! removal of a device that is still open, stays undone here until the last descriptor is closed.
//!
//! This module is outside of Semantic Versioning: it may change in any version, as more becomes known about real
//! kernels.
//!
//! ```
//! use uverbs::sim::{DeviceSpec, Machine};
//! use uverbs::{ErrorKind, Host, Registry};
//!
//! # fn main() -> uverbs::Result<()> {
//! let machine = Machine::new();
//! let old = machine.add(DeviceSpec::new("rxe0")).expect("there is room");
//! let registry = Registry::new(Host::simulated(&machine)?);
//! let device = registry.devices()?.by_name("rxe0")?;
//! device.open()?;
//!
//! // Another device takes its name, its number and its device number.
//! machine.remove(old);
//! machine.add(DeviceSpec::new("rxe0")).expect("there is room");
//! assert_eq!(device.open().expect_err("gone").kind(), ErrorKind::Replaced);
//! # Ok(())
//! # }
//! ```

mod devices;
mod files;
mod hook;
mod mixer;
mod modules;
mod netlink;
mod nodes;
mod parents;
mod ports;
mod resources;
mod spec;
mod threads;
mod tree;
mod truth;
mod uevents;
mod verbs;
mod waiting;
mod world;

#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::fmt;
use std::hash::Hash as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{
    Attr, AttrData, Datagram, DirEntry, Errno, Handle, OFlags, Resolve, Stat, Sys, VerbsCall,
};
use hook::Hook;
pub use hook::{Call, CallKind, Verdict};
use mixer::Mixer;
pub use nodes::{NodeKind, NodeOpened};
pub use spec::{AddStage, DeviceId, DeviceSpec, Stage};
use tree::{DEV, NodeId, SOCKETS, SYS};
pub use world::World;
use world::{FileId, FileState};

/// A simulated kernel. Clones refer to the same kernel.
#[derive(Clone)]
pub struct Machine {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Dropped descriptors. They are closed when the world is entered next, so that a drop takes no lock that its
    /// caller may hold, not even inside a hook.
    closing: Mutex<Vec<FileId>>,
}

struct State {
    world: World,
    hook: Option<Hook>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// The result of a call, as far as the program can distinguish one result from another. (Of a file it sees only
/// what it queries. Buffers are hashed where they are filled.)
trait Returned {
    fn hash_into(&self, hash: &mut Mixer);
}

impl Returned for (FileId, Option<OwnedFd>) {
    fn hash_into(&self, hash: &mut Mixer) {
        self.0.hash(hash);
    }
}

impl Returned for verbs::Made {
    fn hash_into(&self, hash: &mut Mixer) {
        self.as_ref().map(|(file, _)| file).hash(hash);
    }
}

impl Returned for Stat {
    fn hash_into(&self, hash: &mut Mixer) {
        (self.dev, self.ino, self.nlink, self.rdev, self.ctime).hash(hash);
    }
}

impl Returned for Datagram {
    fn hash_into(&self, hash: &mut Mixer) {
        (self.len, self.from_kernel).hash(hash);
    }
}

macro_rules! returned {
    ($($type:ty),*) => {
        $(impl Returned for $type {
            fn hash_into(&self, hash: &mut Mixer) {
                self.hash(hash);
            }
        })*
    };
}

returned!(FileId, bool, u64, usize, files::Page, ());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The descriptor behind every simulated descriptor that has none of its own.
fn inert() -> &'static OwnedFd {
    static INERT: OnceLock<OwnedFd> = OnceLock::new();
    INERT.get_or_init(|| world::pair().expect("a descriptor for the simulated kernel").0)
}

impl Machine {
    /// A kernel with ib_uverbs loaded and without devices.
    pub fn new() -> Self {
        let state = Mutex::new(State { world: World::new(), hook: None });
        Self { shared: Arc::new(Shared { state, closing: Mutex::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.shared.state);
        state.world.settle(&mut lock(&self.shared.closing));
        state
    }

    /// Changes or reads the world, between two calls of the library.
    pub fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.lock().world)
    }

    /// Calls `hook` before every call of the library. The hook may change the world, and its verdict may make the
    /// call fail. It must not use the machine itself, which is locked meanwhile. There is one hook at a time.
    pub fn on_call(&self, hook: impl FnMut(&mut World, &Call<'_>) -> Verdict + Send + 'static) {
        // The previous hook may own descriptors, so it is dropped outside the lock.
        let before = self.lock().hook.replace(Box::new(hook));
        drop(before);
    }

    /// Removes the hook.
    pub fn clear_hook(&self) {
        let hook = self.lock().hook.take();
        drop(hook);
    }

    /// Opens the node of that number by its name, as a library does that checks nothing. The hook sees the calls
    /// like any others.
    ///
    /// # Errors
    /// The errno of the call that failed.
    pub fn open_node(&self, number: u32) -> Result<OwnedFd, i32> {
        let path = CString::new(format!("infiniband/uverbs{number}")).unwrap_or_default();
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let opened = self.openat2(&self.root_dev(), &path, flags, Resolve::Dev);
        opened.map(OwnedFd::from).map_err(Errno::raw_os_error)
    }

    /// As [`open_node`](Self::open_node), and allocates a context for rxe.
    ///
    /// # Errors
    /// The errno of the call that failed.
    pub fn open_unguarded(&self, number: u32) -> Result<OwnedFd, i32> {
        let fd = self.open_node(number)?;
        let mut call = VerbsCall { object: 0, method: 3, driver_id: 14, attrs: &mut [] };
        self.verbs_ioctl(fd.as_fd(), &mut call).map_err(Errno::raw_os_error)?;
        Ok(fd)
    }

    /// Allocates a PD on the context of a cmd fd, as any program does. Returns its handle. The hook sees the call
    /// like any other.
    ///
    /// # Errors
    /// The errno of the command.
    pub fn alloc_pd(&self, fd: BorrowedFd<'_>) -> Result<u32, i32> {
        let mut handle = [0; 4];
        let mut attrs = [
            Attr { id: 0, data: AttrData::In(&[0; 8]) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut handle, len: 4 } },
            Attr { id: 2, data: AttrData::Const(verbs::ALLOC_PD) },
        ];
        let mut call = VerbsCall { object: 0, method: 0, driver_id: 14, attrs: &mut attrs };
        self.verbs_ioctl(fd, &mut call).map_err(Errno::raw_os_error)?;
        Ok(u32::from_ne_bytes(handle))
    }

    /// [`World::open_handles`], after dropped descriptors had a moment to close. Another process that looks at this
    /// one's descriptors (`/proc/PID/fd`) holds the stand-ins for that long.
    pub fn open_handles(&self) -> usize {
        for _ in 0..100 {
            if !self.with(|world| world.has_dropped_files()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.with(|world| world.open_handles())
    }

    /// `/sys`, opened.
    pub(crate) fn root_sys(&self) -> SimHandle {
        self.root(SYS)
    }

    /// `/dev`, opened.
    pub(crate) fn root_dev(&self) -> SimHandle {
        self.root(DEV)
    }

    fn root(&self, node: NodeId) -> SimHandle {
        let file = self.lock().world.open_file(node, FileState::Path);
        self.handle(file, None)
    }

    fn handle(&self, file: FileId, stand_in: Option<OwnedFd>) -> SimHandle {
        SimHandle { machine: self.clone(), file, stand_in }
    }

    /// The common entry of all calls.
    fn enter<T: Returned>(
        &self,
        kind: CallKind,
        describe: impl Fn(&World) -> String,
        act: impl FnOnce(&mut World, Verdict) -> Sys<T>,
    ) -> Sys<T> {
        let mut state = self.lock();
        let State { world, hook } = &mut *state;
        world.calls += 1;
        world.tree.now = world.tree.now.wrapping_add(world.settings.tick);
        let mut verdict = Verdict::Continue;
        let call = Call::new(kind, world.calls, &describe);
        if world.log.is_some() {
            let text = call.text(world);
            world.log.get_or_insert_default().push(text);
        }
        if let Some(hook) = hook {
            verdict = hook(world, &call);
            // What the hook dropped is closed before the call, because the hook runs before the call.
            world.settle(&mut lock(&self.shared.closing));
        }
        let result = match verdict {
            Verdict::Fail(errno) => Err(world::errno(errno)),
            verdict => act(world, verdict),
        };
        match &result {
            Ok(value) => value.hash_into(&mut world.returned),
            Err(errno) => errno.raw_os_error().hash(&mut world.returned),
        }
        result
    }

    /// The calling thread's number on this machine.
    pub(crate) fn gettid(&self) -> u32 {
        self.with(|world| world.thread(threads::current()))
    }

    /// Stands for a thread that exists only on this machine. `run` is called on the calling thread, which has
    /// another number meanwhile. When this returns, the thread has exited.
    pub(crate) fn on_new_thread<T>(&self, run: &mut impl FnMut(u32) -> T) -> Sys<T> {
        let act = |world: &mut World, _| world.settings.no_threads.map_or(Ok(()), Err);
        self.enter(
            CallKind::Thread,
            |_| "new".into(),
            |world, verdict| act(world, verdict).map_err(world::errno),
        )?;
        let _thread = threads::Started::begin();
        let result = run(self.gettid());
        self.with(|world| world.thread_exits(threads::current()));
        Ok(result)
    }

    pub(crate) fn duplicate(&self, fd: BorrowedFd<'_>) -> Sys<Handle> {
        let describe =
            |world: &World| world.file_of(fd).map_or("foreign".into(), |file| world.describe(file));
        self.enter(CallKind::Duplicate, describe, |_, _| Ok(()))?;
        super::linux::duplicate(fd)
    }

    /// A call on one file.
    fn on_file<T: Returned>(
        &self,
        kind: CallKind,
        handle: &SimHandle,
        act: impl FnOnce(&mut World, Verdict, FileId) -> Sys<T>,
    ) -> Sys<T> {
        // A handle of another machine is not a descriptor of this one.
        if !Arc::ptr_eq(&self.shared, &handle.machine.shared) {
            return Err(Errno::BADF);
        }
        let file = handle.file;
        self.enter(kind, |world| world.describe(file), |world, verdict| act(world, verdict, file))
    }

    pub(crate) fn openat2(
        &self,
        dir: &SimHandle,
        path: &CStr,
        flags: OFlags,
        _resolve: Resolve,
    ) -> Sys<Handle> {
        let (file, path) = (dir.file, path.to_bytes());
        let describe = |world: &World| {
            let dir = world.describe(file);
            let how = if flags.contains(OFlags::PATH) { " O_PATH" } else { "" };
            format!("{dir}: {}{how}", path.escape_ascii())
        };
        if !Arc::ptr_eq(&self.shared, &dir.machine.shared) {
            return Err(Errno::BADF);
        }
        let act = |world: &mut World, _| world.openat2(file, path, flags);
        let (file, stand_in) = self.enter(CallKind::Openat2, describe, act)?;
        Ok(Handle::Sim(self.handle(file, stand_in)))
    }

    pub(crate) fn fstat(&self, fd: &SimHandle) -> Sys<Stat> {
        self.on_file(CallKind::Fstat, fd, |world, _, file| world.fstat(file))
    }

    pub(crate) fn fstatfs_type(&self, fd: &SimHandle) -> Sys<u64> {
        self.on_file(CallKind::Fstatfs, fd, |world, _, file| world.fstatfs_type(file))
    }

    pub(crate) fn readlink(&self, fd: &SimHandle, path: &CStr, buffer: &mut [u8]) -> Sys<usize> {
        self.on_file(CallKind::Readlink, fd, |world, verdict, file| {
            let len = world.readlink(file, path.to_bytes(), buffer)?;
            let len = verdict.of_answer(buffer, len).min(buffer.len());
            buffer[..len].hash(&mut world.returned);
            Ok(len)
        })
    }

    pub(crate) fn pread(&self, fd: &SimHandle, buffer: &mut [u8]) -> Sys<usize> {
        self.on_file(CallKind::Pread, fd, |world, verdict, file| {
            let len = world.pread(file, buffer)?;
            let len = verdict.of_answer(buffer, len).min(buffer.len());
            buffer[..len].hash(&mut world.returned);
            Ok(len)
        })
    }

    pub(crate) fn getdents(&self, fd: &SimHandle, each: &mut dyn FnMut(DirEntry<'_>)) -> Sys<bool> {
        // The entries are passed outside the lock, because the receiver may make calls.
        let page = self.on_file(CallKind::Getdents, fd, |world, _, file| world.getdents(file))?;
        for (ino, name) in &page {
            each(DirEntry { ino: *ino, name });
        }
        Ok(!page.is_empty())
    }

    pub(crate) fn rdma_socket(&self) -> Sys<Handle> {
        let file = self.enter(
            CallKind::RdmaSocket,
            |_| "NETLINK_RDMA".into(),
            |world, _| match world.settings.deny_netlink {
                Some(errno) => Err(world::errno(errno)),
                None => Ok(world.open_file(SOCKETS, FileState::Socket(Default::default()))),
            },
        )?;
        Ok(Handle::Sim(self.handle(file, None)))
    }

    pub(crate) fn send(&self, socket: &SimHandle, message: &[u8]) -> Sys<usize> {
        let file = socket.file;
        if !Arc::ptr_eq(&self.shared, &socket.machine.shared) {
            return Err(Errno::BADF);
        }
        self.enter(
            CallKind::Send,
            |_| netlink::describe(message),
            |world, verdict| match verdict {
                Verdict::Lose => Ok(message.len()),
                Verdict::Truncate(len) => {
                    world.send(file, &message[..len.min(message.len())])?;
                    Ok(message.len())
                }
                _ => world.send(file, message),
            },
        )
    }

    pub(crate) fn recv(&self, socket: &SimHandle, buffer: &mut [u8]) -> Sys<Datagram> {
        self.on_file(CallKind::Recv, socket, |world, verdict, file| {
            let datagram = match verdict {
                Verdict::Lose => {
                    world.lose(file)?;
                    world.recv(file, buffer)
                }
                Verdict::Truncate(len) => {
                    let len = len.min(buffer.len());
                    world.recv(file, &mut buffer[..len])
                }
                Verdict::Forge(bytes) => {
                    files::copy(&bytes, buffer);
                    Ok(Datagram { len: bytes.len(), from_kernel: false })
                }
                verdict => {
                    let Datagram { len, from_kernel } = world.recv(file, buffer)?;
                    Ok(Datagram { len: verdict.of_answer(buffer, len), from_kernel })
                }
            }?;
            buffer[..datagram.len.min(buffer.len())].hash(&mut world.returned);
            Ok(datagram)
        })
    }

    pub(crate) fn set_nonblocking(&self, fd: &SimHandle) -> Sys<()> {
        self.on_file(CallKind::Fcntl, fd, |_, _, _| Ok(()))
    }

    pub(crate) fn read(&self, fd: &SimHandle, buffer: &mut [u8]) -> Sys<usize> {
        self.on_file(CallKind::Read, fd, |world, verdict, file| {
            let len = world.read(file, buffer)?;
            let len = verdict.of_answer(buffer, len).min(buffer.len());
            buffer[..len].hash(&mut world.returned);
            Ok(len)
        })
    }

    pub(crate) fn fstat_cmd(&self, fd: BorrowedFd<'_>) -> Sys<Stat> {
        let describe =
            |world: &World| world.file_of(fd).map_or("foreign".into(), |file| world.describe(file));
        self.enter(CallKind::FstatCmd, describe, |world, _| {
            world.fstat(world.file_of(fd).ok_or(Errno::BADF)?)
        })
    }

    pub(crate) fn verbs_ioctl(&self, fd: BorrowedFd<'_>, call: &mut VerbsCall<'_>) -> Sys<()> {
        let thread = self.gettid();
        let (object, method) = (call.object, call.method);
        let made = self.enter(
            CallKind::VerbsIoctl,
            |_| format!("{object}.{method}"),
            |world, verdict| {
                let made = world.verbs_ioctl(world.file_of(fd), thread, call)?;
                for attr in &mut *call.attrs {
                    if let AttrData::Out { buffer, .. } = &mut attr.data {
                        let len = buffer.len();
                        verdict.of_answer(buffer, len);
                        buffer.hash(&mut world.returned);
                    }
                }
                Ok(made)
            },
        )?;
        let Some((file, stand_in)) = made else { return Ok(()) };
        let handle = Handle::Sim(self.handle(file, stand_in));
        if let Some(Attr { data: AttrData::Descriptor(room), .. }) = call.attrs.first_mut() {
            **room = Some(handle);
        }
        Ok(())
    }
}

/// A descriptor of a simulated kernel. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct SimHandle {
    machine: Machine,
    file: FileId,
    /// What stands for it in this process, if it was opened from a node.
    stand_in: Option<OwnedFd>,
}

impl SimHandle {
    /// The descriptor that stands for it in this process: its own if it was opened from a node, otherwise a shared
    /// one.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stand_in.as_ref().unwrap_or_else(|| inert()).as_fd()
    }

    /// Returns the stand-in. The file stays open until the stand-in and all its duplicates are closed.
    pub(crate) fn into_owned_fd(mut self) -> OwnedFd {
        match self.stand_in.take() {
            Some(fd) => fd,
            None => inert().try_clone().expect("a descriptor for the simulated kernel"),
        }
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        drop(self.stand_in.take());
        lock(&self.machine.shared.closing).push(self.file);
    }
}
