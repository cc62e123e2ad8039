//! What the CDI file has of the devices of a host.

use std::collections::{BTreeMap, HashMap, HashSet};

use uverbs::{
    BootId, Bus, Device, DeviceNumber, Devices, Error, Expectation, Instance, Parent, PciAddress,
};

use super::host::{Mad, MadKind, Nodes, RDMA_CM};
use super::spec::{CdiDevice, Edits, Hook, Kind, Node, Spec, Version, is_device_name};
use crate::output::Failure;
use crate::select::{Selector, is_gone};

/// Nodes that every process of a container may open: as the kernel makes them, whatever udev's rules do on this host.
const FOR_ALL: u32 = 0o666;
/// Nodes that only its root may open: as the kernel makes them.
const FOR_ROOT: u32 = 0o600;
/// After how many seconds the runtime gives the hook up: later than the hook itself does.
const HOOK_TIMEOUT: u32 = 10;

/// What to write.
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) version: Version,
    /// `None`: every device that has an address.
    pub(super) devices: Option<Vec<Which>>,
    pub(super) umad: bool,
    pub(super) issm: bool,
    pub(super) rdma_cm: bool,
    /// The path of the program that checks a container before it starts.
    pub(super) hook: Option<String>,
    pub(super) with_guid: bool,
    pub(super) with_instance: bool,
    /// The id of this boot.
    pub(super) boot: BootId,
}

/// A device as it is named on the command line.
pub(super) struct Which {
    /// The name of the CDI device, such as a PCI address.
    pub(super) name: Option<String>,
    pub(super) selector: Option<Selector>,
}

/// What a file was made of.
pub(super) struct Built {
    /// `None` if there is no device: such a file would be invalid.
    pub(super) spec: Option<Spec>,
    /// What was left out, and why.
    pub(super) notes: Vec<String>,
    /// The devices of the command line that are not there.
    pub(super) missing: Vec<Failure>,
}

/// Makes CDI files. It remembers what never changes in the life of a device.
pub(super) struct Builder<N> {
    wanted: Wanted,
    nodes: N,
    known: HashMap<Instance, Known>,
}

#[derive(Clone)]
struct Known {
    group: Group,
    expectation: Expectation,
}

/// Where a device is, and the name that it has there.
#[derive(Clone, PartialEq, Eq)]
struct Group {
    name: String,
    /// The name of the parent on its bus, which its other nodes have in their paths.
    parent: Option<Vec<u8>>,
    is_virtual: bool,
}

/// A verbs device that can be given to a container.
struct Member<'a> {
    device: &'a Device,
    known: Known,
    /// Whether it is named on the command line, or all are wanted.
    is_wanted: bool,
}

/// A verbs device that cannot be given, because it could not be read. It is still a part of what is at its place.
struct Unread {
    /// As errors name it.
    device: String,
    /// The name of its parent on its bus; `None` if that could not be read either.
    parent: Option<Vec<u8>>,
}

impl Unread {
    /// Whether it may be a part of what is at this place. A software device is alone at its own.
    fn may_be_in(&self, group: &Group) -> bool {
        !group.is_virtual
            && self.parent.as_ref().is_none_or(|parent| group.parent.as_ref() == Some(parent))
    }
}

impl Group {
    /// The parent's address is the name: that of a function, or of the function that it is a part of and its number.
    fn of(device: &Device, parent: &Parent) -> Self {
        let name = match (&parent.bus, parent.pci_address(), parent.subfunction, &parent.name) {
            (Bus::Pci, Some(address), ..) => address.to_string(),
            (Bus::Auxiliary, Some(address), Some(number), _) => format!("{address}-sf{number}"),
            (Bus::Auxiliary, Some(address), None, Some(name)) => format!("{address}-aux-{name}"),
            (Bus::Virtual, ..) => format!("virtual-{}", device.name()),
            (bus, _, _, Some(name)) => format!("{bus}-{name}"),
            (bus, _, _, None) => bus.to_string(),
        };
        let is_virtual = parent.bus == Bus::Virtual;
        let parent = parent.name.as_ref().map(|name| name.as_bytes().to_vec());
        Self { name, parent, is_virtual }
    }
}

