//! Every way in which programs reach libibverbs and that the guard covers.

use anyhow::{Result, ensure};

use super::caller::{CLASSES, Caller, Under, opened, refused};
use super::hca::{add, replace};
use crate::guest;

/// A good handle opens; a handle of a device that was replaced is refused, with one line; a fresh one opens. Without the
/// guard, the replacement is opened.
pub(in crate::scenarios) fn each_class() -> Result<()> {
    for class in CLASSES {
        add("tst", 0xa0)?;
        let mut guarded = Caller::start(class, Under::Guard(&[]), "tst")?;
        let mut control = Caller::start(class, Under::Nothing, "tst")?;
        let name = class.name;
        let expect = |caller: &mut Caller, lists: bool, expected: String| -> Result<()> {
            let found = if lists { caller.list_and_open()? } else { caller.open()? };
            let what = if lists { "listed again" } else { "by the older list" };
            ensure!(found == expected, "{name}, {what}: expected {expected}, found {found}");
            Ok(())
        };
        for caller in [&mut guarded, &mut control] {
            expect(caller, false, opened(0xa0))?;
            let found = caller.free_and_open()?;
            ensure!(found == opened(0xa0), "{name}, the list was freed: {found}");
        }
        for guid in [0xa0, 0xb0] {
            replace(guid)?;
            expect(&mut control, false, opened(guid))?;
            expect(&mut guarded, false, refused())?;
            // Nobody but the control has a context there, and none is left.
            ensure!(guest::hca_value("tst", "contexts")? == "0", "{name}: a context is left");
            expect(&mut guarded, true, opened(guid))?;
            expect(&mut control, true, opened(guid))?;
        }
        let messages = guarded.end()?;
        ensure!(messages.lines().count() == 2, "{name}: {messages}");
        ensure!(
            messages.lines().all(|line| line.contains("refused: tst (uverbs0): ")),
            "{messages}"
        );
        println!("    {name}: {}", messages.lines().next().unwrap_or_default());
        control.end()?;
        guest::hca("del-sync name=tst")?;
    }
    Ok(())
}
