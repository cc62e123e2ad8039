//! A thousand devices, few descriptors, little memory.

use anyhow::{Result, ensure};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{opened, registry};
use crate::{alloc, guest};

pub(super) fn thousand() -> Result<()> {
    const DEVICES: usize = 1000;
    guest::hca("add name=m guid=0000000000010000 count=1000 disassociate=1")?;
    guest::until_uverbs("uverbs999", true)?;
    let limit = Some(16);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    let descriptors = guest::open_descriptors();
    {
        let registry = registry()?;
        let heap = alloc::live_bytes();
        let devices = registry.devices()?;
        let each = (alloc::live_bytes() - heap) / DEVICES;
        ensure!(devices.len() == DEVICES && devices.faults().count() == 0, "{}", devices.len());
        println!("    heap per listed device: {each} bytes");
        ensure!(each <= 1024);
        let again = registry.devices()?;
        ensure!(again.iter().eq(devices.iter()));
        let device = devices.by_name("m777")?;
        let context = opened(device.open(), 0x10000 + 777)?;
        ensure!(guest::open_descriptors() <= descriptors + 3, "roots and the cmd fd alone");
        let index = context.evidence().index();
        let each = (alloc::live_bytes() - heap) / DEVICES;
        println!("    heap per listed device, one opened: {each} bytes");
        ensure!(each <= 1024);
        ensure!(index == Some(device.index()?));
    }
    ensure!(guest::open_descriptors() == descriptors, "descriptors are left");
    Ok(())
}