impl Which {
    fn is(&self, group: &Group) -> bool {
        self.name.as_ref() == Some(&group.name)
    }
}

impl<N: Nodes> Builder<N> {
    pub(super) fn new(wanted: Wanted, nodes: N) -> Self {
        Self { wanted, nodes, known: HashMap::new() }
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Makes the file of the devices that are there now.
    ///
    /// # Errors
    /// The nodes beside those of verbs devices could not be read.
    pub(super) fn build(&mut self, devices: &Devices) -> Result<Built, Failure> {
        let mut notes: Vec<_> =
            devices.faults().map(|fault| format!("left out: {fault}")).collect();
        let there: HashSet<_> = devices.iter().map(Device::instance).collect();
        self.known.retain(|instance, _| there.contains(instance));
        let mut members = Vec::new();
        let mut unread: Vec<_> = devices
            .faults()
            .map(|fault| {
                let uverbs = fault.device().unwrap_or_default();
                Unread { device: uverbs.to_owned(), parent: self.nodes.parent_of(uverbs) }
            })
            .collect();
        for device in devices {
            match self.known(device) {
                Ok(known) => members.push(Member { device, known, is_wanted: false }),
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    notes.push(format!("left out: {error}"));
                    let parent = match self.known.get(&device.instance()) {
                        // It is alone at its place.
                        Some(known) if known.group.is_virtual => continue,
                        Some(known) => known.group.parent.clone(),
                        None => self.nodes.parent_of(&format!("uverbs{}", device.uverbs_number())),
                    };
                    unread.push(Unread { device: device.to_string(), parent });
                }
            }
        }
        let missing = self.select(devices, &mut members, &mut notes);
        self.leave_out_without_nodes(&mut members, &mut notes);
        let mads = self.mads(&members, &mut notes)?;
        let rdma_cm = self.rdma_cm(&mut notes)?;
        let mut container_edits = Edits::default();
        container_edits.device_nodes.extend(rdma_cm.map(|_| Node::new(RDMA_CM, FOR_ALL)));
        let others = Others { mads, rdma_cm };
        let devices = self.devices(&members, &unread, &others, &mut notes);
        let spec = (!devices.is_empty()).then(|| Spec {
            cdi_version: self.wanted.version.to_string(),
            kind: self.wanted.kind.to_string(),
            devices,
            container_edits,
        });
        Ok(Built { spec, notes, missing })
    }

    fn known(&mut self, device: &Device) -> Result<Known, Error> {
        let instance = device.instance();
        let mut known = match self.known.get(&instance) {
            Some(known) => known.clone(),
            None => {
                let group = Group::of(device, &device.parent()?);
                let mut expectation = Expectation::of(device)?;
                // Nothing else identifies a device without an address.
                if self.wanted.with_instance || group.is_virtual {
                    expectation = expectation.with_instance(instance, self.wanted.boot);
                }
                let known = Known { group, expectation };
                self.known.insert(instance, known.clone());
                known
            }
        };
        // A name changes, and a GUID may.
        if known.group.is_virtual {
            known.group.name = format!("virtual-{}", device.name());
        }
        if self.wanted.with_guid {
            known.expectation = known.expectation.with_guid_of(device)?;
        }
        Ok(known)
    }

