//! What a program says that it opened, held against what the kernel says.

use anyhow::Result;

use super::program::Program;
use super::trace::{End, Run};
use super::world::World;

/// Says what came of it, in a word or as `WRONG: …`. The program is stopped and has everything open.
pub(super) fn judge(world: &World, program: Program, run: &Run, disturbed: bool) -> Result<String> {
    let line = match said(&run.end) {
        Ok(line) => line,
        Err(lost) => return Ok(lost),
    };
    if disturbed && !run.reached {
        // With more threads than one the number of calls is not always the same.
        let may = run.threads > 1 && line.starts_with("opened");
        return Ok(if may { "not reached" } else { "WRONG: never came to this call" }.to_owned());
    }
    let contexts = world.contexts()?;
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words[..] {
        // Nothing of a refused open stays.
        ["refused", why] if program.allocates() && !contexts.is_empty() => {
            format!("WRONG: {why}, and a context was left")
        }
        ["refused", why] => why.to_owned(),
        ["opened", ino, guid, index] => {
            let ino = if ino == "-" { world.first } else { ino.parse()? };
            let Some(asked) = world.instances.get(&ino) else {
                return Ok("WRONG: an unknown instance".to_owned());
            };
            let wrong = contexts.keys().any(|index| *index != asked.index)
                || contexts.values().any(|count| *count != 1)
                || (guid != "-" && guid.parse() != Ok(asked.guid))
                || (index != "-" && index.parse() != Ok(asked.index));
            match (wrong, contexts.is_empty()) {
                (true, _) => "WRONG: another device",
                (false, true) => "opened, gone since",
                (false, false) => "opened",
            }
            .to_owned()
        }
        _ => format!("WRONG: it said {line:?}"),
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
