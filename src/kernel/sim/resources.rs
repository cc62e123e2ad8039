//! What a device lists of contexts and protection domains (restrack in the kernel), and the ones
//! that others have.

use std::collections::BTreeMap;

use super::super::{Errno, Sys};
use super::spec::DeviceId;
use super::tree::SOCKETS;
use super::world::{FileId, FileState, Settings, World, errno};

/// The context of a cmd fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Context {
    /// 0 where the kernel had no memory to track it, although another context may have that number.
    pub(super) ctxn: u32,
    /// Its device lists it.
    is_tracked: bool,
}

/// A protection domain in the list of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pd {
    /// The CTXN of its context; none of a PD of the kernel's own.
    pub(super) ctxn: Option<u32>,
    /// The thread that allocated it, while it lives.
    pub(super) thread: Option<u32>,
    /// So many answers leave it out, while a failing destruction has taken it out of the list.
    hidden: u32,
}

/// The handles of a cmd fd's PDs, each with its PDN; none where the kernel does not track it.
pub(super) type Pds = BTreeMap<u32, Option<u32>>;

/// A command that fails some times.
#[derive(Debug, Clone, Copy, Default, Hash)]
pub(super) struct Failing {
    errno: i32,
    times: u32,
}

impl Failing {
    fn new(errno: i32, times: u32) -> Self {
        Self { errno, times }
    }

    /// The errno of this time, if it fails.
    fn take(&mut self) -> Sys<()> {
        match self.times {
            0 => Ok(()),
            u32::MAX => Err(errno(self.errno)),
            _ => {
                self.times -= 1;
                Err(errno(self.errno))
            }
        }
    }
}

/// What goes wrong with contexts and PDs.
#[derive(Debug, Default, Hash)]
pub(super) struct Failures {
    alloc_pd: Failing,
    copy_pd: Failing,
    dealloc_pd: Failing,
    untracked_contexts: u32,
    untracked_pds: u32,
}

/// The first file of another process.
const FOREIGN: u64 = 1 << 32;

/// The first thread of another process, which is never one of ours.
const FOREIGN_THREAD: u32 = 0x4000_0000;

/// Takes the next free number, cyclically, as `xa_alloc_cyclic` does.
fn take_number<T>(taken: &BTreeMap<u32, T>, next: &mut u32) -> u32 {
    while taken.contains_key(next) {
        *next = next.wrapping_add(1);
    }
    let number = *next;
    *next = number.wrapping_add(1);
    number
}

/// Counts one down: whether there was one.
fn take_one(count: &mut u32) -> bool {
    let had = *count > 0;
    *count -= u32::from(had);
    had
}

impl World {
    /// Allocates a context of a thread on a device.
    pub(super) fn new_context(&mut self, id: DeviceId, thread: u32) -> Context {
        if take_one(&mut self.settings.failures.untracked_contexts) {
            return Context { ctxn: 0, is_tracked: false };
        }
        let device = &mut self.devices[id];
        let ctxn = take_number(&device.contexts, &mut device.next_ctxn);
        device.contexts.insert(ctxn, Some(thread));
        Context { ctxn, is_tracked: true }
    }

    fn number_pd(&mut self, id: DeviceId, ctxn: Option<u32>, thread: Option<u32>) -> Option<u32> {
        if take_one(&mut self.settings.failures.untracked_pds) {
            return None;
        }
        let device = &mut self.devices[id];
        let pdn = take_number(&device.pds, &mut device.next_pdn);
        device.pds.insert(pdn, Pd { ctxn, thread, hidden: 0 });
        Some(pdn)
    }

    /// Allocates a PD on the context of a cmd fd: its handle and its PDN.
    fn new_pd(&mut self, file: FileId, thread: u32) -> Sys<(u32, Option<u32>)> {
        let FileState::Cmd { uverbs, context, .. } = self.file(file)?.state else {
            return Err(Errno::NOTTY);
        };
        let context = context.ok_or(Errno::INVAL)?;
        let device = self.uverbs[uverbs.0 as usize].device;
        let pdn = self.number_pd(device, Some(context.ctxn), Some(thread));
        let pds = self.pds_mut(file)?;
        let handle = (0..).find(|handle| !pds.contains_key(handle)).ok_or(Errno::NOMEM)?;
        pds.insert(handle, pdn);
        Ok((handle, pdn))
    }

