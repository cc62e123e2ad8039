//! The running kernel, with the test HCA.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use uverbs::Host;
use uverbs::sim::Probe;

use super::nldev::{self, Elsewhere};
use super::notify;
use super::script::{Node, Nodes, Setup};
use super::side::{Act, CROWD, Outcome, Side};
use crate::guest;

const DIR: &str = "/dev/infiniband";
/// Keeps the directory beneath the mount, which otherwise would disappear with it.
const KEEP: &str = "/dev/infiniband/keep";

/// Longer than a tick of the coarse clock that sysfs uses for its inodes.
const TICK: Duration = Duration::from_millis(12);

/// One device, as the test HCA knows it.
struct Hca {
    /// `None` once the module that had it is unloaded.
    id: Option<u64>,
    index: u32,
    name: String,
    /// Whether it is in the other network namespace.
    away: bool,
}

/// The real kernel.
pub(super) struct Real<'a> {
    devices: Vec<Hca>,
    mounted: bool,
    elsewhere: Option<&'a Elsewhere>,
}

/// The state of one device, parsed.
struct Line {
    removing: bool,
    contexts: usize,
    disassociates: bool,
}

impl<'a> Real<'a> {
    pub(super) fn new(setup: &Setup, elsewhere: Option<&'a Elsewhere>) -> Result<Self> {
        let mounted = setup.nodes == Nodes::Tmpfs;
        if mounted {
            fs::create_dir(DIR)?;
            fs::write(KEEP, "")?;
            let flags = MountFlags::empty();
            rustix::mount::mount("uverbs-lab", DIR, "tmpfs", flags, None).context("mount")?;
        }
        Ok(Self { devices: Vec::new(), mounted, elsewhere })
    }

    fn line(&self, device: usize) -> Result<Option<Line>> {
        let Some(id) = self.devices[device].id else { return Ok(None) };
        let state = guest::hca_state()?;
        let id = format!("id={id}");
        let Some(line) = state.lines().find(|line| line.split(' ').next() == Some(&id)) else {
            return Ok(None);
        };
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        Ok(Some(Line {
            removing: value("state=") == Some("removing"),
            contexts: value("contexts=").context("contexts")?.parse()?,
            disassociates: value("disassociate=") == Some("1"),
        }))
    }

    fn last_added(name: &str) -> Result<Hca> {
        let state = guest::hca_state()?;
        let line = state.lines().last().context("no device after one was added")?;
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        let id = value("id=").context("id")?.parse()?;
        let index = value("index=").context("index")?.parse()?;
        Ok(Hca { id: Some(id), index, name: name.to_owned(), away: false })
    }
}

