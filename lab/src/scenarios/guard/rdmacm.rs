//! A program on librdmacm, which lists and opens devices by itself, once for the process.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::hca::{add, replace_named};
use super::programs::{ADDRESSES, two_devices};
use crate::guest;

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(is_guarded: bool) -> Result<Self> {
        const NAME: &str = "ibv-rdmacm";
        let mut command = Command::new(if is_guarded { "uverbs" } else { NAME });
        command.args(is_guarded.then_some(["guard", "--", NAME]).into_iter().flatten());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(NAME)?;
        let (input, output) = (child.stdin.take().context("stdin")?, child.stdout.take());
        Ok(Self { child, input, output: BufReader::new(output.context("stdout")?) })
    }

    fn request(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        self.request(line)?;
        self.answer()
    }

    /// The uverbs nodes that it has open. A context has one descriptor of its node.
    fn nodes(&self) -> Vec<String> {
        let fds = format!("/proc/{}/fd", self.child.id());
        let links = guest::names(&fds).into_iter().filter_map(|fd| {
            let target = fs::read_link(Path::new(&fds).join(fd)).ok()?;
            Some(target.strip_prefix("/dev/infiniband").ok()?.display().to_string())
        });
        let mut nodes: Vec<_> = links.filter(|name| name.starts_with("uverbs")).collect();
        nodes.sort();
        nodes
    }

    fn end(self) -> Result<String> {
        let Self { mut child, input, output: _ } = self;
        drop(input);
        let mut messages = String::new();
        child.stderr.take().context("stderr")?.read_to_string(&mut messages)?;
        let status = child.wait()?;
        ensure!(status.success(), "{status}: {messages}");
        Ok(messages)
    }
}

fn has(answer: &str, name: &str, guid: u8) -> bool {
    answer.split(' ').any(|word| word == format!("{name}={guid:016x}"))
}

fn names(answer: &str, name: &str) -> bool {
    answer.split(' ').any(|word| word.starts_with(&format!("{name}=")))
}

/// librdmacm lists and then opens all devices. One is replaced in between, which is refused; another one cannot be proved
/// at first. The devices beside them work all the while.
pub(in crate::scenarios) fn after_a_refusal() -> Result<()> {
    two_devices()?;
    guest::run("modprobe", &["rdma_ucm"])?;
    for is_guarded in [false, true] {
        // It is opened before the others: they have higher indices.
        add("slow", 0x10)?;
        add("tst", 0xa0)?;
        add("failing", 0xc0)?;
        guest::hca("set name=slow delay_ms=3000")?;
        guest::hca("set name=failing fail=ALLOC_PD:12")?;
        let slow = number_of("slow")?;
        let mut program = Program::start(is_guarded)?;
        program.request("devices")?;
        guest::until("it to open the first one", || program.nodes().contains(&slow))?;
        replace_named("tst", 0xb0)?;
        let first = program.answer()?;
        ensure!(
            has(&first, "slow", 0x10) && names(&first, "rxe0") && names(&first, "rxe1"),
            "{first}"
        );
        let nodes = program.nodes();
        if is_guarded {
            ensure!(!names(&first, "tst") && !names(&first, "failing"), "{first}");
            for refused in ["tst", "failing"] {
                ensure!(
                    guest::hca_value(refused, "contexts")? == "0",
                    "{refused}: a context is left"
                );
                ensure!(
                    !nodes.contains(&number_of(refused)?),
                    "{refused}: a descriptor is left: {nodes:?}"
                );
            }
        } else {
            ensure!(has(&first, "tst", 0xb0), "the control saw through it: {first}");
        }
        let talked = program.ask(&format!("talk {} {}", ADDRESSES[0], ADDRESSES[1]))?;
        ensure!(talked == "talked", "after a refusal: {talked}");
        // A replacement has a handle of its own in the next list. What failed once stays dead for librdmacm, as long as
        // libibverbs has the handle: it comes back as another device, or in another process.
        guest::hca("set name=failing fail=ALLOC_PD:0")?;
        let second = program.ask("devices")?;
        println!("    guarded {is_guarded}: {first}; then {second}");
        ensure!(has(&second, "tst", 0xb0), "the replacement: {second}");
        ensure!(names(&second, "failing") != is_guarded, "{second}");
        replace_named("failing", 0xc0)?;
        let third = program.ask("devices")?;
        ensure!(has(&third, "failing", 0xc0), "replaced: {third}");
        let talked = program.ask(&format!("talk {} {}", ADDRESSES[1], ADDRESSES[0]))?;
        ensure!(talked == "talked", "at the end: {talked}");
        let messages = program.end()?;
        print!("{messages}");
        let refusals = messages.lines().filter(|line| line.contains("refused: ")).count();
        ensure!(refusals == if is_guarded { 2 } else { 0 }, "{messages}");
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
    }
    Ok(())
}

/// The uverbs node of a device.
fn number_of(name: &str) -> Result<String> {
    let nodes = guest::names("/sys/class/infiniband_verbs");
    let found = nodes.into_iter().find(|node| guest::ibdev(node).is_ok_and(|ibdev| ibdev == name));
    found.with_context(|| format!("{name} has no node"))
}
