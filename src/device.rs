//! A device: the reference-counted record of one instance, with the services that it needs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};

use crate::error::Result;
use crate::host::Host;
use crate::identity::Instance;
use crate::ids::{DeviceNumber, DriverId, Guid, Name, NodeType};
use crate::index::{Indices, Neighbour, not_in_netlink};
use crate::netlink::Socket;
use crate::pin::{self, Held, Pin};
use crate::provider::{Allocation, Provided, ProviderInfo, Providers, Slot};
use crate::record::{Joined, Record};

/// A listed device: a handle on one instance, which stays valid after the device is gone. A clone is the same
/// device.
///
/// It holds no descriptor. Two handles are equal if they refer to the same [`Instance`], whatever their names.
///
/// ```no_run
/// use uverbs::{ErrorKind, Host, Registry};
///
/// # fn main() -> uverbs::Result<()> {
/// let device = Registry::new(Host::open()?).devices()?.by_name("mlx5_0")?;
/// println!("{device}: index {}, node GUID {}", device.index()?, device.query()?.node_guid);
/// match device.open() {
///     Ok(context) => println!("{} completion vectors", context.completion_vectors()),
///     Err(error) if error.kind() == ErrorKind::Replaced => println!("unplugged since: {error}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "ibv_device")]
pub struct Device(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    record: Record,
    provided: Slot,
    services: Arc<Services>,
}

/// What the devices of a registry share.
#[derive(Default)]
pub(crate) struct Services {
    pub(crate) indices: Indices,
    pub(crate) providers: Providers,
    /// The devices of the last list, as long as the registry keeps them.
    listed: Mutex<Option<Weak<[Device]>>>,
}

impl Deref for Inner {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl Services {
    pub(crate) fn new(providers: Providers) -> Self {
        Self { providers, ..Self::default() }
    }

