//! Compares what a program reports that it opened with the kernel's state.

use std::collections::BTreeMap;

use anyhow::Result;

use super::link;
use super::program::Program;
use super::trace::{End, Run};
use super::world::World;

/// Returns the outcome, as a word or as `WRONG: …`. The program is stopped and has everything open.
pub(super) fn judge(world: &World, program: Program, run: &Run) -> Result<String> {
    let line = match report(&run.end) {
        Ok(line) => line,
        Err(lost) => return Ok(lost),
    };
    if let Some(index) = left_domain(world, program)? {
        return Ok(format!("WRONG: a protection domain was left on index {index}: {line}"));
    }
    let contexts = world.contexts()?;
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words[..] {
        // A refused open leaves nothing.
        ["refused", why] if program.allocates() && !is_all(world, program, &contexts, None) => {
            format!("WRONG: {why}, and a context was left")
        }
        ["refused", why] => why.to_owned(),
        ["opened", ino, guid, index] => {
            let wanted = match (ino, ino.strip_prefix('#')) {
                ("-", _) => world.instances.get(&world.first),
                (_, Some(index)) => {
                    let index: u32 = index.parse()?;
                    world.instances.values().find(|instance| instance.index == index)
                }
                (ino, None) => world.instances.get(&ino.parse()?),
            };
            let Some(wanted) = wanted else {
                return Ok("WRONG: an unknown instance".to_owned());
            };
            let wrong = !is_all(world, program, &contexts, Some(wanted.index))
                || (guid != "-" && guid.parse() != Ok(wanted.guid))
                || (index != "-" && index.parse() != Ok(wanted.index));
            match (wrong, contexts.contains_key(&wanted.index)) {
                (true, _) => "WRONG: another device",
                (false, false) => "opened, gone since",
                (false, true) => "opened",
            }
            .to_owned()
        }
        _ => format!("WRONG: it reported {line:?}"),
    })
}

/// The device that has more protection domains than those that existed throughout. A proof may allocate some, but
/// has to free them, unless the driver refuses to.
fn left_domain(world: &World, program: Program) -> Result<Option<u32>> {
    if world.keeps_domains {
        return Ok(None);
    }
    // The program's own are on the right device, or on its replacement, if that came before the program opened it.
    let mut own = program.keeps_right_domains();
    for (ino, instance) in &world.instances {
        let mut expected = instance.domains;
        if *ino == world.first {
            expected += world.domains_besides();
        }
        if Some(instance.index) == world.old {
            expected += program.keeps_wrong();
        }
        let more = link::domains(instance.index)?.saturating_sub(expected);
        if more > own {
            return Ok(Some(instance.index));
        }
        own -= more;
    }
    Ok(None)
}

/// Whether each device has the contexts that it should have, or none if its driver disassociated them: those that
/// existed throughout, and one more on the device that was reported as opened.
fn is_all(
    world: &World,
    program: Program,
    contexts: &BTreeMap<u32, usize>,
    opened: Option<u32>,
) -> bool {
    let first = world.instances.get(&world.first).map(|first| first.index);
    contexts.iter().all(|(index, count)| {
        let mut expected = usize::from(opened == Some(*index));
        if Some(*index) == first {
            expected += world.besides() + program.keeps_right();
        }
        if Some(*index) == world.old {
            expected += program.keeps_wrong();
        }
        *count == expected
    })
}

/// What the program reported before it was stopped; the outcome if it did not live to report.
pub(super) fn report(end: &End) -> std::result::Result<&str, String> {
    match end {
        End::Reported(line) => Ok(line),
        End::Died(how) => Err(format!("WRONG: died: {how}")),
        End::Hung(at) => Err(format!("WRONG: hung at {at}")),
    }
}
