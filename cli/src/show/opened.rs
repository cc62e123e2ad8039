//! What takes a context: attributes, ports, GIDs.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use uverbs::{Context, DeviceAttributes, ExtendedAttributes, GidEntry};

use crate::facts::firmware_number;
use crate::netdev;
use crate::output::Failure;
use crate::select::is_gone;
use crate::table::Table;

/// What a context was queried for.
#[derive(Serialize)]
pub(super) struct Opened {
    completion_vectors: u32,
    /// Null where the driver has none, or it cannot be read.
    board_id: Option<String>,
    #[serde(serialize_with = "entries")]
    attributes: DeviceAttributes,
    #[serde(serialize_with = "extended_entries")]
    extended_attributes: Option<ExtendedAttributes>,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Port {
    port: u8,
    state: String,
    physical_state: String,
    link_layer: String,
    /// In bytes; null for one that this version does not know.
    max_mtu: Option<u32>,
    active_mtu: Option<u32>,
    active_width: String,
    /// Of one lane.
    active_speed: String,
    /// Of all lanes, in Gb/s; null where width or speed are not known.
    rate_gbps: Option<f64>,
    gid_table_len: u32,
    pkey_table_len: u16,
    max_message_size: u32,
    capabilities: u32,
    lid: u16,
    lid_mask_count: u8,
    sm_lid: u16,
    sm_service_level: u8,
    subnet_timeout: u8,
    bad_pkey_count: u32,
    qkey_violation_count: u32,
    pkeys: Option<Vec<u16>>,
    gids: Vec<Gid>,
}

#[derive(Serialize)]
struct Gid {
    index: u32,
    gid: String,
    #[serde(rename = "type")]
    kind: String,
    netdev: Option<String>,
    netdev_index: Option<u32>,
}

fn entries<S: Serializer>(of: &DeviceAttributes, serializer: S) -> Result<S::Ok, S::Error> {
    object(of.entries()).serialize(serializer)
}

fn extended_entries<S: Serializer>(
    of: &Option<ExtendedAttributes>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    of.as_ref().map(|of| object(of.entries())).serialize(serializer)
}

fn object(entries: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    // The GUIDs and the firmware stand with the device, in words.
    let is_in_words = |name: &str| name.ends_with("_guid") || name == "firmware_version";
    let entries = entries.filter(|(name, _)| !is_in_words(name));
    entries.map(|(name, value)| (name.to_owned(), value.into())).collect()
}

impl Opened {
    /// Queries the context. A part that cannot be queried is reported, and left out.
    pub(super) fn ask(context: &Context) -> uverbs::Result<Self> {
        let attributes = context.query_device()?;
        let gids = noted(context.gids())?.unwrap_or_default();
        let ports = 1..=attributes.phys_port_count;
        Ok(Self {
            completion_vectors: context.completion_vectors(),
            board_id: noted(context.board_id())?.flatten().map(|id| id.to_string()),
            extended_attributes: noted(context.query_device_extended())?,
            ports: ports.map(|port| Port::ask(context, port, &gids)).collect::<Result<_, _>>()?,
            attributes,
        })
    }

    /// The firmware's version, for a driver that has no words for it.
    pub(super) fn firmware(&self) -> Option<String> {
        firmware_number(&self.attributes)
    }

    /// Adds who made the device, as `ibv_devinfo(1)` words it.
    pub(super) fn identify(&self, table: &mut Table) {
        let attributes = &self.attributes;
        for (what, value) in [
            ("vendor id", format!("{:#06x}", attributes.vendor_id)),
            ("vendor part id", attributes.vendor_part_id.to_string()),
            ("hardware version", format!("{:#x}", attributes.hardware_version)),
        ] {
            table.row([what.into(), value.into()]);
        }
        if let Some(id) = &self.board_id {
            table.row(["board id".into(), id.clone().into()]);
        }
    }

