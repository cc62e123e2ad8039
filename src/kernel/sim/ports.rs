//! The ports of RDMA devices: their state, their rate, and the network devices that they belong to.

use super::super::nldev::{Command, attr};
use super::super::{Errno, Sys};
use super::devices::errno;
use super::spec::DeviceId;
use super::tree::{Kind, NodeId, Tree, Value};
use super::world::World;

/// One port. All are on Ethernet, at 10 Gb/s.
#[derive(Debug, Clone, Hash)]
pub(super) struct Port {
    /// `enum ib_port_state`.
    pub(super) state: u8,
    /// `enum ib_port_phys_state`.
    pub(super) physical_state: u8,
    /// Index and name of the network device, if it has one in the caller's namespace.
    netdev: Option<(u32, Vec<u8>)>,
}

impl Default for Port {
    fn default() -> Self {
        Self { state: 4, physical_state: 5, netdev: None }
    }
}

/// The directories of the ports, which are counted from 1.
pub(super) fn add_directories(tree: &mut Tree, dir: NodeId, count: u32) {
    let ports = tree.add_dir(dir, b"ports");
    for number in 1..=count {
        let port = tree.add_dir(ports, number.to_string().as_bytes());
        for (name, value) in [
            ("state", "4: ACTIVE\n"),
            ("phys_state", "5: LinkUp\n"),
            ("rate", "10 Gb/sec (1X QDR)\n"),
            ("link_layer", "Ethernet\n"),
        ] {
            tree.add_attr(port, name.as_bytes(), value.as_bytes());
        }
        let pkeys = tree.add_dir(port, b"pkeys");
        tree.add_attr(pkeys, b"0", b"0xffff\n");
    }
}

impl World {
    /// The port of that number. `EINVAL` if there is none.
    pub(super) fn port(&self, id: DeviceId, number: u32) -> Sys<&Port> {
        let at = number.checked_sub(1).ok_or(Errno::INVAL)?;
        self.devices[id].ports.get(at as usize).ok_or(Errno::INVAL)
    }

    fn port_mut(&mut self, id: DeviceId, number: u32) -> Result<&mut Port, i32> {
        let at = number.checked_sub(1).ok_or(errno::INVAL)?;
        self.devices[id].ports.get_mut(at as usize).ok_or(errno::INVAL)
    }

    /// Sets the state of a port (`enum ib_port_state`, `enum ib_port_phys_state`). Ports are counted from 1. `EINVAL`
    /// if there is no such port.
    pub fn set_port_state(
        &mut self,
        id: DeviceId,
        number: u32,
        state: u8,
        physical_state: u8,
    ) -> Result<(), i32> {
        let port = self.port_mut(id, number)?;
        (port.state, port.physical_state) = (state, physical_state);
        Ok(())
    }

    /// Sets the network device of a port by index and name, as it is in the caller's network namespace, or that it
    /// has none there. The name may be hostile. `EINVAL` if there is no such port.
    pub fn set_netdev(
        &mut self,
        id: DeviceId,
        number: u32,
        netdev: Option<(u32, &str)>,
    ) -> Result<(), i32> {
        self.port_mut(id, number)?.netdev =
            netdev.map(|(index, name)| (index, name.as_bytes().to_vec()));
        Ok(())
    }

    /// Sets an attribute of a port in the directory of the RDMA device, such as `rate`, or removes it. `ENOENT` if
    /// there is no such port.
    pub fn set_port_attribute(
        &mut self,
        id: DeviceId,
        number: u32,
        name: &str,
        value: Option<&[u8]>,
    ) -> Result<(), i32> {
        let ports = self.tree.child(self.devices[id].dir, b"ports").ok_or(errno::NOENT)?;
        let port = self.tree.child(ports, number.to_string().as_bytes()).ok_or(errno::NOENT)?;
        self.tree.unlink_child(port, name.as_bytes());
        if let Some(value) = value {
            self.tree.add(port, name.as_bytes(), Kind::Attr(Value::Bytes(value.into())));
        }
        Ok(())
    }

    /// A port as `fill_port_info` (`drivers/infiniband/core/nldev.c`) describes it. The type of the message is that of
    /// GET in the answer to a request for one port, and that of PORT_GET in a dump.
    pub(super) fn port_message(
        &self,
        command: Command,
        id: DeviceId,
        number: u32,
        (seq, flags): (u32, u16),
    ) -> Sys<Vec<u8>> {
        let port = self.port(id, number)?;
        let mut message = self
            .answer(command, id, seq, flags)
            .attr(attr::PORT_INDEX, &number.to_ne_bytes())
            .attr(attr::PORT_STATE, &[port.state])
            .attr(attr::PORT_PHYS_STATE, &[port.physical_state]);
        if let Some((index, name)) = &port.netdev {
            message = message
                .attr(attr::NDEV_INDEX, &index.to_ne_bytes())
                .attr(attr::NDEV_NAME, &[name, &b"\0"[..]].concat());
        }
        Ok(message.finish())
    }

    /// One page of a dump of a device's ports, at most that many bytes long, and the position after it.
    pub(super) fn ports_page(
        &self,
        id: DeviceId,
        position: usize,
        seq: (u32, u16),
        room: usize,
    ) -> Option<(Vec<u8>, usize)> {
        let mut page = Vec::new();
        let mut next = position;
        while let Ok(message) = self.port_message(Command::PortGet, id, next as u32 + 1, seq)
            && page.len() + message.len() <= room
        {
            page.extend(message);
            next += 1;
        }
        (next > position).then_some((page, next))
    }
}