    fn pds_mut(&mut self, file: FileId) -> Sys<&mut Pds> {
        match &mut self.file_mut(file)?.state {
            FileState::Cmd { pds, .. } => Ok(pds),
            _ => Err(Errno::NOTTY),
        }
    }

    /// ALLOC_PD: the handle, which is there even where an errno follows.
    pub(super) fn alloc_pd(
        &mut self,
        file: FileId,
        thread: u32,
        give: impl FnOnce(u32),
    ) -> Sys<()> {
        self.settings.failures.alloc_pd.take()?;
        let (handle, _) = self.new_pd(file, thread)?;
        give(handle);
        self.settings.failures.copy_pd.take()
    }

    /// DEALLOC_PD.
    pub(super) fn dealloc_pd(&mut self, file: FileId, handle: u32) -> Sys<()> {
        if !self.pds_mut(file)?.contains_key(&handle) {
            return Err(Errno::NOENT);
        }
        self.settings.failures.dealloc_pd.take()?;
        let pdn = self.pds_mut(file)?.remove(&handle).flatten();
        let FileState::Cmd { uverbs, .. } = self.file(file)?.state else { return Ok(()) };
        let device = self.uverbs[uverbs.0 as usize].device;
        if let Some(pdn) = pdn {
            self.devices[device].pds.remove(&pdn);
        }
        Ok(())
    }

    /// A cmd fd was closed: its context and its PDs leave the lists.
    pub(super) fn release(&mut self, id: DeviceId, context: Option<Context>, pds: &Pds) {
        let device = &mut self.devices[id];
        for pdn in pds.values().flatten() {
            device.pds.remove(pdn);
        }
        if let Some(context) = context.filter(|context| context.is_tracked) {
            device.contexts.remove(&context.ctxn);
        }
    }

    /// The driver lets go of all contexts of a device; PDs of the kernel's own stay.
    pub(super) fn release_all(&mut self, id: DeviceId) {
        let device = &mut self.devices[id];
        device.contexts.clear();
        device.pds.retain(|_, pd| pd.ctxn.is_none());
    }

    /// The PDs that an answer lists, in order. Those that are left out of it come back later.
    pub(super) fn shown_pds(&mut self, id: DeviceId) -> Vec<(u32, Pd)> {
        let mut shown = Vec::new();
        for (pdn, pd) in &mut self.devices[id].pds {
            if !take_one(&mut pd.hidden) {
                shown.push((*pdn, *pd));
            }
        }
        shown
    }

    // What others do.

    /// Another process opens the device and allocates a context: its CTXN. Until
    /// [`World::close_foreign`] it holds the device open. It goes through the node in /dev, if
    /// there is a fitting one, whose inode remembers the device from then on. None when the
    /// device cannot be opened.
    pub fn foreign_context(&mut self, id: DeviceId) -> Option<u32> {
        let thread = FOREIGN_THREAD + self.next_foreign as u32;
        self.context_by(id, thread)
    }

    /// The same by a given thread: by [`World::this_thread`] as another library of this process
    /// does it, through a descriptor of its own.
    pub fn context_by(&mut self, id: DeviceId, thread: u32) -> Option<u32> {
        let uverbs = self.devices[id].uverbs?;
        let instance = &self.uverbs[uverbs.0 as usize];
        if !instance.mapped || instance.disassociated {
            return None;
        }
        self.cache_cdev(uverbs);
        let context = Some(self.new_context(id, thread));
        // Numbered apart, so that the files of the library have the same numbers without it.
        let file = FileId(FOREIGN + self.next_foreign);
        self.next_foreign += 1;
        let state = FileState::Cmd { uverbs, context, pds: Pds::new() };
        self.open_as(file, SOCKETS, state, true);
        context.map(|context| context.ctxn)
    }

    /// The cmd fd of others that has this context.
    fn foreign_file(&self, id: DeviceId, ctxn: u32) -> Option<FileId> {
        let found = self.cmd_fds().find(|(_, file)| match file.state {
            FileState::Cmd { uverbs, context: Some(theirs), .. } => {
                let instance = &self.uverbs[uverbs.0 as usize];
                file.foreign
                    && theirs.ctxn == ctxn
                    && instance.device == id
                    && !instance.disassociated
            }
            _ => false,
        });
        found.map(|(file, _)| file)
    }

