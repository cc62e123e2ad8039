//! The contexts and protection domains that a device lists (restrack in the kernel), including those of others.

use std::collections::BTreeMap;

use super::super::{Errno, Sys};
use super::spec::DeviceId;
use super::tree::SOCKETS;
use super::world::{FileId, FileState, Settings, World, errno};

/// The context of a cmd fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Context {
    /// 0 if the kernel had no memory to track it, although another context may have that number.
    pub(super) ctxn: u32,
    /// Whether its device lists it.
    is_tracked: bool,
}

/// A protection domain in the list of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pd {
    /// The CTXN of its context; `None` for a PD of the kernel itself.
    pub(super) ctxn: Option<u32>,
    /// The thread that allocated it, while it lives.
    pub(super) thread: Option<u32>,
    /// This many answers leave it out, while a failing destruction has taken it out of the list.
    hidden: u32,
}

/// The handles of a cmd fd's PDs, each with its PDN, or `None` if the kernel does not track it.
pub(super) type Pds = BTreeMap<u32, Option<u32>>;

/// A command that fails a number of times.
#[derive(Debug, Clone, Copy, Default, Hash)]
pub(super) struct Failing {
    errno: i32,
    times: u32,
}

impl Failing {
    fn new(errno: i32, times: u32) -> Self {
        Self { errno, times }
    }

    /// Takes one of the failures: returns its errno, if any is left.
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

/// Failures of contexts and PDs.
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

/// The first thread of another process. Ours never have that number.
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

/// Decrements a count, unless it is 0. Returns whether it was decremented.
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

    /// Allocates a PD on the context of a cmd fd. Returns its handle and its PDN.
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

    /// ALLOC_PD. The handle is valid even if an errno follows.
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

    /// The driver disassociates all contexts of a device. The kernel's own PDs stay.
    pub(super) fn release_all(&mut self, id: DeviceId) {
        let device = &mut self.devices[id];
        device.contexts.clear();
        device.pds.retain(|_, pd| pd.ctxn.is_none());
    }

    /// The PDs that an answer lists, in order. Those that are left out come back later.
    pub(super) fn shown_pds(&mut self, id: DeviceId) -> Vec<(u32, Pd)> {
        let mut shown = Vec::new();
        for (pdn, pd) in &mut self.devices[id].pds {
            if !take_one(&mut pd.hidden) {
                shown.push((*pdn, *pd));
            }
        }
        shown
    }

    // The actions of others.

    /// Another process opens the device and allocates a context. Returns its CTXN. Until [`World::close_foreign`]
    /// it holds the device open. It opens the node in /dev, if there is a fitting one, and the node's inode
    /// remembers the device from then on. Returns `None` if the device cannot be opened.
    pub fn foreign_context(&mut self, id: DeviceId) -> Option<u32> {
        let thread = FOREIGN_THREAD + self.next_foreign as u32;
        self.context_by(id, thread)
    }

    /// As [`foreign_context`](Self::foreign_context), but with a given thread. With [`World::this_thread`] it
    /// stands for another library of this process, with a descriptor of its own.
    pub fn context_by(&mut self, id: DeviceId, thread: u32) -> Option<u32> {
        let uverbs = self.devices[id].uverbs?;
        let instance = &self.uverbs[uverbs.0 as usize];
        if !instance.mapped || instance.disassociated {
            return None;
        }
        self.cache_cdev(uverbs);
        let context = Some(self.new_context(id, thread));
        // Numbered separately, so that the library's files have the same numbers without it.
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

    /// A thread allocates a PD on a context that [`World::foreign_context`] or [`World::context_by`] opened.
    /// Returns its PDN, or `None` if there is no such context, or if the kernel does not track the PD.
    pub fn pd_by(&mut self, id: DeviceId, ctxn: u32, thread: u32) -> Option<u32> {
        let file = self.foreign_file(id, ctxn)?;
        self.new_pd(file, thread).ok()?.1
    }

    /// Another process opens the device, and allocates a context and a PD on it. Returns the PDN.
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

    /// The kernel itself allocates a PD on the device, as its MAD layer does. Returns its PDN.
    pub fn kernel_pd(&mut self, id: DeviceId) -> Option<u32> {
        self.number_pd(id, None, None)
    }

    /// The next answers, as many as given, leave out a PD whose destruction is tried and then given up, as from
    /// Linux 6.12 on. Its number stays taken.
    pub fn hide_pd(&mut self, id: DeviceId, pdn: u32, answers: u32) {
        if let Some(pd) = self.devices[id].pds.get_mut(&pdn) {
            pd.hidden = answers;
        }
    }

    /// Sets the CTXN that the device assigns next, unless it is taken. Tests use it to let numbers wrap around.
    pub fn set_next_ctxn(&mut self, id: DeviceId, ctxn: u32) {
        self.devices[id].next_ctxn = ctxn;
    }

    /// Sets the PDN that the device assigns next, unless it is taken.
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

    /// Makes ALLOC_PD fail with this errno the next `times` times, as at a limit of the driver. `u32::MAX` means
    /// always.
    pub fn fail_alloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().alloc_pd = Failing::new(errno, times);
    }

    /// Makes ALLOC_PD fail with this errno after it has made a PD and written its handle, the next `times` times,
    /// as if a copy to the program failed.
    pub fn fail_after_alloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().copy_pd = Failing::new(errno, times);
    }

    /// Makes DEALLOC_PD of an existing PD fail with this errno the next `times` times. The PD stays.
    pub fn fail_dealloc_pd(&mut self, errno: i32, times: u32) {
        self.failures().dealloc_pd = Failing::new(errno, times);
    }

    /// Leaves the next contexts, as many as given, out of all lists, as if the kernel had no memory to track them.
    /// Their PDs have the CTXN 0.
    pub fn untrack_contexts(&mut self, contexts: u32) {
        self.failures().untracked_contexts = contexts;
    }

    /// Leaves the next PDs, as many as given, out of all lists.
    pub fn untrack_pds(&mut self, pds: u32) {
        self.failures().untracked_pds = pds;
    }
}