    /// Notes the devices that are listed now.
    pub(crate) fn set_listed(&self, devices: &Arc<[Device]>) {
        *self.listed() = Some(Arc::downgrade(devices));
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Option<Weak<[Device]>>> {
        self.listed.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn neighbours(&self) -> Vec<Neighbour> {
        let listed = self.listed().as_ref().and_then(Weak::upgrade);
        let neighbour = |device: &Device| Neighbour {
            ino: device.0.ino,
            number: device.0.number,
            index: device.0.joined.get().map(|joined| joined.index),
        };
        listed.iter().flat_map(|listed| listed.iter()).map(neighbour).collect()
    }
}

/// What the layers above need from a device.
impl Device {
    pub(crate) fn new(record: Record, services: Arc<Services>) -> Self {
        Self(Arc::new(Inner { record, provided: Slot::default(), services }))
    }

    pub(crate) fn record(&self) -> &Record {
        &self.0.record
    }

    /// Finds its netlink index. The device is pinned meanwhile.
    pub(crate) fn join(&self, pin: &Held, socket: &Socket) -> Result<Joined> {
        let Inner { record, services, .. } = &*self.0;
        services.indices.join(record, pin, socket, || services.neighbours())
    }

    /// Pins it for reading.
    pub(crate) fn pin(&self) -> Result<Pin> {
        pin::pin_for_reading(self.record()).map_err(|error| self.0.explain(error))
    }

    /// Whether `index` is its netlink index. The device is pinned meanwhile.
    pub(crate) fn has_index(&self, pin: &Pin, socket: &Socket, index: u32) -> Result<bool> {
        let Inner { record, services, .. } = &*self.0;
        services.indices.join_at(record, pin, socket, index).map_err(|error| record.explain(error))
    }

    /// Returns its provider, and finds and attaches it first if necessary. `driver` is the one that netlink
    /// reports.
    pub(crate) fn find_provider(
        &self,
        pin: &Pin,
        driver: Option<DriverId>,
    ) -> Result<Arc<Provided>> {
        self.0.provided.find(&self.0.services.providers, self.record(), pin, driver)
    }

    /// The same for a single open, by a driver that only the descriptor reports.
    pub(crate) fn find_provider_for_one_open(
        &self,
        pin: &Pin,
        driver: DriverId,
    ) -> Result<Arc<Provided>> {
        self.0.provided.find_for_one_open(&self.0.services.providers, self.record(), pin, driver)
    }

    /// The driver's part of GET_CONTEXT.
    pub(crate) fn allocation(
        &self,
        provided: &Provided,
        pin: &Pin,
        driver: DriverId,
    ) -> Result<Allocation> {
        provided.allocation(&self.0.provided, self.record(), pin, driver)
    }
}

impl Device {
    /// The name at the last listing or open, such as `mlx5_0`. Names change and are reused, so they are for
    /// display. The name may differ from the one in the list that the handle is from;
    /// [`Devices::by_name`](crate::Devices::by_name) uses the names of its list.
    #[doc(alias = "ibv_get_device_name")]
    pub fn name(&self) -> Name {
        self.0.state().name.clone()
    }

    /// The host on which it was listed.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// The N of `uverbsN`. The kernel reuses it as soon as the device is gone.
    pub fn uverbs_number(&self) -> u32 {
        self.0.number
    }

    /// The device number of its node.
    pub fn device_number(&self) -> DeviceNumber {
        self.0.device_number
    }

    /// The device's identity, which no other device shares.
    pub fn instance(&self) -> Instance {
        self.0.instance()
    }

    /// Whether the device is already known to be gone. Makes no system call.
    pub fn is_known_gone(&self) -> bool {
        self.0.known_gone().is_some()
    }

    /// The device's index in RDMA netlink. It is looked up on the first use, and stays the same as long as the
    /// device lives.
    ///
    /// The lookup takes one or a few requests for the device numbers of single indices. A request is slow (54 ms on
    /// an emulated machine, where others take 61 us) if it meets a device whose removal waits until another process
    /// closes it: the kernel then tries to load a module. Once such an index is known, it is queried last.
    ///
    /// # Errors
    /// `Removed` or `Replaced` when the device is gone. `OtherNamespace` when netlink does not list it though it is
    /// alive. `Unproven` when devices come and go under each of several dumps. `NetlinkUnavailable`.
    #[doc(alias = "ibv_get_device_index")]
    pub fn index(&self) -> Result<u32> {
        self.joined().map(|joined| joined.index)
    }

    /// The driver (`enum rdma_driver_id`, `rdma/ib_user_ioctl_verbs.h`); `None` for the drivers that the kernel does
    /// not report (mthca, hns).
    ///
    /// # Errors
    /// As [`index`](Self::index).
    pub fn driver_id(&self) -> Result<Option<DriverId>> {
        self.joined().map(|joined| joined.driver_id.map(DriverId::from_raw))
    }

    /// Queries the kernel's facts about the device over netlink.
    ///
    /// # Errors
    /// As [`index`](Self::index).
    #[doc(alias = "ibv_get_device_guid")]
    pub fn query(&self) -> Result<DeviceFacts> {
        self.query_through(|| self.0.host.netlink())
    }

    /// The same through a socket that is open already.
    pub(crate) fn query_through(
        &self,
        socket: impl FnOnce() -> Result<Arc<Socket>>,
    ) -> Result<DeviceFacts> {
        let facts = || {
            let pinned = pin::hold(self.record())?;
            let socket = socket()?;
            let joined = self.join(&pinned, &socket)?;
            let info = socket.device(joined.index)?;
            // The index is this device's as long as the directory lives. If it is still alive after the answer, the
            // answer was about this device.
            pinned.read_device_number()?;
            Ok((joined, info.ok_or_else(|| not_in_netlink(joined.index))?))
        };
        let (joined, info) = facts().map_err(|error| self.0.explain(error))?;
        Ok(DeviceFacts {
            index: joined.index,
            driver_id: joined.driver_id.map(DriverId::from_raw),
            node_guid: Guid(info.node_guid),
            sys_image_guid: Guid(info.sys_image_guid),
            node_type: NodeType::from_raw(info.node_type),
            firmware_version: Name::new(&info.fw_version),
            port_count: info.ports,
        })
    }

    /// The device's provider, and the version of its driver's ABI. If it is a registered provider that is not
    /// attached yet, this attaches it.
    ///
    /// # Errors
    /// As [`index`](Self::index), and `Busy` while the provider is being attached.
    pub fn provider(&self) -> Result<ProviderInfo> {
        self.set_up().map(|provided| provided.info().clone())
    }

    /// The device's provider, found and attached on the first use.
    pub(crate) fn set_up(&self) -> Result<Arc<Provided>> {
        if let Some(provided) = self.0.provided.known() {
            return Ok(provided);
        }
        let driver = self.driver_id()?;
        pin::pin_for_reading(self.record())
            .and_then(|pinned| self.find_provider(&pinned, driver))
            .map_err(|error| self.0.explain(error))
    }

    pub(crate) fn joined(&self) -> Result<Joined> {
        if let Some(joined) = self.0.joined.get() {
            return Ok(*joined);
        }
        pin::pin_for_reading(self.record())
            .and_then(|pinned| {
                let socket = self.0.host.netlink()?;
                self.join(&pinned, &socket)
            })
            .map_err(|error| self.0.explain(error))
    }
}

/// The facts that the kernel reports about a device over RDMA netlink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DeviceFacts {
    /// Index of the device in netlink. The kernel does not reuse it until ib_core is reloaded.
    pub index: u32,
    /// The driver; `None` for the drivers that the kernel does not report.
    pub driver_id: Option<DriverId>,
    /// GUID of the node.
    #[doc(alias = "ibv_get_device_guid")]
    pub node_guid: Guid,
    /// GUID of the system that the node is part of.
    pub sys_image_guid: Guid,
    /// Kind of node.
    pub node_type: NodeType,
    /// Version of the firmware, in the driver's format; empty if the driver reports none.
    pub firmware_version: Name,
    /// The number of ports, which are counted from 1.
    pub port_count: u32,
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.instance() == other.instance()
    }
}

impl Eq for Device {}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.instance().hash(state);
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.label())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        f.debug_struct("Device")
            .field("name", &state.name)
            .field("uverbs", &self.0.number)
            .field("device_number", &self.0.device_number)
            .field("ino", &self.0.ino)
            .field("joined", &self.0.joined.get())
            .field("gone", &self.0.known_gone())
            .finish()
    }
}
