//! Programs as a user starts them: the broker of the examples, `uverbs show` and `uverbs check`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::expect::{listed, registry};
use crate::guest;

pub(super) fn broker() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    for name in ["rxe0", "tst"] {
        let output = guest::stdout("broker", &[name])?;
        let worked = output.contains("broker: ") && output.contains("worker: ");
        ensure!(
            worked && output.contains("PD of a new thread, under the index: listed"),
            "{output}"
        );
    }
    ensure!(guest::hca_value("tst", "contexts")? == "0", "a context is left");
    let output = guest::stdout("broker", &["--try-forbidden", "tst"])?;
    super::traced::refuses(&output, &[])?;
    ensure!(output.contains("worker: tst"), "{output}");
    ensure!(guest::hca_value("tst", "contexts")? == "0", "a context is left");
    Ok(())
}

pub(super) fn show() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    let json = |program: &str, args: &[&str]| -> Result<Value> {
        serde_json::from_str(&guest::stdout(program, args)?).context(program.to_owned())
    };
    let shown = json("uverbs", &["show", "--json", "rxe0"])?;
    let rdma = json("rdma", &["-j", "dev", "show", "rxe0"])?;
    let link = json("rdma", &["-j", "link", "show", "rxe0/1"])?;
    let (device, port) = (&shown["device"], &shown["opened"]["ports"][0]);
    ensure!(device["index"] == rdma[0]["ifindex"], "{device} {rdma}");
    for key in ["node_guid", "sys_image_guid"] {
        ensure!(device[key] == rdma[0][key], "{key}: {device} {rdma}");
    }
    ensure!(port["state"] == link[0]["state"], "{port} {link}");
    let physical =
        |value: &Value| value.as_str().unwrap_or_default().replace('_', "").to_lowercase();
    let (ours, theirs) = (&port["physical_state"], &link[0]["physical_state"]);
    ensure!(physical(ours) == physical(theirs), "{port} {link}");
    let gid = &port["gids"][0];
    ensure!(gid["netdev"] == link[0]["netdev"] && gid["netdev"] == "d0", "{port} {link}");
    ensure!(gid["netdev_index"] == link[0]["netdev_index"], "{port} {link}");
    let key = fs::read_to_string("/sys/class/infiniband/rxe0/ports/1/pkeys/0")?;
    let key = u16::from_str_radix(key.trim().trim_start_matches("0x"), 16)?;
    ensure!(port["pkeys"] == serde_json::json!([key]), "{port}");

    let closed = json("uverbs", &["show", "--json", "--no-open", "rxe0"])?;
    ensure!(closed["device"] == *device && closed["opened"].is_null(), "{closed}");
    let text = guest::stdout("uverbs", &["show", "rxe0"])?;
    for words in ["limits", "port 1", "ACTIVE (LinkUp)", "RoCE v2  d0", "max_qp "] {
        ensure!(text.contains(words), "no {words:?} in:\n{text}");
    }
    Ok(())
}

/// A node that looks right but is bound to a device whose removal waits for its last descriptor. Only opening it
/// shows that.
pub(super) fn check() -> Result<()> {
    const NODE: &str = "/dev/infiniband/uverbs0";
    let check = |args: &[&str], status: i32| -> Result<Value> {
        let output = Command::new("uverbs").args(["check", "--json"]).args(args).output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(status), "{args:?}: {}: {printed}", output.status);
        Ok(serde_json::from_str(&printed)?)
    };
    guest::hca("add name=old guid=00000000000000a0 disassociate=0")?;
    let number = guest::device_number("uverbs0")?;
    fs::remove_file(NODE)?;
    guest::mknod(NODE, number)?;
    let context = listed(&registry()?, "old")?.open()?;
    guest::hca("del name=old")?;
    guest::take_over("new", "guid=00000000000000a0 disassociate=0")?;

    let looked = check(&[], 0)?;
    let words = format!("{NODE} is a character device {}:{}", number.0, number.1);
    ensure!(looked["checked"].to_string().contains(&words), "{looked}");
    ensure!(looked["opens"].is_null(), "{looked}");
    ensure!(guest::hca_value("new", "allocs")? == "0", "it was opened");
    let opened = check(&["--open"], 1)?;
    let attempt = &opened["opens"][0];
    ensure!(attempt["device"] == "new (uverbs0)" && attempt["proven"] == false, "{opened}");
    ensure!(attempt["error"]["kind"] == "node_mismatch", "{opened}");

    drop(context);
    guest::hca("wait-idle")?;
    let opened = check(&["--open"], 0)?;
    ensure!(opened["opens"][0]["proven"] == true, "{opened}");
    ensure!(guest::hca_value("new", "contexts")? == "0", "a context is left");
    Ok(())
}

/// A hold ends when the device is removed, whether or not its driver disassociates.
pub(super) fn hold() -> Result<()> {
    for disassociate in [1, 0] {
        guest::hca(&format!("add name=tst guid=00000000000000a0 disassociate={disassociate}"))?;
        let mut child = Command::new("uverbs")
            .args(["open", "--json", "--hold", "60", "tst"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut json =
            || -> Result<Value> { Ok(serde_json::from_str(&lines.next().context("it ended")??)?) };
        ensure!(json()?["proven"] == true);
        guest::hca("del name=tst")?;
        let ended = json()?;
        ensure!(ended["error"]["kind"] == "removed", "{ended}");
        let status = guest::wait(&mut child, Duration::from_secs(10))?;
        ensure!(status.code() == Some(1), "{status}");
        guest::hca("wait-idle")?;
    }
    Ok(())
}

/// In exclusive mode `check` names the devices of another network namespace, and so does the error of an open.
pub(super) fn exclusive() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    guest::run("rdma", &["system", "set", "netns", "exclusive"])?;
    let looked = moved_away();
    guest::run("ip", &["netns", "del", "other"])?;
    // The kernel refuses while the namespace is being deleted.
    guest::until("shared again", || {
        guest::run("rdma", &["system", "set", "netns", "shared"]).is_ok()
    })?;
    looked
}

fn moved_away() -> Result<()> {
    guest::run("ip", &["netns", "add", "other"])?;
    guest::run("rdma", &["dev", "set", "tst", "netns", "other"])?;
    let check = ["check", "--json", "--fail-on", "warning"];
    let check = Command::new("uverbs").args(check).output()?;
    let json: Value = serde_json::from_slice(&check.stdout)?;
    let findings = json["findings"].as_array().context("no findings")?;
    ensure!(check.status.code() == Some(4) && findings.len() == 1, "{json}");
    ensure!(findings[0]["subject"] == "network namespace", "{json}");
    let message = findings[0]["message"].to_string();
    ensure!(
        message.contains("tst (uverbs1) may belong to") && !message.contains("rxe0"),
        "{message}"
    );
    ensure!(!json["checked"].to_string().contains("uverbs1 is a character device"), "{json}");
    let open = Command::new("uverbs").args(["open", "tst"]).output()?;
    let error = String::from_utf8_lossy(&open.stderr);
    ensure!(open.status.code() == Some(1), "{error}");
    ensure!(error.contains("another network namespace"), "{error}");
    Ok(())
}
