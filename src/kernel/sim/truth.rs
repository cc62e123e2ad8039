//! The true state of the simulated kernel, for tests to compare with.

use std::os::fd::BorrowedFd;

use super::devices::{UverbsId, node_name};
use super::nodes::NodeOpened;
use super::spec::DeviceId;
use super::world::{FileState, World};

impl World {
    fn uverbs_of(&self, fd: BorrowedFd<'_>) -> Option<UverbsId> {
        match self.file(self.file_of(fd)?).ok()?.state {
            FileState::Cmd { uverbs, .. } => Some(uverbs),
            _ => None,
        }
    }

    /// The device that a cmd fd is bound to.
    pub fn device_of(&self, fd: BorrowedFd<'_>) -> Option<DeviceId> {
        Some(self.uverbs[self.uverbs_of(fd)?.0 as usize].device)
    }

    /// The inode number of the directory of the uverbs instance that a cmd fd is bound to, whether or not the
    /// directory still exists.
    pub fn directory_of(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        Some(self.tree.ino(self.uverbs[self.uverbs_of(fd)?.0 as usize].dir))
    }

    /// The inode number of the directory of the device's uverbs instance, while it has one.
    pub fn directory(&self, id: DeviceId) -> Option<u64> {
        Some(self.tree.ino(self.uverbs[self.devices[id].uverbs?.0 as usize].dir))
    }

    /// The CTXN of the context on a cmd fd, if it has one.
    pub fn ctxn_of(&self, fd: BorrowedFd<'_>) -> Option<u32> {
        match self.file(self.file_of(fd)?).ok()?.state {
            FileState::Cmd { context, .. } => context.map(|context| context.ctxn),
            _ => None,
        }
    }

    /// The device that has this uverbs number now.
    pub fn instance_of(&self, number: u32) -> Option<DeviceId> {
        self.numbers.get(&number).map(|uverbs| self.uverbs[uverbs.0 as usize].device)
    }

    /// The uverbs number that the device has now.
    pub fn number_of(&self, id: DeviceId) -> Option<u32> {
        let uverbs = self.devices[id].uverbs?;
        let number = self.uverbs[uverbs.0 as usize].number;
        (self.numbers.get(&number) == Some(&uverbs)).then_some(number)
    }

    /// The uverbs devices in `class/infiniband_verbs`: number, inode number of the directory, and name of the RDMA
    /// device. Ordered by number.
    pub fn listed(&self) -> Vec<(u32, u64, Vec<u8>)> {
        let numbers = self.numbers.iter().filter_map(|(number, uverbs)| {
            let uverbs = &self.uverbs[uverbs.0 as usize];
            self.tree.child(self.infiniband_verbs?, &node_name(*number))?;
            let name = self.devices[uverbs.device].name.to_vec();
            Some((*number, self.tree.ino(uverbs.dir), name))
        });
        numbers.collect()
    }

    /// The netlink index that the device has, or had.
    pub fn index_of(&self, id: DeviceId) -> u32 {
        self.devices[id].index
    }

    /// The device's node GUID.
    pub fn guid_of(&self, id: DeviceId) -> u64 {
        self.devices[id].guid
    }

    /// The device's name now, or its last.
    pub fn name_of(&self, id: DeviceId) -> Vec<u8> {
        self.devices[id].name.to_vec()
    }

    /// Whether the device is registered and its removal has not begun.
    pub fn is_alive(&self, id: DeviceId) -> bool {
        self.devices[id].listed
    }

    /// Whether the device can be opened: its registration is complete, its removal has not begun, it belongs to the
    /// caller's namespace, and its node leads to it.
    pub fn is_ready(&self, id: DeviceId) -> bool {
        let device = &self.devices[id];
        let number = self.number_of(id);
        device.listed
            && device.visible
            && device.is_reported()
            && number.and_then(|number| self.node_ino(number)).is_some()
    }

    /// Whether the device's removal is over.
    pub fn is_gone(&self, id: DeviceId) -> bool {
        self.devices[id].gone
    }

    /// The CTXNs of the contexts on a device, of all processes.
    pub fn contexts_of(&self, id: DeviceId) -> Vec<u32> {
        self.devices[id].contexts.keys().copied().collect()
    }

    /// The CTXNs of the contexts that other processes have on a device.
    pub fn foreign_contexts_of(&self, id: DeviceId) -> Vec<u32> {
        let theirs = self.cmd_fds().filter_map(|(_, file)| match file.state {
            FileState::Cmd { uverbs, context, .. }
                if file.foreign && self.uverbs[uverbs.0 as usize].device == id =>
            {
                context.map(|context| context.ctxn)
            }
            _ => None,
        });
        theirs.collect()
    }

    /// The CTXNs of the contexts that a thread allocated on a device.
    pub fn contexts_by(&self, id: DeviceId, thread: u32) -> Vec<u32> {
        let contexts = self.devices[id].contexts.iter();
        contexts.filter(|(_, by)| **by == Some(thread)).map(|(ctxn, _)| *ctxn).collect()
    }

    /// The PDNs of the PDs on a device, of all processes and of the kernel itself.
    pub fn pds_of(&self, id: DeviceId) -> Vec<u32> {
        self.devices[id].pds.keys().copied().collect()
    }

    /// The PDNs of the PDs that a thread allocated on a device.
    pub fn pds_by(&self, id: DeviceId, thread: u32) -> Vec<u32> {
        let pds = self.devices[id].pds.iter();
        pds.filter(|(_, pd)| pd.thread == Some(thread)).map(|(pdn, _)| *pdn).collect()
    }

    /// The PDNs of the PDs that others have on a device, whichever thread allocated them.
    pub fn foreign_pds_of(&self, id: DeviceId) -> Vec<u32> {
        let theirs = self.cmd_fds().filter_map(|(_, file)| match &file.state {
            FileState::Cmd { uverbs, pds, .. }
                if file.foreign && self.uverbs[uverbs.0 as usize].device == id =>
            {
                Some(pds.values().flatten().copied())
            }
            _ => None,
        });
        theirs.flatten().collect()
    }

    /// The handles of the PDs of a cmd fd.
    pub fn pd_handles_of(&self, fd: BorrowedFd<'_>) -> Vec<u32> {
        match self.file_of(fd).and_then(|file| self.file(file).ok()).map(|file| &file.state) {
            Some(FileState::Cmd { pds, .. }) => pds.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// How many times others have opened a device so far.
    pub fn opened_by_others(&self) -> u64 {
        self.next_foreign
    }

    /// The driver data of the last GET_CONTEXT on the device.
    pub fn driver_data_of(&self, id: DeviceId) -> Vec<u8> {
        self.devices[id].driver_data.clone()
    }

    /// How many times a driver's response was longer than the memory behind the output. On a real kernel, each time
    /// overwrites memory of the program.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// The number of open descriptors of this process.
    pub fn open_handles(&self) -> usize {
        self.files.values().filter(|file| !file.foreign).count()
    }

    /// Everything that was opened in /dev without `O_PATH`, in order.
    pub fn node_opens(&self) -> Vec<NodeOpened> {
        self.opened.clone()
    }

    /// The number of calls.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The calls since [`World::record_calls`], as text.
    pub fn call_log(&self) -> Vec<String> {
        self.log.clone().unwrap_or_default()
    }
}
