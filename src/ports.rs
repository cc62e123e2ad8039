//! The ports of a device as RDMA netlink reports them, without a context.

use std::ffi::{CStr, CString};

use crate::context::{LinkSpeed, LinkWidth, PhysicalState, PortRate, PortState};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::ids::Name;
use crate::index::not_in_netlink;
use crate::kernel::nldev::{DeviceInfo, PortInfo};
use crate::kernel::{Bad, Errno};
use crate::netlink::Socket;
use crate::pin;
use crate::sysfs;

/// A port as it is seen without a context ([`Device::ports`]).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PortFacts {
    /// Its number, counted from 1.
    pub port: u32,
    /// Logical state.
    pub state: PortState,
    /// Physical state.
    pub physical_state: PhysicalState,
    /// The rate of all lanes, from the attribute `rate` in sysfs. The kernel prints a speed that it has no name for as
    /// SDR. `None` where the driver does not report the rate, and for a device whose name is not a name of a directory.
    pub rate: Option<PortRate>,
    /// Its network device.
    pub netdev: Option<Netdev>,
}

/// The network device of a port ([`Device::netdevs`]).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Netdev {
    /// The port, counted from 1.
    pub port: u32,
    /// Its index (`if_nametoindex(3)`), in the network namespace of this process.
    pub index: u32,
    /// Its name at that moment. Names change and are reused, so it is for display; look the device up by its index.
    pub name: Name,
}

/// The most ports that are read of one device. A device of mlx5 in switchdev mode has a port for each representor.
const PORTS_MAX: u32 = 256;

impl Device {
    /// Reads state, rate and network device of the ports.
    ///
    /// State and network device come from RDMA netlink (`RDMA_NLDEV_CMD_PORT_GET`), the rate from sysfs. For both the
    /// kernel queries the port, which may wait for the device's firmware. Of a device with more than 256 ports the
    /// first 256 are read; [`DeviceFacts::port_count`](crate::DeviceFacts::port_count) has their number.
    ///
    /// # Errors
    /// As [`index`](Self::index). `Os` if the driver does not answer for a port. `Unstable` if the device was renamed
    /// meanwhile. A device that gets another name and its own again within the read of one port is not noticed: the rate
    /// may then be missing, or that of the device which had the name. Where names are unique only within a network namespace
    /// (Linux 7.3), `/sys` has to be mounted in that of the netlink socket, or the rate may be of another device.
    #[doc(alias = "ibv_query_port")]
    pub fn ports(&self) -> Result<Vec<PortFacts>> {
        self.read_ports(|reader| reader.read().map(|(_, ports)| ports))
    }

    /// Reads the network devices of the ports, over RDMA netlink (`RDMA_NLDEV_CMD_PORT_GET`). The kernel reports those
    /// in the network namespace of this process alone, and none for IPoIB. At most 256 ports are read.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let device = uverbs::Registry::new(uverbs::Host::open()?).devices()?.by_name("mlx5_0")?;
    /// for netdev in device.netdevs()? {
    ///     println!("port {}: {} (index {})", netdev.port, netdev.name, netdev.index);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`index`](Self::index). `Os` if the driver does not answer for a port.
    pub fn netdevs(&self) -> Result<Vec<Netdev>> {
        self.read_ports(|reader| {
            let count = reader.device_info()?.ports.min(PORTS_MAX);
            let read = |port| Ok(netdev(port, reader.port_info(port)?));
            (1..=count).filter_map(|port| read(port).transpose()).collect()
        })
    }

    /// Reads by the device's index, while it is held and alive.
    fn read_ports<T>(&self, read: impl FnOnce(PortReader<'_>) -> Result<T>) -> Result<T> {
        let record = self.record();
        let look = || {
            let held = pin::hold(record)?;
            let socket = record.host.netlink()?;
            let index = self.join(&held, &socket)?.index;
            let (host, path) = (&record.host, &*record.path);
            let found = read(PortReader { host, path, socket: &socket, index })?;
            // The index is this device's as long as the directory lives.
            held.read_device_number()?;
            Ok(found)
        };
        look().map_err(|error: Error| record.explain(error))
    }
}

/// Reads the ports of the device with that index. What it reads counts if the index and the directory are the device's
/// and it was alive throughout.
#[derive(Clone, Copy)]
pub(crate) struct PortReader<'a> {
    pub(crate) host: &'a Host,
    /// The path of the uverbs device's directory, relative to /sys.
    pub(crate) path: &'a CStr,
    pub(crate) socket: &'a Socket,
    pub(crate) index: u32,
}

