//! Guarantees of every public type.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;

use uverbs::*;

const fn is_send_and_sync<T: Send + Sync>() {}
const fn is_static<T: Send + Sync + 'static>() {}
const fn is_debug<T: Debug + ?Sized>() {}
const fn is_number<T: Copy + Ord + Hash + Debug + Display + Send + Sync + 'static>() {}
const fn is_error<T: StdError + Send + Sync + 'static>() {}

/// Checked at compile time.
macro_rules! all {
    ($check:ident: $($type:ty),* $(,)?) => {
        const _: () = { $($check::<$type>();)* };
    };
}

// Threads may share each of these: no thread is part of their meaning.
all!(is_static:
    Allocation, AsyncEvent, Bus, Change, Check, CheckId, Context, ContextClaim, Device, DeviceAttributes, DeviceFacts,
    DeviceNumber, Devices, DevicesIntoIter, ErrorKind, Evidence, ExtendedAttributes,
    ForkSafety, FunctionKind, Gid, GidEntry, Guid, Host, HostBuilder, Instance, KeptNetlink, Match, MatchedBy, Name, Netdev, OpenOptions, Opened,
    Parent, PciAddress, PciFunction, Place, PortAttributes, PortFacts, PortRate, ProviderInfo, Registry, ResyncReason, Step, Summary, Timestamp, UnprovenContext, Value, Watch,
);
all!(is_send_and_sync: AsyncEvents, PinnedView<'_>, Box<dyn DeviceProvider>, Box<dyn Provider>);
#[cfg(feature = "tokio")]
all!(is_static: AsyncEventStream, WatchStream);
#[cfg(feature = "sim")]
all!(is_static: sim::DeviceId, sim::DeviceSpec, sim::Machine);
all!(is_error: Error, ParseGuidError, ParsePciAddressError);
all!(is_number:
    AsyncEventKind, DriverId, GidType, LinkLayer, LinkSpeed, LinkWidth, Mtu, NodeType,
    PhysicalState, PortState,
);
all!(is_debug:
    AsyncEvents, Context, Device, Devices, DevicesIntoIter, Host, Opened, PinnedView<'_>,
    Registry, UnprovenContext, Watch,
);

/// The constants of the kernel's numbers can be used in patterns, and in constants.
#[test]
fn numbers_work_in_patterns() {
    const MLX5: DriverId = DriverId::from_raw(1);
    const NUMBER: u32 = MLX5.to_raw();
    const NAME: Option<&str> = MLX5.name();
    let is_known = |driver| match driver {
        DriverId::MLX5 | DriverId::RXE => true,
        driver => driver.name().is_some(),
    };
    assert_eq!((NUMBER, NAME), (1, Some("mlx5")));
    assert!(is_known(MLX5) && !is_known(DriverId::from_raw(99)));
}

/// Each number prints in the three documented ways.
#[test]
fn numbers_print_by_name_or_as_unknown() {
    macro_rules! prints {
        ($($value:expr, $text:literal, $debug:literal;)*) => {
            $(assert_eq!((format!("{}", $value), format!("{:?}", $value)), ($text.into(), $debug.into()));)*
        };
    }
    prints! {
        DriverId::VMW_PVRDMA, "vmw_pvrdma", "DriverId(VMW_PVRDMA)";
        DriverId::from_raw(99), "unknown(99)", "DriverId(99)";
        PortState::ACTIVE, "ACTIVE", "PortState(ACTIVE)";
        PhysicalState::LINK_UP, "LinkUp", "PhysicalState(LINK_UP)";
        LinkLayer::INFINIBAND, "InfiniBand", "LinkLayer(INFINIBAND)";
        Mtu::BYTES_4096, "4096", "Mtu(BYTES_4096)";
        LinkWidth::X4, "4X", "LinkWidth(X4)";
        LinkSpeed::from_raw(512), "unknown(512)", "LinkSpeed(512)";
        GidType::from_raw(u32::MAX), "unknown(4294967295)", "GidType(4294967295)";
        NodeType::USNIC_UDP, "usNIC UDP", "NodeType(USNIC_UDP)";
        AsyncEventKind::DEVICE_FATAL, "device fatal error", "AsyncEventKind(DEVICE_FATAL)";
    }
}
