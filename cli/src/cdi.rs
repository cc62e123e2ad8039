//! `uverbs cdi`.

mod build;
mod file;
pub(crate) mod host;
mod pace;
mod spec;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use uverbs::{Devices, ErrorKind, Registry, Watch};

use crate::boot;
use crate::ending::{Ending, Next};
use crate::output::{Failure, Out, note};
use build::{Builder, Built, Wanted};
use file::{Done, Target};
use host::Nodes;
use pace::Pace;
use spec::{Kind, Spec, Version};

/// Write a CDI file, by which container engines give devices to containers.
///
/// A device of the file is a PCI function, under its address: podman run --device uverbs/device=0000:3b:00.2. A
/// sub-function of mlx5 is ADDRESS-sfN, with the number that it was made with; a function's own device does not include
/// its sub-functions. A function with several verbs devices has all of them under its address, and each as
/// ADDRESS-dev-NAME, too. Devices of other buses are BUS-NAME. Software devices, such as rxe, have no address: they are
/// left out unless DEVICE names them. They are virtual-NAME then, and their instance is always checked. If a device
/// cannot be read, each ADDRESS that it may be a part of is left out. What is left out is reported on stderr.
///
/// The program in the container finds in the variable UVERBS_EXPECT_N what it was given, where N is that of uverbsN.
/// `uverbs open --expect-env` checks it. On the host, the container's runtime runs `uverbs hook` before the container
/// starts, which refuses it if the device, or one of its nodes, has been replaced since. `uverbs hook --help` describes
/// what that promises.
///
/// Without --output or --dir the file is printed.
#[derive(Args)]
pub(crate) struct CdiArgs {
    /// The devices: names as above, such as 0000:3b:00.2, or what `uverbs show` takes; without any, all that have an
    /// address
    #[arg(value_name = "DEVICE")]
    devices: Vec<OsString>,
    /// All devices that have an address, as without DEVICE
    #[arg(long, conflicts_with = "devices")]
    all: bool,
    /// Write this file, whose name ends in .json; without devices, remove it
    ///
    /// Its directory is made if it is missing. The file is replaced as a whole. The command fails rather than replace a
    /// link or a file that is not a CDI file of this kind.
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write the file into this directory, under a name that is made of the kind
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    dir: Option<PathBuf>,
    /// The kind of the devices
    #[arg(long, value_name = "VENDOR/CLASS", default_value = "uverbs/device", value_parser = spec::kind)]
    kind: Kind,
    /// The version of the CDI specification; default: the lowest version that suffices
    #[arg(long, value_name = "VERSION", value_parser = spec::version)]
    cdi_version: Option<Version>,
    /// Add the nodes umadN, which send management datagrams; the hook checks them, `open --expect-env` does not
    #[arg(long)]
    umad: bool,
    /// Add the nodes issmN, for subnet managers; the hook checks them, `open --expect-env` does not
    #[arg(long)]
    issm: bool,
    /// Leave out the node rdma_cm, which programs on RoCE need
    #[arg(long)]
    no_rdma_cm: bool,
    /// The path of `uverbs` on the host, for the hook; by default that of this program
    #[arg(long, value_name = "PATH")]
    hook: Option<PathBuf>,
    /// Write no hook: nothing on the host checks the container
    #[arg(long, conflicts_with = "hook")]
    no_hook: bool,
    /// Also check the instance: binding a device again makes a new one
    ///
    /// What comes between the allocation and the start of a container, such as a CNI plugin, must not unbind the device
    /// or move it to another namespace then.
    #[arg(long)]
    with_instance: bool,
    /// Also check the node GUID
    #[arg(long)]
    with_guid: bool,
    /// Go on, and write the file again whenever devices have changed
    ///
    /// A burst of changes is written once, half a second after its last one, and after five seconds at the latest. A
    /// file that cannot be written is reported, and tried again. At SIGTERM and SIGINT the command ends, and at an error
    /// that it cannot go on from. Each time it removes the file, because nothing updates it from then on.
    #[arg(long)]
    watch: bool,
    /// With --watch: leave the file at the end
    #[arg(long, requires = "watch")]
    keep: bool,
}

