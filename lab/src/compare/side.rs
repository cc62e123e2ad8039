//! The two kernels that a script is played on, and the actions on each.

use anyhow::{Context as _, Result};
use uverbs::Host;
use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, Verdict};

use super::script::{Node, Nodes, Setup};
use crate::guest;

/// The result of an administrator's request: the errno if it was refused. The errno differs where the requests
/// differ, so only whether it was refused is compared.
pub(super) type Outcome = std::result::Result<(), i32>;

/// So many contexts that their list takes more than one message.
pub(super) const CROWD: usize = 1700;

pub(super) type Act = Box<dyn FnOnce() + Send>;

/// A kernel whose devices come and go. A device is identified by its position in the order of addition.
pub(super) trait Side {
    fn host(&self) -> Result<Host>;
    /// Registers a device. Refused if its name is taken.
    fn add(&mut self, name: &str, guid: u64, disassociates: bool) -> Result<Outcome>;
    /// Removes a device. If the removal waits, it is left waiting. Does nothing if the device is already gone.
    fn remove(&mut self, device: usize) -> Result<()>;
    fn rename(&mut self, device: usize, name: &str) -> Result<Outcome>;
    fn swap_names(&mut self, device: usize, other: usize) -> Result<Outcome>;
    /// Moves a device to another network namespace and, unless `for_good`, back.
    fn change_namespace(&mut self, device: usize, for_good: bool) -> Result<Outcome>;
    fn evict(&mut self) -> Result<()>;
    fn listxattr(&mut self) -> Result<()>;
    /// Puts a node at `/dev/infiniband/uverbsN`.
    fn set_node(&mut self, number: u32, node: Node) -> Result<()>;
    fn reload_uverbs(&mut self) -> Result<Outcome>;
    /// Also removes all devices.
    fn reload_core(&mut self) -> Result<()>;
    fn devices(&self) -> usize;
    fn index(&self, device: usize) -> u32;
    /// How many contexts a device has; `None` if its removal is complete.
    fn contexts(&self, device: usize) -> Result<Option<usize>>;
    /// How many contexts are a crowd on this kernel.
    fn crowd(&self) -> usize;
    /// Runs `act` on a new thread, and `event` before that thread's `at`-th `recvfrom`; the first is 1.
    fn interrupt(&mut self, at: usize, act: Act, event: Act) -> Result<()>;
    /// The last action of a thread, after which the kernel no longer names it.
    fn at_exit(&self) -> Act;
    /// Waits until everything is complete that continues by itself once nobody holds it.
    fn settle(&mut self) -> Result<()>;
    /// Removes everything.
    fn clean(&mut self) -> Result<()>;
}

/// Waits until a removal that waited for descriptors is complete.
pub(super) fn settle_removal(side: &dyn Side, device: usize) -> Result<()> {
    guest::until("a removal to end", || side.contexts(device).is_ok_and(|left| left.is_none()))
}

/// The simulated kernel.
pub(super) struct Simulated {
    machine: Machine,
    devices: Vec<DeviceId>,
}

impl Simulated {
    /// A simulated kernel that behaves as the running kernel does.
    pub(super) fn new(setup: &Setup) -> Result<Self> {
        let version = guest::version()?;
        let machine = Machine::new();
        machine.set_devtmpfs(setup.nodes != Nodes::Tmpfs);
        machine.set_listxattr_moves(version < (7, 3));
        machine.set_no_res_ctx(version < (5, 13));
        Ok(Self { machine, devices: Vec::new() })
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A simulated kernel that refuses netlink requests by index in a case where the real one answers them: while a
    /// removal waits.
    pub(super) fn wrong(setup: &Setup) -> Result<Self> {
        let simulated = Self::new(setup)?;
        simulated.machine.set_hides_unlisted(true);
        Ok(simulated)
    }
}

impl Side for Simulated {
    fn host(&self) -> Result<Host> {
        Ok(Host::simulated(&self.machine)?)
    }

    fn add(&mut self, name: &str, guid: u64, disassociates: bool) -> Result<Outcome> {
        let spec = DeviceSpec::new(name).guid(guid).disassociates(disassociates);
        let added = self.machine.add(spec);
        self.devices.extend(added.iter());
        Ok(added.map(drop))
    }

    fn remove(&mut self, device: usize) -> Result<()> {
        self.machine.remove(self.devices[device]);
        Ok(())
    }

    fn rename(&mut self, device: usize, name: &str) -> Result<Outcome> {
        Ok(self.machine.rename(self.devices[device], name.as_bytes()))
    }

    fn swap_names(&mut self, device: usize, other: usize) -> Result<Outcome> {
        Ok(self.machine.swap_names(self.devices[device], self.devices[other]))
    }

    fn change_namespace(&mut self, device: usize, for_good: bool) -> Result<Outcome> {
        let device = self.devices[device];
        let moved = self.machine.move_netns(device, false);
        if moved.is_err() || for_good {
            return Ok(moved);
        }
        Ok(self.machine.move_netns(device, true))
    }

    fn evict(&mut self) -> Result<()> {
        self.machine.evict();
        Ok(())
    }

    fn listxattr(&mut self) -> Result<()> {
        self.machine.listxattr(0);
        Ok(())
    }

    fn set_node(&mut self, number: u32, node: Node) -> Result<()> {
        let kind = match node {
            Node::Symlink => NodeKind::Symlink("uverbs1".into()),
            Node::Fifo => NodeKind::Fifo,
            Node::Regular => NodeKind::Regular,
            Node::Directory => NodeKind::Directory,
            Node::AnotherDevice => NodeKind::Device(1, 3),
            Node::OtherUverbs => NodeKind::Device(231, 193),
            Node::FirstUverbs => NodeKind::Device(231, 192),
            Node::Static => NodeKind::Static,
            Node::Missing => NodeKind::Missing,
        };
        self.machine.set_node(number, kind);
        Ok(())
    }

    fn reload_uverbs(&mut self) -> Result<Outcome> {
        Ok(self.machine.reload_ib_uverbs())
    }

    fn reload_core(&mut self) -> Result<()> {
        let reloaded = self.machine.reload_ib_core();
        reloaded.ok().context("ib_core is in use on the simulated kernel")
    }

    fn devices(&self) -> usize {
        self.devices.len()
    }

    fn index(&self, device: usize) -> u32 {
        self.machine.index_of(self.devices[device])
    }

    fn contexts(&self, device: usize) -> Result<Option<usize>> {
        let device = self.devices[device];
        let gone = self.machine.is_gone(device);
        Ok((!gone).then(|| self.machine.contexts_of(device).len()))
    }

    fn crowd(&self) -> usize {
        CROWD
    }

    fn interrupt(&mut self, at: usize, act: Act, event: Act) -> Result<()> {
        let acting = std::thread::spawn({
            let machine = self.machine.clone();
            move || {
                let (mut turn, mut event) = (0, Some(event));
                machine.on_call(move |_, call| {
                    turn += usize::from(call.kind() == CallKind::Recv);
                    if turn == at
                        && let Some(event) = event.take()
                    {
                        event();
                    }
                    Verdict::Continue
                });
                act();
                machine.clear_hook();
            }
        });
        acting.join().expect("no panic");
        Ok(())
    }

    fn at_exit(&self) -> Act {
        let machine = self.machine.clone();
        // Simulated threads do not end by themselves.
        Box::new(move || machine.forget_thread(machine.this_thread()))
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn clean(&mut self) -> Result<()> {
        Ok(())
    }
}