impl PortReader<'_> {
    /// Its name and its ports.
    pub(crate) fn read(self) -> Result<(Name, Vec<PortFacts>)> {
        let info = self.device_info()?;
        // Each answer has the name at that moment. The one that a list has seen may be another device's by now.
        let mut name = Name::new(&info.name);
        let ports = (1..=info.ports.min(PORTS_MAX)).map(|port| self.port(port, &mut name));
        let ports = ports.collect::<Result<_>>()?;
        Ok((name, ports))
    }

    fn device_info(self) -> Result<DeviceInfo> {
        self.socket.device(self.index)?.ok_or_else(|| not_in_netlink(self.index))
    }

    fn port_info(self, port: u32) -> Result<PortInfo> {
        self.socket.port(self.index, port)?.ok_or_else(|| not_in_netlink(self.index))
    }

    /// Reads one port. Its rate is read under a name that netlink reports before and after.
    fn port(self, port: u32, name: &mut Name) -> Result<PortFacts> {
        for _ in 0..LOOKS {
            let rate = self.rate(name, port);
            let info = self.port_info(port)?;
            if *info.device_name != *name.as_bytes() {
                *name = Name::new(&info.device_name);
                continue;
            }
            return Ok(PortFacts {
                port,
                state: PortState::from_raw(info.state),
                physical_state: PhysicalState::from_raw(info.physical_state),
                rate: rate?,
                netdev: netdev(port, info),
            });
        }
        Err(Error::new(ErrorKind::Unstable, format!("renamed {LOOKS} times meanwhile")))
    }

    fn rate(self, name: &Name, port: u32) -> Result<Option<PortRate>> {
        let path = match sysfs::rdma_path(self.path, name) {
            Ok(path) => [path.to_bytes(), format!("/ports/{port}/rate").as_bytes()].concat(),
            // A name that is not that of a directory.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = CString::new(path).unwrap_or_default();
        match sysfs::read_optional(self.host.kernel(), self.host.sys(), &path, parse_rate) {
            // The driver reports no width that the kernel knows (`rate_show`).
            Err(error) if error.errno() == Some(Errno::INVAL) => Ok(None),
            rate => rate,
        }
    }
}

/// How many times a port is read until the device keeps its name.
const LOOKS: usize = 3;

fn netdev(port: u32, info: PortInfo) -> Option<Netdev> {
    let (index, name) = info.netdev?;
    Some(Netdev { port, index, name: Name::new(&name) })
}

/// `100 Gb/sec (4X EDR)`, as [`PortRate`] prints it.
fn parse_rate(text: &[u8]) -> std::result::Result<PortRate, Bad> {
    let parse = || {
        let text = str::from_utf8(text).ok()?;
        let (words, lanes) = text.strip_suffix(')')?.split_once(" (")?;
        let (width, speed) = lanes.split_once(' ')?;
        let width = LinkWidth::NAMED.iter().find(|known| known.name() == Some(width))?;
        let speed = LinkSpeed::NAMED.iter().find(|known| known.name() == Some(speed))?;
        let rate = PortRate::new(*width, *speed)?;
        let (whole, rest) = (rate.megabits_per_second() / 1000, rate.megabits_per_second() % 1000);
        let gigabits = match rest {
            0 => whole.to_string(),
            _ => format!("{whole}.{}", rest / 100),
        };
        (words == format!("{gigabits} Gb/sec")).then_some(rate)
    };
    parse().ok_or(Bad("not a rate"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_of_the_kernel_come_back() {
        for width in LinkWidth::NAMED {
            for speed in LinkSpeed::NAMED {
                let rate = PortRate::new(*width, *speed).expect("known");
                assert_eq!(parse_rate(rate.to_string().as_bytes()), Ok(rate));
            }
        }
        for bad in [
            "",
            "100 Gb/sec (4X EDR) ",
            "100 Gb/sec 4X EDR",
            "200 Gb/sec (4X EDR)",
            "100 Gb/sec (4X XYZ)",
            "100 Gb/sec (3X EDR)",
        ] {
            assert!(parse_rate(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_rate(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_rate(&bytes);
        }
    }
}
