//! What a program says that it opened, held against what the kernel says.

use std::collections::BTreeMap;

use anyhow::Result;

use super::link;
use super::program::Program;
use super::trace::{End, Run};
use super::world::World;

/// Says what came of it, in a word or as `WRONG: …`. The program is stopped and has everything open.
pub(super) fn judge(world: &World, program: Program, run: &Run) -> Result<String> {
    let line = match said(&run.end) {
        Ok(line) => line,
        Err(lost) => return Ok(lost),
    };
    if let Some(index) = left_domain(world, program)? {
        return Ok(format!("WRONG: a protection domain was left on index {index}: {line}"));
    }
    let contexts = world.contexts()?;
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words[..] {
        // Nothing of a refused open stays.
        ["refused", why] if program.allocates() && !is_all(world, program, &contexts, None) => {
            format!("WRONG: {why}, and a context was left")
        }
        ["refused", why] => why.to_owned(),
        ["opened", ino, guid, index] => {
            let ino = if ino == "-" { world.first } else { ino.parse()? };
            let Some(asked) = world.instances.get(&ino) else {
                return Ok("WRONG: an unknown instance".to_owned());
            };
            let wrong = !is_all(world, program, &contexts, Some(asked.index))
                || (guid != "-" && guid.parse() != Ok(asked.guid))
                || (index != "-" && index.parse() != Ok(asked.index));
            match (wrong, contexts.contains_key(&asked.index)) {
                (true, _) => "WRONG: another device",
                (false, false) => "opened, gone since",
                (false, true) => "opened",
            }
            .to_owned()
        }
        _ => format!("WRONG: it said {line:?}"),
    })
}

/// The device that has more protection domains than those that were there all the while. A proof may allocate some;
/// it has to free them, unless the driver refuses to.
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

/// Whether each device has the contexts that it should, or none, where they were cut off: those that were there
/// all the while, and one more on the device that is said to have been opened.
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

/// What it said before it was stopped; the outcome where it did not live to say anything.
pub(super) fn said(end: &End) -> std::result::Result<&str, String> {
    match end {
        End::Said(line) => Ok(line),
        End::Died(how) => Err(format!("WRONG: died: {how}")),
        End::Hung(at) => Err(format!("WRONG: hung at {at}")),
    }
}