impl CdiArgs {
    fn wanted(&self) -> Result<Wanted, Failure> {
        let lowest = Version::lowest(&self.kind);
        let version = self.cdi_version.unwrap_or(lowest);
        if version < lowest {
            return Err(Failure::usage(format!(
                "version {version} lacks what the file needs: names that begin with a digit came with 0.5.0, and \
                 dots in the class with 0.6.0"
            )));
        }
        let named: Vec<_> =
            self.devices.iter().map(|device| build::which(device)).collect::<Result<_, _>>()?;
        Ok(Wanted {
            kind: self.kind.clone(),
            version,
            devices: (!named.is_empty()).then_some(named),
            umad: self.umad,
            issm: self.issm,
            rdma_cm: !self.no_rdma_cm,
            hook: self.hook()?,
            with_guid: self.with_guid,
            with_instance: self.with_instance,
            boot: boot::id()?,
        })
    }

    /// The path of the hook, which JSON can have only as text.
    fn hook(&self) -> Result<Option<String>, Failure> {
        let path = match &self.hook {
            _ if self.no_hook => return Ok(None),
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(|error| Failure::os("cannot find the path of this program", &error))?,
        };
        match path.to_str() {
            Some(text) if path.is_absolute() => Ok(Some(text.to_owned())),
            _ => Err(Failure::usage("the path of a hook is absolute, and UTF-8")),
        }
    }

    fn target(&self) -> Result<Option<Target>, Failure> {
        let path = match (&self.output, &self.dir) {
            (Some(path), _) => path.clone(),
            (None, Some(dir)) => dir.join(self.kind.file_name()),
            (None, None) => return Ok(None),
        };
        Target::new(path, &self.kind).map(Some)
    }
}

pub(crate) fn run(args: &CdiArgs, out: &mut Out) -> Result<bool, Failure> {
    let target = args.target()?;
    let wanted = args.wanted()?;
    match (args.watch, target) {
        (true, None) => Err(Failure::usage("--watch needs --output or --dir")),
        (true, Some(target)) => {
            let followed = start(wanted)
                .and_then(|(registry, mut builder)| follow(&registry, &mut builder, &target));
            end(&target, args.keep, followed)
        }
        (false, target) => {
            let (registry, mut builder) = start(wanted)?;
            once(&registry.devices()?, &mut builder, target.as_ref(), out)
        }
    }
}

fn start(wanted: Wanted) -> Result<(Registry, Builder<host::Host>), Failure> {
    let nodes =
        host::Host::open().map_err(|error| Failure::os("cannot open /sys and /dev", &error))?;
    Ok((Registry::new(uverbs::Host::open()?), Builder::new(wanted, nodes)))
}

/// Removes the file at the end of a watch, however it came, because nothing updates it from then on.
fn end(target: &Target, keep: bool, followed: Result<(), Failure>) -> Result<bool, Failure> {
    let removed = if keep { Ok(Done::Nothing) } else { target.put(None) };
    match (followed, removed) {
        (Ok(()), Err(failure)) => Err(failure),
        (followed, removed) => {
            match removed {
                Ok(Done::Removed) => note(format_args!("removed \"{}\"", target.shown())),
                Ok(_) => {}
                Err(failure) => failure.report(),
            }
            followed.map(|()| true)
        }
    }
}

/// The text of a file: the same for the same devices.
fn text(spec: &Spec) -> Result<Vec<u8>, Failure> {
    let mut text = serde_json::to_vec_pretty(spec)
        .map_err(|error| Failure::new("os", format!("cannot write JSON: {error}")))?;
    text.push(b'\n');
    Ok(text)
}

