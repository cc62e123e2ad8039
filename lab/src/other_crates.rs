//! Programs that open a device with another crate, and have it proved (`examples/other-crates`).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::guest;

const PROGRAMS: [&str; 2] = ["on-ibverbs", "on-sideway"];

/// Starts a program, has something happen once it has listed, and returns what it prints after that.
fn run(program: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("tst").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let mut output = BufReader::new(child.stdout.take().context("stdout")?);
    let mut ready = String::new();
    output.read_line(&mut ready)?;
    let happened = meanwhile();
    child.stdin.take().context("stdin")?.write_all(b"\n")?;
    let mut text = String::new();
    output.read_to_string(&mut text)?;
    child.stderr.take().context("stderr")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    happened?;
    ensure!(ready == "ready\n" && status.success(), "{program}: {status}: {ready}{text}");
    Ok(text)
}

/// The device is opened by the other crate and proved; a replaced one is opened by it, too, and refused.
pub(crate) fn all() -> Result<()> {
    guest::clean()?;
    for program in PROGRAMS {
        guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
        let proved = run(program, || Ok(()))?;
        ensure!(proved.starts_with("proved: "), "{program}: {proved}");
        let refused = run(program, || {
            guest::hca("del-sync name=tst")?;
            guest::hca("add name=tst guid=00000000000000a0 disassociate=1")
        })?;
        ensure!(refused.starts_with("refused: Replaced: "), "{program}: {refused}");
        print!("{program}: {proved}{program}: {refused}");
        guest::hca("del-sync name=tst")?;
    }
    Ok(())
}
