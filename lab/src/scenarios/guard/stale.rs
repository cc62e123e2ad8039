//! Handles that are older than their devices, or join what belongs to several.

use std::fs;

use anyhow::{Result, ensure};

use super::caller::{Caller, Class, DLVSYM, LAZY, Under, opened, refused};
use super::hca::{add, replace};
use crate::guest;

/// ib_core is reloaded, and a device of the same name, number and index comes.
pub(in crate::scenarios) fn core_reloaded() -> Result<()> {
    // A list that the guard sees, and one that it does not. A reload takes seconds.
    for class in [LAZY, DLVSYM] {
        for guid in [0xa0, 0xb0] {
            guest::reload(true)?;
            add("tst", 0xa0)?;
            let index = guest::hca_value("tst", "index")?;
            let mut guarded = Caller::start(class, Under::Guard(&[]), "tst")?;
            let mut control = Caller::start(class, Under::Nothing, "tst")?;
            guest::hca("del-sync name=tst")?;
            guest::reload(true)?;
            add("tst", guid)?;
            ensure!(guest::hca_value("tst", "index")? == index, "another index");
            let name = class.name;
            ensure!(control.open()? == opened(guid), "the control saw through it");
            let first = guarded.open()?;
            ensure!(first == refused(), "{name}, GUID {guid:x}: {first}");
            // libibverbs returns its old handle. With the GUID of the new device it is a good one; otherwise it
            // stays refused, and so does all that is listed behind the guard's back.
            let again = guarded.list_and_open()?;
            let is_good = class.is_list_seen && guid == 0xa0;
            let expected = if is_good { opened(guid) } else { refused() };
            ensure!(again == expected, "{name}, GUID {guid:x}, listed again: {again}");
            let messages = guarded.end()?;
            ensure!(messages.contains("epoch of ib_core"), "{messages}");
            control.end()?;
            guest::hca("del-sync name=tst")?;
        }
    }
    Ok(())
}

/// Two devices swap their names. libibverbs' next list still has the old ones.
pub(in crate::scenarios) fn names_swapped() -> Result<()> {
    let swapped = |class: Class, under: Under<'_>| -> Result<(String, String)> {
        add("tst", 0xa0)?;
        add("other", 0xb0)?;
        let mut caller = Caller::start(class, under, "tst")?;
        guest::rename("tst", "third")?;
        guest::rename("other", "tst")?;
        guest::rename("third", "other")?;
        let found = caller.list_and_open()?;
        let messages = caller.end()?;
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
        Ok((found, messages))
    };
    let (found, _) = swapped(LAZY, Under::Nothing)?;
    ensure!(found == opened(0xa0), "libibverbs has the new name by itself: {found}");
    let (found, messages) = swapped(LAZY, Under::Guard(&[]))?;
    ensure!(found == opened(0xb0), "{found}: {messages}");
    ensure!(
        messages.lines().count() == 2 && messages.contains("still had the name tst"),
        "{messages}"
    );
    // A list that the guard does not see keeps the old names. A handle with such a name is refused, or passes if the
    // user allows that.
    let (found, messages) = swapped(DLVSYM, Under::Guard(&[]))?;
    ensure!(found == refused() && messages.contains("name of the handle"), "{found}: {messages}");
    let (found, _) = swapped(DLVSYM, Under::Guard(&["--allow-old-names"]))?;
    ensure!(found == opened(0xa0), "{found}");
    // After a list that was seen, an old handle with an old name is a renamed device.
    add("tst", 0xa0)?;
    let mut caller = Caller::start(LAZY, Under::Guard(&[]), "tst")?;
    guest::rename("tst", "renamed")?;
    let found = caller.open()?;
    ensure!(found == opened(0xa0), "renamed: {found}");
    let messages = caller.end()?;
    ensure!(messages.is_empty(), "{messages}");
    Ok(())
}

/// A device moves to another network namespace and back.
pub(in crate::scenarios) fn moved() -> Result<()> {
    guest::hca("del-all")?;
    guest::run("rdma", &["system", "set", "netns", "exclusive"])?;
    let done = moved_exclusive();
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;
    for name in ["elsewhere", "here"] {
        let _ = guest::run("ip", &["netns", "del", name]);
    }
    guest::run("rdma", &["system", "set", "netns", "shared"])?;
    done
}

fn moved_exclusive() -> Result<()> {
    guest::run("ip", &["netns", "add", "elsewhere"])?;
    guest::run("ip", &["netns", "attach", "here", &std::process::id().to_string()])?;
    add("tst", 0xa0)?;
    add("other", 0xb0)?;
    let mut caller = Caller::start(LAZY, Under::Guard(&[]), "tst")?;
    guest::run("rdma", &["dev", "set", "tst", "netns", "elsewhere"])?;
    let away = caller.open()?;
    ensure!(away.starts_with("refused"), "away: {away}");
    // Its number is taken meanwhile.
    guest::hca("del-sync name=other")?;
    add("tst2", 0xc0)?;
    let inside = ["netns", "exec", "elsewhere", "rdma", "dev", "set", "tst", "netns", "here"];
    guest::run("ip", &inside)?;
    let back = caller.open()?;
    ensure!(back == opened(0xa0) || back == refused(), "back: {back}");
    let fresh = caller.list_and_open()?;
    ensure!(fresh == opened(0xa0), "listed again: {fresh}");
    println!("    away: {away}; back: {back}");
    let messages = caller.end()?;
    print!("{messages}");
    Ok(())
}

/// Where nothing can be proved, an open is refused, unless the user allows it.
pub(in crate::scenarios) fn unproven() -> Result<()> {
    add("tst", 0xa0)?;
    guest::hca("set name=tst fail=ALLOC_PD:12")?;
    let mut caller = Caller::start(LAZY, Under::Guard(&[]), "tst")?;
    let found = caller.open()?;
    let messages = caller.end()?;
    ensure!(found == refused() && messages.contains("ALLOC_PD"), "{found}: {messages}");
    let mut caller = Caller::start(LAZY, Under::Guard(&["--allow-unproven"]), "tst")?;
    let found = caller.open()?;
    let messages = caller.end()?;
    ensure!(found == opened(0xa0) && messages.contains("UNPROVEN: tst"), "{found}: {messages}");
    // What is contradicted is refused all the same.
    let mut caller = Caller::start(LAZY, Under::Guard(&["--allow-unproven"]), "tst")?;
    replace(0xa0)?;
    let found = caller.open()?;
    ensure!(found == refused(), "{found}");
    caller.end()?;
    // In the log, and nowhere else.
    let mut caller = Caller::start(LAZY, Under::Guard(&["--log", "/tmp/guard.log"]), "tst")?;
    replace(0xa0)?;
    let found = caller.open()?;
    let messages = caller.end()?;
    let log = fs::read_to_string("/tmp/guard.log")?;
    ensure!(
        found == refused() && messages.is_empty() && log.lines().count() == 1,
        "{messages}{log}"
    );
    println!("    {}", log.trim_end());
    Ok(())
}