fn once<N: Nodes>(
    devices: &Devices,
    builder: &mut Builder<N>,
    target: Option<&Target>,
    out: &mut Out,
) -> Result<bool, Failure> {
    let Built { spec, notes, mut missing } = builder.build(devices)?;
    notes.iter().for_each(note);
    if let Some(last) = missing.pop() {
        missing.iter().for_each(Failure::report);
        return Err(last);
    }
    let text = spec.as_ref().map(text).transpose()?;
    match (target, text) {
        (Some(target), text) => {
            if target.put(text.as_deref())? == Done::Removed {
                note(format_args!("no device: \"{}\" was removed", target.shown()));
            } else if text.is_none() {
                note("no device: no file was written");
            }
            Ok(true)
        }
        (None, Some(text)) => out.bytes(&text).map(|()| true),
        (None, None) => {
            note("no device: a CDI file cannot be empty");
            Ok(false)
        }
    }
}

/// Keeps the file right until a signal comes.
fn follow<N: Nodes>(
    registry: &Registry,
    builder: &mut Builder<N>,
    target: &Target,
) -> Result<(), Failure> {
    let ending = Ending::new().map_err(|error| Failure::os("cannot handle signals", &error))?;
    let Some(mut watch) = begin(registry, &ending)? else { return Ok(()) };
    let mut follower = Follower { builder, target, noted: BTreeSet::new(), writes: 0 };
    let mut pace = Pace::new(Instant::now());
    follower.look(watch.devices(), &mut pace);
    loop {
        loop {
            match watch.try_next() {
                Ok(Some(_)) => pace.changed(Instant::now()),
                Ok(None) => break,
                // The watch goes on, and a change may have been missed.
                Err(error) => {
                    Failure::from(error).report();
                    pace.changed(Instant::now());
                    break;
                }
            }
        }
        if pace.left(Instant::now()).is_zero() {
            follower.look(watch.devices(), &mut pace);
        }
        let next = ending.wait_up_to(watch.as_fd(), pace.left(Instant::now()));
        if next.map_err(|error| Failure::os("poll", &error))? == Next::End {
            return Ok(());
        }
    }
}

/// Begins the watch. While ib_uverbs is being loaded or unloaded, there is nothing to watch: it waits. `None` if a
/// signal came.
fn begin(registry: &Registry, ending: &Ending) -> Result<Option<Watch>, Failure> {
    const AGAIN: Duration = Duration::from_secs(1);
    loop {
        match registry.watch() {
            Ok(watch) => return Ok(Some(watch)),
            Err(error) if error.kind() == ErrorKind::Unstable => Failure::from(error).report(),
            Err(error) => return Err(error.into()),
        }
        let next = ending.wait_time(AGAIN).map_err(|error| Failure::os("poll", &error))?;
        if next == Next::End {
            return Ok(None);
        }
    }
}

struct Follower<'a, N> {
    builder: &'a mut Builder<N>,
    target: &'a Target,
    /// What was last reported, so that it is reported once.
    noted: BTreeSet<String>,
    /// How many times the file has been written or removed.
    writes: u64,
}

impl<N: Nodes> Follower<'_, N> {
    /// Looks at the devices, and writes the file if it is not right.
    fn look(&mut self, devices: &Devices, pace: &mut Pace) {
        match self.write(devices) {
            Ok(()) => pace.done(Instant::now()),
            Err(failure) => {
                let retry = pace.failed(Instant::now());
                note(format_args!("{failure}; next attempt in {} s", retry.as_secs()));
            }
        }
    }

    fn write(&mut self, devices: &Devices) -> Result<(), Failure> {
        let Built { spec, notes, missing } = self.builder.build(devices)?;
        // A device that is not there may come.
        let missing = missing.into_iter().map(|failure| failure.to_string());
        let notes: BTreeSet<_> = notes.into_iter().chain(missing).collect();
        notes.difference(&self.noted).for_each(note);
        self.noted = notes;
        let text = spec.as_ref().map(text).transpose()?;
        match self.target.put(text.as_deref())? {
            Done::Nothing => return Ok(()),
            Done::Removed => note(format_args!("no device: removed \"{}\"", self.target.shown())),
            Done::Written => {
                let count = spec.map_or(0, |spec| spec.devices.len());
                note(format_args!(
                    "wrote \"{}\": {count} of {}",
                    self.target.shown(),
                    self.builder.wanted().kind
                ));
            }
        }
        self.writes += 1;
        Ok(())
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests;
