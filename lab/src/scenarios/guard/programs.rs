//! rdma-core's own programs, and perftest, with the guard and without it: they print and do the same.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest;

/// The addresses of two soft-RoCE devices, rxe0 and rxe1, whose packets go over a pair of network devices.
pub(super) const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

fn command(is_guarded: bool, program: &str, args: &[&str]) -> Command {
    let mut command = match is_guarded {
        true => Command::new("uverbs"),
        false => Command::new(program),
    };
    if is_guarded {
        command.args(["guard", "--", program]);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Two devices with traffic between them. The kernel would deliver what one of its own addresses sends to another one
/// by itself, so its table of local addresses is consulted last, and a rule sends these packets over the pair.
pub(super) fn two_devices() -> Result<()> {
    if Path::new("/sys/class/net/v0").exists() {
        guest::run("ip", &["link", "del", "v0"])?;
    }
    let ip = |line: &str| guest::run("ip", &line.split(' ').collect::<Vec<_>>()).map(drop);
    ip("link set lo up")?;
    ip("link add v0 address 02:00:00:00:09:01 type veth peer name v1 address 02:00:00:00:09:02")?;
    fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    // The rules stay from scenario to scenario.
    let rules = guest::stdout("ip", &["rule"])?;
    let has_rule = |pref| rules.lines().any(|rule| rule.starts_with(&format!("{pref}:")));
    if !has_rule(100) {
        ip("rule add pref 100 lookup local")?;
        ip("rule del pref 0")?;
    }
    for (number, address) in ADDRESSES.iter().enumerate() {
        let (device, other) = (format!("v{number}"), ADDRESSES[1 - number]);
        ip(&format!("addr add {address}/24 dev {device}"))?;
        ip(&format!("link set {device} up"))?;
        for setting in ["accept_local", "rp_filter"] {
            let value = if setting == "accept_local" { "1" } else { "0" };
            fs::write(format!("/proc/sys/net/ipv4/conf/{device}/{setting}"), value)?;
        }
        let (table, mac) = (10 + number, format!("02:00:00:00:09:0{}", 2 - number));
        ip(&format!("neigh replace {other} lladdr {mac} dev {device} nud permanent"))?;
        ip(&format!("route replace {other} dev {device} src {address} table {table}"))?;
        if !has_rule(table) {
            ip(&format!("rule add pref {table} iif lo from {address} to {other} lookup {table}"))?;
        }
        guest::run(
            "rdma",
            &["link", "add", &format!("rxe{number}"), "type", "rxe", "netdev", &device],
        )?;
    }
    Ok(())
}

/// The number of the GID of a device that stands for its IPv4 address, with RoCE v2.
fn gid(device: &str, address: &str) -> Result<String> {
    let numbers: Vec<u8> = address.split('.').map(str::parse).collect::<Result<_, _>>()?;
    let [a, b, c, d] = numbers[..] else { bail!("{address} is no address") };
    let wanted = format!("0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}");
    let port = format!("/sys/class/infiniband/{device}/ports/1");
    let is_wanted = |number: &u32| {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        read(format!("{port}/gids/{number}")) == wanted
            && read(format!("{port}/gid_attrs/types/{number}")) == "RoCE v2"
    };
    let found = (0..32).find(is_wanted);
    Ok(found.with_context(|| format!("{device} has no GID of {address}"))?.to_string())
}

fn ended(child: &mut Child, what: &str) -> Result<()> {
    let status = guest::wait(child, Duration::from_secs(60));
    let read = |pipe: Option<&mut dyn std::io::Read>| {
        let mut text = String::new();
        let _ = pipe.map(|pipe| pipe.read_to_string(&mut text));
        text
    };
    let out = read(child.stdout.as_mut().map(|pipe| pipe as _));
    let err = read(child.stderr.as_mut().map(|pipe| pipe as _));
    let status = status.with_context(|| format!("{what}: {out}{err}"))?;
    ensure!(status.success(), "{what}: {status}: {out}{err}");
    ensure!(!err.contains("uverbs-guard"), "{what}: {err}");
    Ok(())
}

/// A server and a client, both with the guard or both without it.
fn pair(is_guarded: bool, program: &str, server: &[&str], client: &[&str]) -> Result<()> {
    let started = Instant::now();
    let mut first =
        command(is_guarded, program, server).spawn().with_context(|| program.to_owned())?;
    std::thread::sleep(Duration::from_millis(1500));
    let mut second = command(is_guarded, program, client).spawn()?;
    let client = ended(&mut second, &format!("{program}, the client"));
    if client.is_err() {
        let _ = first.kill();
    }
    let server = ended(&mut first, &format!("{program}, the server"));
    client.and(server)?;
    println!("    {program}, guarded {is_guarded}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn output(is_guarded: bool, program: &str, args: &[&str]) -> Result<Output> {
    let output = command(is_guarded, program, args).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program}: {output:?}");
    Ok(output)
}

pub(in crate::scenarios) fn behave_the_same() -> Result<()> {
    two_devices()?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    for (program, args) in [
        ("ibv_devices", [].as_slice()),
        ("ibv_devinfo", &["-v"]),
        ("ibv_devinfo", &["-d", "rxe0"]),
        ("ibv_devinfo", &["-l"]),
    ] {
        let (plain, guarded) = (output(false, program, args)?, output(true, program, args)?);
        ensure!(!plain.stdout.is_empty(), "{program} {args:?} prints nothing");
        let is_same = plain.stdout == guarded.stdout && plain.stderr == guarded.stderr;
        ensure!(is_same, "{program} {args:?}: {plain:?}\n{guarded:?}");
    }
    guest::hca("del-sync name=tst")?;
    let gids = [gid("rxe0", ADDRESSES[0])?, gid("rxe1", ADDRESSES[1])?];
    guest::run("modprobe", &["rdma_ucm"])?;
    for is_guarded in [false, true] {
        for program in ["ibv_rc_pingpong", "ibv_ud_pingpong"] {
            let rest =
                |device: &'static str, gid| vec!["-d", device, "-g", gid, "-n", "50", "-s", "256"];
            let (server, mut client) = (rest("rxe0", gids[0].as_str()), rest("rxe1", &gids[1]));
            client.push("127.0.0.1");
            pair(is_guarded, program, &server, &client)?;
        }
        let [a, b] = ADDRESSES;
        let server = ["-s", "-a", a, "-C", "5"];
        pair(is_guarded, "rping", &server, &["-c", "-a", a, "-I", b, "-C", "5"])?;
        let perftest = |device: &'static str, gid| {
            vec!["-d", device, "-x", gid, "-n", "20", "-s", "1024", "-F"]
        };
        let (server, mut client) = (perftest("rxe0", gids[0].as_str()), perftest("rxe1", &gids[1]));
        client.push("127.0.0.1");
        pair(is_guarded, "ib_write_bw", &server, &client)?;
        async_events(is_guarded)?;
    }
    Ok(())
}

/// `ibv_asyncwatch` prints the events of a port that goes down and comes back.
fn async_events(is_guarded: bool) -> Result<()> {
    // Its output is buffered, because it is no terminal.
    let mut command = command(is_guarded, "ibv_asyncwatch", &["-d", "rxe1"]);
    let mut child = command.spawn().context("ibv_asyncwatch")?;
    let has_opened = || {
        let fds = format!("/proc/{}/fd", child.id());
        guest::names(&fds).iter().any(|fd| {
            fs::read_link(Path::new(&fds).join(fd))
                .is_ok_and(|to| to.starts_with("/dev/infiniband"))
        })
    };
    guest::until("ibv_asyncwatch to open the device", has_opened)?;
    std::thread::sleep(Duration::from_millis(500));
    for state in ["down", "up"] {
        guest::run("ip", &["link", "set", "v1", state])?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let is_alive = child.try_wait()?.is_none();
    child.kill()?;
    child.wait()?;
    ensure!(is_alive, "ibv_asyncwatch ended");
    // What `ip link set down` removed.
    let [a, b] = ADDRESSES;
    guest::run(
        "ip",
        &["neigh", "replace", a, "lladdr", "02:00:00:00:09:01", "dev", "v1", "nud", "permanent"],
    )?;
    guest::run("ip", &["route", "replace", a, "dev", "v1", "src", b, "table", "11"])?;
    Ok(())
}