    /// Marks the devices that are wanted. Returns errors for those of the command line that are not there.
    fn select(
        &self,
        devices: &Devices,
        members: &mut [Member<'_>],
        notes: &mut Vec<String>,
    ) -> Vec<Failure> {
        let Some(named) = &self.wanted.devices else {
            for member in members {
                member.is_wanted = !member.known.group.is_virtual;
                if !member.is_wanted {
                    notes.push(format!(
                        "{}: left out, because it has no address: name it",
                        member.device
                    ));
                }
            }
            return Vec::new();
        };
        let mut missing = Vec::new();
        for which in named {
            let mut is_there = false;
            for member in members.iter_mut().filter(|member| which.is(&member.known.group)) {
                (member.is_wanted, is_there) = (true, true);
            }
            match (is_there, &which.selector) {
                (true, _) => {}
                (false, None) => {
                    let name = which.name.as_deref().unwrap_or_default();
                    missing
                        .push(Failure::new("not_found", format!("there is no device at {name}")));
                }
                (false, Some(selector)) => match selector.find(devices) {
                    Ok(found) => {
                        let found = members.iter_mut().filter(|member| *member.device == found);
                        found.for_each(|member| member.is_wanted = true);
                    }
                    Err(failure) => missing.push(failure),
                },
            }
        }
        missing
    }

    /// Leaves out what a container would not get, or would get another device for.
    fn leave_out_without_nodes(&self, members: &mut [Member<'_>], notes: &mut Vec<String>) {
        for member in members.iter_mut().filter(|member| member.is_wanted) {
            let name = format!("uverbs{}", member.device.uverbs_number());
            let why = match self.nodes.number(&name) {
                Some(number) if number == member.device.device_number() => continue,
                Some(number) => format!("is a node of {number}"),
                None => "is missing".to_owned(),
            };
            member.is_wanted = false;
            notes
                .push(format!("{}: left out, because /dev/infiniband/{name} {why}", member.device));
        }
    }

    /// The nodes for management datagrams that containers can be given: those of the wanted devices.
    fn mads(&self, members: &[Member<'_>], notes: &mut Vec<String>) -> Result<Vec<Mad>, Failure> {
        if !self.wanted.umad && !self.wanted.issm {
            return Ok(Vec::new());
        }
        let mut mads = self.nodes.mads().map_err(|error| {
            Failure::os("cannot read the nodes for management datagrams", &error)
        })?;
        mads.retain(|mad| {
            let is_included = match mad.kind {
                MadKind::Umad => self.wanted.umad,
                MadKind::Issm => self.wanted.issm,
            };
            let mut wanted = members.iter().filter(|member| member.is_wanted);
            is_included
                && wanted.any(|member| member.has(mad, true))
                && self.is_node(&mad.name, mad.number, notes)
        });
        Ok(mads)
    }

    /// Whether a node has this number. Otherwise a container would not get it, or would get another one.
    fn is_node(&self, name: &str, number: DeviceNumber, notes: &mut Vec<String>) -> bool {
        let why = match self.nodes.number(name) {
            Some(found) if found == number => return true,
            Some(found) => format!("is a node of {found} and not of {number}"),
            None => "is missing".to_owned(),
        };
        notes.push(format!("{name}: left out, because /dev/infiniband/{name} {why}"));
        false
    }

    /// The number of `rdma_cm`, if a container can be given that node.
    fn rdma_cm(&self, notes: &mut Vec<String>) -> Result<Option<DeviceNumber>, Failure> {
        if !self.wanted.rdma_cm {
            return Ok(None);
        }
        let number = self.nodes.rdma_cm();
        let number =
            number.map_err(|error| Failure::os("cannot read the number of rdma_cm", &error))?;
        let Some(number) = number else {
            // An engine refuses a container that is to have a node which the host has not.
            notes.push(
                "rdma_cm: left out, because there is none: load the module rdma_ucm".to_owned(),
            );
            return Ok(None);
        };
        Ok(self.is_node(RDMA_CM, number, notes).then_some(number))
    }

    fn devices(
        &self,
        members: &[Member<'_>],
        unread: &[Unread],
        others: &Others,
        notes: &mut Vec<String>,
    ) -> Vec<CdiDevice> {
        // By the place, in the order of the uverbs numbers.
        let mut groups: Vec<Vec<&Member<'_>>> = Vec::new();
        let mut at = HashMap::new();
        for member in members {
            let next = groups.len();
            let at = *at.entry(&member.known.group.name).or_insert(next);
            match groups.get_mut(at) {
                Some(group) => group.push(member),
                None => groups.push(vec![member]),
            }
        }
        let mut made: BTreeMap<String, Vec<CdiDevice>> = BTreeMap::new();
        let mut add = |device: CdiDevice| made.entry(device.name.clone()).or_default().push(device);
        for group in &groups {
            let Some(Member { known, .. }) = group.first() else { continue };
            let name = &known.group.name;
            let is_one_place = group.iter().all(|member| member.known.group == known.group);
            if group.iter().any(|member| member.is_wanted) && !is_one_place {
                notes.push(format!("{name}: left out, because two places have that name"));
                continue;
            }
            let unread: Vec<_> =
                unread.iter().filter(|device| device.may_be_in(&known.group)).collect();
            // With a part of its devices, the name of the place would mean something else than usual.
            if group.iter().all(|member| member.is_wanted) {
                match unread.first() {
                    None => add(self.device(name.clone(), group, others)),
                    Some(device) => notes.push(format!(
                        "{name}: left out, because {} may be a part of it and cannot be read",
                        device.device
                    )),
                }
            }
            if group.len() + unread.len() > 1 {
                for member in group.iter().filter(|member| member.is_wanted) {
                    let own = format!("{name}-dev-{}", member.device.name());
                    add(self.device(own, &[member], others));
                }
            }
        }
        let mut devices = Vec::new();
        for (name, mut of_name) in made {
            if !is_device_name(&name) {
                notes.push(format!("{name}: left out, because no CDI device may have that name"));
            } else if of_name.len() > 1 {
                notes.push(format!("{name}: left out, because two devices would have that name"));
            } else {
                devices.append(&mut of_name);
            }
        }
        devices
    }

    /// A CDI device with these verbs devices.
    fn device(&self, name: String, members: &[&Member<'_>], others: &Others) -> CdiDevice {
        let of_group = members.len() > 1;
        let mut edits = Edits::default();
        for member in members {
            let expectation = &member.known.expectation;
            edits.env.push(format!("{}={expectation}", expectation.variable()));
            edits
                .device_nodes
                .push(Node::new(&format!("uverbs{}", member.device.uverbs_number()), FOR_ALL));
        }
        let mut given =
            others.rdma_cm.map(|number| (RDMA_CM, number)).into_iter().collect::<Vec<_>>();
        let belongs = |mad: &&Mad| members.iter().any(|member| member.has(mad, of_group));
        for mad in others.mads.iter().filter(belongs) {
            edits.device_nodes.push(Node::new(&mad.name, FOR_ROOT));
            given.push((&mad.name, mad.number));
        }
        if let Some(path) = &self.wanted.hook {
            let mut args = ["uverbs", "hook"].map(str::to_owned).to_vec();
            for (name, number) in given {
                args.extend(["--node".to_owned(), format!("{name}={number}")]);
            }
            args.extend(members.iter().map(|member| member.known.expectation.to_string()));
            edits.hooks.push(Hook {
                hook_name: "createRuntime".to_owned(),
                path: path.clone(),
                args,
                timeout: HOOK_TIMEOUT,
            });
        }
        CdiDevice { name, container_edits: edits }
    }
}

/// The nodes beside `uverbsN` that containers can be given.
struct Others {
    mads: Vec<Mad>,
    /// The number of `rdma_cm`.
    rdma_cm: Option<DeviceNumber>,
}

impl Member<'_> {
    /// Whether a node for management datagrams is this device's. In a group, those of the parent are those of the
    /// group.
    fn has(&self, mad: &Mad, of_group: bool) -> bool {
        mad.is_of(self.known.group.parent.as_deref(), self.device.name().as_bytes(), of_group)
    }
}

/// A DEVICE: the name of a CDI device, or what any command takes.
pub(super) fn which(text: &std::ffi::OsStr) -> Result<Which, Failure> {
    use std::os::unix::ffi::OsStrExt as _;

    let bytes = text.as_bytes();
    let bare = bytes.strip_prefix(b"pci=").unwrap_or(bytes);
    // `ADDRESS`, or `ADDRESS-` and what follows it.
    let address = str::from_utf8(bare).ok().and_then(|bare| {
        let (address, rest) = bare.split_at(bare.find('-').unwrap_or(bare.len()));
        let address: PciAddress = address.parse().ok()?;
        Some(format!("{address}{rest}"))
    });
    match address {
        Some(name) => Ok(Which { name: Some(name), selector: None }),
        None => {
            let name = str::from_utf8(bytes).ok().map(str::to_owned);
            let selector = Selector::parse(text).map_err(Failure::usage)?;
            Ok(Which { name, selector: Some(selector) })
        }
    }
}

#[cfg(all(test, feature = "demo"))]
pub(super) mod tests;
