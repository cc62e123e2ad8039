//! A device: the counted record of one instance, with the services that it needs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};

use crate::error::{Error, ErrorKind, Result};
use crate::identity::Instance;
use crate::ids::{DeviceNumber, DriverId, Guid, Name, NodeType};
use crate::index::{Indices, MOVE_IT, Neighbour};
use crate::netlink::Socket;
use crate::pin::{self, Pin};
use crate::provider::{Allocation, Provided, ProviderInfo, Providers, Slot};
use crate::record::{Joined, Record};

/// A device that was listed: a handle on one instance, which stays what it is when the device is
/// gone. A clone is the same device.
///
/// It holds no descriptor. Two are equal when they are the same [`Instance`], whatever their names.
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
    /// The devices of the last list, as long as the registry has them.
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

    /// Takes note of what is listed now.
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
            device_number: device.0.device_number,
            index: device.0.joined.get().map(|joined| joined.index),
        };
        listed.iter().flat_map(|listed| listed.iter()).map(neighbour).collect()
    }
}

/// What the layers above need of a device.
impl Device {
    pub(crate) fn new(record: Record, services: Arc<Services>) -> Self {
        Self(Arc::new(Inner { record, provided: Slot::default(), services }))
    }

    pub(crate) fn record(&self) -> &Record {
        &self.0.record
    }

    /// Finds its netlink index, while it is pinned.
    pub(crate) fn join(&self, pin: &Pin, socket: &Socket) -> Result<Joined> {
        let Inner { record, services, .. } = &*self.0;
        services.indices.join(record, pin, socket, || services.neighbours())
    }

    /// Whether its netlink index is this one.
    pub(crate) fn has_index(&self, socket: &Socket, index: u32) -> Result<bool> {
        let Inner { record, services, .. } = &*self.0;
        pin::pin_for_reading(record)
            .and_then(|pin| services.indices.join_at(record, &pin, socket, index))
            .map_err(|error| record.explain(error))
    }

    /// Its provider, found and attached first, unless it is known. `driver` is the one that netlink reports.
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
    /// The name at the last listing or open, such as `mlx5_0`. Names change and are reused; they are
    /// for display. It may be another one than in the list that the handle is from:
    /// [`Devices::by_name`](crate::Devices::by_name) goes by the names of its list.
    #[doc(alias = "ibv_get_device_name")]
    pub fn name(&self) -> Name {
        self.0.state().name.clone()
    }

    /// The N of `uverbsN`. Reused at once when the device is gone.
    pub fn uverbs_number(&self) -> u32 {
        self.0.number
    }

    /// The device number of its node.
    pub fn device_number(&self) -> DeviceNumber {
        self.0.device_number
    }

    /// What tells this device from every other one.
    pub fn instance(&self) -> Instance {
        self.0.instance()
    }

    /// Whether it is already known that the device is gone. Asks nobody.
    pub fn is_known_gone(&self) -> bool {
        self.0.known_gone().is_some()
    }

    /// The device's index in RDMA netlink. It is learnt when it is first asked for and holds as long
    /// as the device lives.
    ///
    /// To learn it takes one or a few requests for the device numbers of single indices. A request is slow
    /// (54 ms on an emulated machine, where others take 61 us) if it meets a device whose removal waits until
    /// another process closes it: the kernel then tries to load a module. Such an index is asked for last once
    /// it is known.
    ///
    /// # Errors
    /// `Removed` or `Replaced` when the device is gone. `OtherNamespace` when netlink does not list it though it is
    /// alive. `Unproven` when devices come and go under each of several dumps. `NetlinkUnavailable`.
    #[doc(alias = "ibv_get_device_index")]
    pub fn index(&self) -> Result<u32> {
        self.joined().map(|joined| joined.index)
    }

    /// The driver (`enum rdma_driver_id`, `rdma/ib_user_ioctl_verbs.h`); none for those that the
    /// kernel does not tell (mthca, hns).
    ///
    /// # Errors
    /// As [`index`](Self::index).
    pub fn driver_id(&self) -> Result<Option<DriverId>> {
        self.joined().map(|joined| joined.driver_id.map(DriverId::from_raw))
    }

    /// What the kernel says of the device over netlink.
    ///
    /// # Errors
    /// As [`index`](Self::index).
    #[doc(alias = "ibv_get_device_guid")]
    pub fn query(&self) -> Result<DeviceFacts> {
        let joined = self.joined()?;
        let facts = || {
            let pinned = pin::pin_for_reading(self.record())?;
            let info = self.0.host.netlink()?.device(joined.index)?;
            // The index is this device's for as long as the directory lives: still alive after
            // the answer, it was this device's answer.
            pinned.read_device_number()?;
            info.ok_or_else(|| {
                let text = format!("RDMA netlink has no device of index {}", joined.index);
                Error::new(ErrorKind::OtherNamespace, text).with_hint(MOVE_IT)
            })
        };
        let info = facts().map_err(|error| self.0.explain(error))?;
        Ok(DeviceFacts {
            index: joined.index,
            driver_id: joined.driver_id.map(DriverId::from_raw),
            node_guid: Guid(info.node_guid),
            sys_image_guid: Guid(info.sys_image_guid),
            node_type: NodeType::from_raw(info.node_type),
            firmware_version: Name::new(&info.fw_version),
        })
    }

    /// The device's provider, and the version of its driver's ABI. One that the program registered is attached
    /// by this, unless it is already.
    ///
    /// # Errors
    /// As [`index`](Self::index), and `Busy` while the provider is being attached.
    pub fn provider(&self) -> Result<ProviderInfo> {
        self.set_up().map(|provided| provided.info().clone())
    }

    /// The device's provider, found and attached when it is needed first.
    pub(crate) fn set_up(&self) -> Result<Arc<Provided>> {
        if let Some(provided) = self.0.provided.known() {
            return Ok(provided);
        }
        let driver = self.driver_id()?;
        pin::pin_for_reading(self.record())
            .and_then(|pinned| self.find_provider(&pinned, driver))
            .map_err(|error| self.0.explain(error))
    }

    fn joined(&self) -> Result<Joined> {
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

/// What the kernel says of a device over RDMA netlink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DeviceFacts {
    /// Index of the device in netlink, never reused until ib_core is loaded anew.
    pub index: u32,
    /// The driver; none for those that the kernel does not tell.
    pub driver_id: Option<DriverId>,
    /// GUID of the node.
    #[doc(alias = "ibv_get_device_guid")]
    pub node_guid: Guid,
    /// GUID of the system the node is part of.
    pub sys_image_guid: Guid,
    /// Kind of node.
    pub node_type: NodeType,
    /// Version of the firmware, as the driver writes it; empty where it has none.
    pub firmware_version: Name,
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
