use std::time::Instant;

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{Host, Registry};

use super::*;

const OPEN: Task = Task { open: true, ports: true };

fn device() -> Device {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    let host = Host::simulated(&machine).expect("a host");
    Registry::new(host).devices().expect("a list").by_name("rxe0").expect("listed")
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Answers what a worker does, and then does not return.
fn hangs_while_opening() -> Command {
    shell(r#"read -r request; echo '"Locked"'; exec sleep 600"#)
}

fn workers(command: fn() -> Command, timeout: Duration) -> Workers {
    let mut workers = Workers::new(timeout);
    workers.command = command;
    workers
}

#[test]
fn a_child_that_never_ends_is_killed_when_the_time_is_over() {
    let timeout = Duration::from_millis(300);
    let mut workers = workers(hangs_while_opening, timeout);
    // Each device gets a worker of its own.
    for _ in 0..2 {
        let started = Instant::now();
        let probed = workers.probe(&device(), OPEN);
        let took = started.elapsed();
        let Some(Trouble::TimedOut { doing: "opening it", left_behind: None, .. }) = probed.trouble
        else {
            panic!("{probed:?}");
        };
        assert!(probed.opened.is_none());
        assert!(took >= timeout && took < timeout + GRACE, "{took:?}");
    }
}

#[test]
fn a_child_that_cannot_be_killed_is_left_behind_and_named() {
    // What a process is like that sleeps uninterruptibly: SIGKILL has no effect on it.
    let mut workers = workers(hangs_while_opening, Duration::from_millis(300));
    workers.kill = |child| has_ended(child, Duration::from_millis(50));
    let started = Instant::now();
    let probed = workers.probe(&device(), OPEN);
    let Some(Trouble::TimedOut { left_behind: Some(pid), .. }) = probed.trouble else {
        panic!("{probed:?}");
    };
    drop(workers);
    assert!(started.elapsed() < Duration::from_secs(10), "it waited for the child");
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it still runs");
}

#[test]
fn a_child_that_is_slow_to_start_is_no_error_of_the_device() {
    let timeout = Duration::from_millis(100);
    let probed = workers(|| shell("exec sleep 600"), timeout).probe(&device(), OPEN);
    assert!(matches!(probed.trouble, Some(Trouble::NotReady { .. })), "{probed:?}");
    // Within the time for its start and for another probe it is not too slow.
    let command = || {
        shell(
            r#"read -r r; sleep 1.8; echo '"Locked"'; echo '{"Opened":{"Ok":null}}'; echo '{"Ports":[]}'"#,
        )
    };
    let probed = workers(command, Duration::from_millis(700)).probe(&device(), OPEN);
    assert!(probed.trouble.is_none(), "{probed:?}");
}

#[test]
fn a_child_waits_for_another_probe_for_the_whole_time() {
    let command = || {
        shell(
            r#"read -r request
               case $request in *'"wait":{"secs":60,"nanos":0}'*) echo '"Gone"';; esac"#,
        )
    };
    let probed = workers(command, Duration::from_secs(60)).probe(&device(), OPEN);
    assert!(matches!(probed.trouble, Some(Trouble::Gone)), "{probed:?}");
}

#[test]
fn a_result_before_the_hang_is_kept() {
    let command =
        || shell(r#"read -r r; echo '"Locked"'; echo '{"Opened":{"Ok":null}}'; exec sleep 600"#);
    let probed = workers(command, Duration::from_millis(300)).probe(&device(), OPEN);
    assert!(matches!(probed.opened, Some(Ok(()))));
    let Some(Trouble::TimedOut { doing, .. }) = probed.trouble else { panic!("no timeout") };
    assert!(doing.contains("ports"), "{doing}");
}

#[test]
fn one_worker_serves_all_devices_that_answer() {
    // Its second answer shows that it is the same process.
    let command = || {
        shell(
            r#"while read -r request; do
                 n=$((n + 1)); echo '"Locked"'; echo '{"Opened":{"Ok":null}}'
                 echo "{\"Ports\":[{\"port\":$n,\"state\":4,\"physical_state\":null,\"bytes_per_second\":null}]}"
               done"#,
        )
    };
    let mut workers = workers(command, Duration::from_secs(60));
    for expected in 1..=3 {
        let probed = workers.probe(&device(), OPEN);
        assert!(probed.trouble.is_none(), "{probed:?}");
        assert_eq!(probed.ports[0].port, expected);
    }
}

#[test]
fn a_worker_that_is_of_no_use_is_reported_as_such() {
    let commands: [fn() -> Command; 4] = [
        || Command::new("/no/such/program"),
        || shell("exit 1"),
        || shell("read -r request; echo nonsense; exec sleep 600"),
        || shell(r#"read -r request; echo '{"Ports":[]}'; exec sleep 600"#),
    ];
    for command in commands {
        let probed = workers(command, Duration::from_secs(60)).probe(&device(), OPEN);
        assert!(matches!(probed.trouble, Some(Trouble::Failed(_))), "{probed:?}");
    }
}

#[test]
fn a_worker_that_finds_another_probe_serves_the_next_device() {
    let command = || {
        shell(
            r#"read -r request; echo '{"Held":{"pid":4711,"was_killed":true}}'
               read -r request; echo '"Gone"'
               exec sleep 600"#,
        )
    };
    let mut workers = workers(command, Duration::from_secs(60));
    let held = Holder { pid: 4711, was_killed: true };
    let found = workers.probe(&device(), OPEN).trouble;
    assert!(matches!(found, Some(Trouble::Held(holder)) if holder == held));
    assert!(matches!(workers.probe(&device(), OPEN).trouble, Some(Trouble::Gone)));
}