impl Side for Real<'_> {
    fn host(&self) -> Result<Host> {
        Ok(Host::open()?)
    }

    fn add(&mut self, name: &str, guid: u64, disassociates: bool) -> Result<Outcome> {
        let disassociates = u8::from(disassociates);
        let added = guest::hca(&format!(
            "add name={name} guid={guid:016x} disassociate={disassociates} fw_ver=1.2.3"
        ));
        match added {
            Ok(()) => {
                self.devices.push(Self::last_added(name)?);
                Ok(Ok(()))
            }
            Err(error) => match error.downcast_ref::<std::io::Error>().map(|e| e.raw_os_error()) {
                Some(Some(errno @ libc::ENFILE)) => Ok(Err(errno)),
                _ => Err(error),
            },
        }
    }

    fn remove(&mut self, device: usize) -> Result<()> {
        if self.line(device)?.is_none_or(|line| line.removing) {
            return Ok(());
        }
        let Hca { id, index, .. } = self.devices[device];
        let number = Probe::new(&self.host()?).chardev(index).map(|(_, minor)| minor - 192);
        guest::hca(&format!("del id={}", id.context("no id")?))?;
        // Only the program holds it, so the removal waits if the program has a context.
        let mut waits = false;
        guest::until("a removal to end or to wait", || match self.line(device) {
            Ok(Some(line)) => {
                let uverbs = number.map(|n| format!("/sys/class/infiniband_verbs/uverbs{n}"));
                waits = !line.disassociates
                    && line.contexts > 0
                    && uverbs.is_ok_and(|uverbs| !Path::new(&uverbs).exists());
                waits
            }
            Ok(None) => true,
            Err(_) => false,
        })?;
        if waits {
            // The number is freed right after the directory.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn rename(&mut self, device: usize, name: &str) -> Result<Outcome> {
        let hca = &mut self.devices[device];
        // An administrator of the device's namespace does this.
        let renamed = match self.elsewhere.filter(|_| hca.away) {
            Some(elsewhere) => elsewhere.rename(hca.index, name)?,
            None => nldev::rename(hca.index, name)?,
        };
        if renamed.is_ok() {
            name.clone_into(&mut hca.name);
        }
        Ok(renamed)
    }

    fn swap_names(&mut self, device: usize, other: usize) -> Result<Outcome> {
        let (first, second) = (self.devices[device].name.clone(), self.devices[other].name.clone());
        for (device, name) in [(device, "swapping names"), (other, &first), (device, &second)] {
            if let Err(errno) = self.rename(device, name)? {
                return Ok(Err(errno));
            }
        }
        Ok(Ok(()))
    }

    fn change_namespace(&mut self, device: usize, for_good: bool) -> Result<Outcome> {
        let elsewhere = self.elsewhere.context("no other namespace")?;
        let index = self.devices[device].index;
        ensure!(!self.devices[device].away, "there is no third namespace");
        let moved = elsewhere.set(index, true)?;
        if moved.is_err() || for_good {
            self.devices[device].away = moved.is_ok();
            return Ok(moved);
        }
        let back = elsewhere.set(index, false)?;
        ensure!(back == Ok(()), "moving back: {back:?}");
        Ok(back)
    }

    fn evict(&mut self) -> Result<()> {
        std::thread::sleep(TICK);
        guest::drop_caches()
    }

    fn listxattr(&mut self) -> Result<()> {
        std::thread::sleep(TICK);
        // There may be no such device at the moment.
        let ibdev = "/sys/class/infiniband_verbs/uverbs0/ibdev";
        let _ = rustix::fs::listxattr(ibdev, &mut [0u8; 256][..]);
        Ok(())
    }

    fn set_node(&mut self, number: u32, node: Node) -> Result<()> {
        let path = Path::new(DIR).join(format!("uverbs{number}"));
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        if node == Node::Missing {
            return Ok(());
        }
        fs::create_dir_all(DIR)?;
        match node {
            Node::Symlink => symlink("uverbs1", &path)?,
            Node::Fifo => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
            }
            Node::Regular => fs::write(&path, "")?,
            Node::Directory => fs::create_dir(&path)?,
            Node::AnotherDevice => guest::mknod(&path, (1, 3))?,
            Node::OtherUverbs => guest::mknod(&path, (231, 193))?,
            Node::FirstUverbs => guest::mknod(&path, (231, 192))?,
            Node::Static | Node::Missing => guest::mknod(&path, (231, 192 + number))?,
        }
        Ok(())
    }

    fn reload_uverbs(&mut self) -> Result<Outcome> {
        let unloaded = Command::new("rmmod").arg("ib_uverbs").output()?;
        if !unloaded.status.success() {
            return Ok(Err(libc::EBUSY));
        }
        guest::run("modprobe", &["ib_uverbs"])?;
        Ok(Ok(()))
    }

    fn reload_core(&mut self) -> Result<()> {
        guest::reload(true)?;
        self.devices.iter_mut().for_each(|device| device.id = None);
        Ok(())
    }

    fn devices(&self) -> usize {
        self.devices.len()
    }

    fn index(&self, device: usize) -> u32 {
        self.devices[device].index
    }

    fn contexts(&self, device: usize) -> Result<Option<usize>> {
        Ok(self.line(device)?.map(|line| line.contexts))
    }

    fn crowd(&self) -> usize {
        CROWD
    }

    fn interrupt(&mut self, at: usize, act: Act, event: Act) -> Result<()> {
        notify::before_receiving(at, act, event)
    }

    fn at_exit(&self) -> Act {
        Box::new(|| {})
    }

    fn settle(&mut self) -> Result<()> {
        // At a program's steps, every open descriptor has a context.
        for device in 0..self.devices.len() {
            guest::until("a removal to go on", || {
                let line = self.line(device);
                line.is_ok_and(|line| line.is_none_or(|line| !line.removing || line.contexts > 0))
            })?;
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<()> {
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
        if std::mem::take(&mut self.mounted) {
            rustix::mount::unmount(DIR, UnmountFlags::empty()).context("unmount")?;
        }
        let _ = fs::remove_dir_all(DIR);
        ensure!(!Path::new(DIR).exists(), "{DIR} cannot be removed");
        Ok(())
    }
}