    /// The ports, and then the limits.
    pub(super) fn render(&self) -> String {
        let mut text: String = self.ports.iter().map(Port::render).collect();
        text.push_str("\nlimits\n");
        let mut limits = Table::plain(2);
        for (name, value) in self.attributes.entries().filter(|(name, _)| name.starts_with("max_"))
        {
            limits.row([name.into(), value.into()]);
        }
        limits.row(["completion_vectors".into(), self.completion_vectors.into()]);
        text.push_str(&limits.render());
        if let Some(extended) = &self.extended_attributes {
            text.push_str("\nextended (zeros are left out)\n");
            let mut table = Table::plain(2);
            for (name, value) in extended.entries().filter(|(_, value)| *value != 0) {
                let is_bits = ["caps", "flags", "flags_ex", "mask", "qpts"]
                    .into_iter()
                    .any(|last| name.ends_with(last));
                let value = if is_bits { format!("{value:#x}") } else { value.to_string() };
                table.row([name.into(), value.into()]);
            }
            text.push_str(&table.render());
        }
        text
    }
}

impl Port {
    fn ask(context: &Context, number: u8, gids: &[GidEntry]) -> uverbs::Result<Self> {
        let port = context.query_port(number)?;
        let of_port = gids.iter().filter(|entry| entry.port == u32::from(number));
        Ok(Self {
            port: number,
            state: port.state.to_string(),
            physical_state: port.physical_state.to_string(),
            link_layer: port.link_layer.to_string(),
            max_mtu: port.max_mtu.bytes(),
            active_mtu: port.active_mtu.bytes(),
            active_width: port.active_width.to_string(),
            active_speed: port.active_speed.to_string(),
            rate_gbps: port.rate().map(|rate| f64::from(rate.megabits_per_second()) / 1000.0),
            gid_table_len: port.gid_table_len,
            pkey_table_len: port.pkey_table_len,
            max_message_size: port.max_message_size,
            capabilities: port.capabilities,
            lid: port.lid,
            lid_mask_count: port.lid_mask_count,
            sm_lid: port.sm_lid,
            sm_service_level: port.sm_service_level,
            subnet_timeout: port.subnet_timeout,
            bad_pkey_count: port.bad_pkey_count,
            qkey_violation_count: port.qkey_violation_count,
            pkeys: noted(context.pkeys(number))?,
            gids: of_port.map(Gid::new).collect(),
        })
    }

    fn render(&self) -> String {
        let mut text = format!("\nport {}\n", self.port);
        let mut table = Table::plain(2);
        let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        let mtu = |bytes: Option<u32>| or_unknown(bytes.map(|bytes| bytes.to_string()));
        let rate = or_unknown(self.rate_gbps.map(|rate| format!("{rate} Gb/s")));
        for (what, value) in [
            ("state", format!("{} ({})", self.state, self.physical_state)),
            ("link layer", self.link_layer.clone()),
            ("rate", format!("{rate} ({} {})", self.active_width, self.active_speed)),
            ("MTU", format!("{} of {} bytes", mtu(self.active_mtu), mtu(self.max_mtu))),
            ("largest message", format!("{} bytes", self.max_message_size)),
            ("LID", format!("{:#x}, subnet manager {:#x}", self.lid, self.sm_lid)),
            ("GIDs", format!("{} of {}", self.gids.len(), self.gid_table_len)),
            ("partition keys", or_unknown(self.pkeys.as_deref().map(keys))),
        ] {
            table.row([what.into(), value.into()]);
        }
        text.push_str(&table.render());
        if !self.gids.is_empty() {
            let mut gids = Table::new(4, &["INDEX", "GID", "TYPE", "NETDEV"]);
            for gid in &self.gids {
                let netdev = gid.netdev.clone().unwrap_or_else(|| "-".to_owned());
                gids.row([
                    gid.index.into(),
                    gid.gid.as_str().into(),
                    gid.kind.as_str().into(),
                    netdev.into(),
                ]);
            }
            text.push_str(&gids.render());
        }
        text
    }
}

impl Gid {
    fn new(entry: &GidEntry) -> Self {
        Self {
            index: entry.index,
            gid: entry.gid.to_string(),
            kind: entry.kind.to_string(),
            netdev: entry.netdev_index.and_then(netdev::name),
            netdev_index: entry.netdev_index,
        }
    }
}

/// Partition keys, the ones that are free left out.
fn keys(keys: &[u16]) -> String {
    let used = keys.iter().filter(|key| **key != 0).map(|key| format!("{key:#06x}"));
    let used: Vec<_> = used.collect();
    if used.is_empty() { "none".to_owned() } else { used.join(" ") }
}

/// The value; where it cannot be had, the reason is reported. An error when the device is gone.
fn noted<T>(result: uverbs::Result<T>) -> uverbs::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Err(error),
        Err(error) => {
            Failure::from(error).report();
            Ok(None)
        }
    }
}