    /// Closes what [`World::foreign_context`] or [`World::context_by`] opened.
    pub fn close_foreign(&mut self, id: DeviceId, ctxn: u32) {
        if let Some(file) = self.foreign_file(id, ctxn) {
            self.close(file);
        }
    }

    /// A thread allocates a PD on a context that [`World::foreign_context`] or
    /// [`World::context_by`] opened: its PDN. None where there is no such context, or where the
    /// kernel does not track the PD.
    pub fn pd_by(&mut self, id: DeviceId, ctxn: u32, thread: u32) -> Option<u32> {
        let file = self.foreign_file(id, ctxn)?;
        self.new_pd(file, thread).ok()?.1
    }

    /// Another process opens the device and allocates a context, and a PD on it: its PDN.
    pub fn foreign_pd(&mut self, id: DeviceId) -> Option<u32> {
        let thread = FOREIGN_THREAD + self.next_foreign as u32;
        let ctxn = self.context_by(id, thread)?;
        self.pd_by(id, ctxn, thread)
    }

    /// Deallocates a PD of [`World::pd_by`] or [`World::foreign_pd`].
    pub fn dealloc_foreign_pd(&mut self, id: DeviceId, pdn: u32) {
        let found = self.cmd_fds().find_map(|(file, state)| match &state.state {
            FileState::Cmd { uverbs, pds, .. }
                if state.foreign && self.uverbs[uverbs.0 as usize].device == id =>
            {
                let handle = pds.iter().find(|(_, number)| **number == Some(pdn))?.0;
                Some((file, *handle))
            }
            _ => None,
        });
        if let Some((file, handle)) = found
            && let Ok(pds) = self.pds_mut(file)
        {
            pds.remove(&handle);
            self.devices[id].pds.remove(&pdn);
        }
    }

    /// The kernel itself allocates a PD on the device, as its MAD layer does: its PDN.
    pub fn kernel_pd(&mut self, id: DeviceId) -> Option<u32> {
        self.number_pd(id, None, None)
    }

    /// The next so many answers leave a PD out, whose destruction is tried and then given up, as
    /// from Linux 6.12 on; its number stays taken.
    pub fn hide_pd(&mut self, id: DeviceId, pdn: u32, answers: u32) {
        if let Some(pd) = self.devices[id].pds.get_mut(&pdn) {
            pd.hidden = answers;
        }
    }

    /// The CTXN that the device gives out next, unless it is taken: for wrapping around.
    pub fn set_next_ctxn(&mut self, id: DeviceId, ctxn: u32) {
        self.devices[id].next_ctxn = ctxn;
    }

    /// The PDN that the device gives out next, unless it is taken.
    pub fn set_next_pdn(&mut self, id: DeviceId, pdn: u32) {
        self.devices[id].next_pdn = pdn;
    }

    /// The thread has exited: the contexts and PDs that it allocated no longer name it.
    pub fn forget_thread(&mut self, thread: u32) {
        for device in self.devices.iter_mut() {
            let threads = device.contexts.values_mut();
            for of in threads.chain(device.pds.values_mut().map(|pd| &mut pd.thread)) {
                *of = of.filter(|of| *of != thread);
            }
        }
    }

    // Failures.

    fn failures(&mut self) -> &mut Failures {
        let Settings { failures, .. } = &mut self.settings;
        failures
    }

    /// ALLOC_PD fails with this errno the next so many times, as at a limit of the driver;
    /// `u32::MAX` times is for ever.
    pub fn fail_alloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().alloc_pd = Failing::new(errno, times);
    }

    /// ALLOC_PD makes a PD and writes its handle, and fails with this errno all the same, the next
    /// so many times, as when a copy to the program fails.
    pub fn fail_after_alloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().copy_pd = Failing::new(errno, times);
    }

    /// DEALLOC_PD of an existing PD fails with this errno the next so many times, and the PD stays.
    pub fn fail_dealloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().dealloc_pd = Failing::new(errno, times);
    }

    /// The next so many contexts are never listed, as when the kernel has no memory to track them.
    /// Their PDs have the CTXN 0.
    pub fn untrack_contexts(&mut self, contexts: u32) {
        self.failures().untracked_contexts = contexts;
    }

    /// The next so many PDs are never listed.
    pub fn untrack_pds(&mut self, pds: u32) {
        self.failures().untracked_pds = pds;
    }
}
