//! Containers of real runtimes: what the library proves inside them, and what they get when virtual functions change
//! places.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use uverbs::Guid;

use crate::container::{self, CDI_DIRECTORY, Container, Hook, Network, Runtime};
use crate::syslog::Syslog;
use crate::{functions, guest};

/// A virtual function that a container is given, and one that takes its number.
struct Functions {
    first: String,
    second: String,
    /// The name of the first one's device, and the path of its node.
    name: String,
    node: PathBuf,
}

impl Functions {
    /// The first is bound, the second is not.
    fn make() -> Result<Self> {
        functions::make(2)?;
        let (first, second) = (functions::virtual_function(0)?, functions::virtual_function(1)?);
        functions::bind(&first)?;
        let verbs = functions::verbs(&first)?;
        let node = Path::new("/dev/infiniband").join(&verbs.uverbs);
        Ok(Self { first, second, name: verbs.name, node })
    }

    /// The second takes the name, the number and the device number of the first.
    fn swap(&self) -> Result<()> {
        functions::swap(&self.first, &self.second)
    }

    /// A container that is given the first function's node, and lists and opens its device.
    fn opener(&self, runtime: Runtime) -> Container {
        let script =
            format!("ls /dev/infiniband; uverbs list --json; uverbs open --json {}", self.name);
        let container = Container::new(runtime, &["sh", "-c", &script]);
        Container { devices: vec![self.node.clone()], ..container }
    }
}

/// What the opener printed: the list and the open.
fn documents(functions: &Functions, printed: &str) -> Result<(Value, Value)> {
    let node = functions.node.file_name().context("no name")?.to_string_lossy().into_owned();
    let json = printed.strip_prefix(&format!("{node}\n"));
    let json = json.with_context(|| format!("not {node} alone in /dev/infiniband: {printed}"))?;
    let documents: Vec<Value> =
        serde_json::Deserializer::from_str(json).into_iter().collect::<Result<_, _>>()?;
    let documents = <[Value; 2]>::try_from(documents);
    let [list, open] = documents.ok().with_context(|| format!("not two documents: {json}"))?;
    Ok((list, open))
}

/// Requires that the device is proved, and is that of a function.
fn proves(functions: &Functions, container: Container, address: &str) -> Result<()> {
    let output = container.run()?;
    let (list, open) = documents(functions, output.success()?)?;
    // sysfs has every device of the host, here those of the physical function and of the first virtual one.
    ensure!(list["devices"].as_array().is_some_and(|devices| devices.len() == 2), "{list}");
    ensure!(open["proven"] == true, "{open}");
    let guid = Guid(functions::guid(address)?).to_string();
    ensure!(open["attributes"]["node_guid"] == *guid, "{open}");
    Ok(())
}

/// Requires that nothing can be proved. The kernel does not even permit an open without a proof
/// (`rdma_dev_access_netns`).
fn proves_nothing(functions: &Functions, container: Container) -> Result<()> {
    let output = container.clone().run()?;
    ensure!(output.status == Some(1), "{output:?}");
    let (list, open) = documents(functions, &output.stdout)?;
    ensure!(list["devices"].as_array().is_some_and(|devices| devices.len() == 2), "{list}");
    ensure!(open["error"]["kind"] == "other_namespace", "{open}");
    let command = ["uverbs", "open", "--json", "--allow-unproven", &functions.name];
    let command = command.map(str::to_owned).to_vec();
    let output = Container { command, ..container }.run()?;
    ensure!(output.status == Some(1), "{output:?}");
    let open: Value = serde_json::from_str(&output.stdout)?;
    let error = &open["error"];
    ensure!(error["kind"] == "permission_denied" && error["step"] == "open", "{open}");
    Ok(())
}

/// Runs one row of a table.
fn row(what: &str, runtime: Runtime, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    run().with_context(|| format!("{runtime:?}, {what}"))?;
    println!("    {runtime:?}, {what}: {:.1?}", began.elapsed());
    Ok(())
}

/// In shared mode everything is proved, whatever a container may not do.
pub(super) fn shared(runtime: Runtime) -> Result<()> {
    let functions = Functions::make()?;
    let plain = functions.opener(runtime);
    let of_host = Container { network: Network::Host, ..plain.clone() };
    let mapped = Container { user_namespace: true, ..plain.clone() };
    let user = Container { uid: 1000, ..plain.clone() };
    let powerless = Container { drops_capabilities: true, ..plain.clone() };
    let filtered = Container { seccomp: true, ..plain.clone() };
    let read_only = Container { read_only: true, ..plain.clone() };
    let restricted =
        Container { uid: 1000, drops_capabilities: true, seccomp: true, ..read_only.clone() };
    let mut rows = vec![
        ("own network", plain),
        ("host's network", of_host.clone()),
        ("user namespace, default seccomp", Container { seccomp: true, ..mapped }),
        ("user 1000, no capabilities, default seccomp, read-only", restricted),
    ];
    // One by one where a container takes the least time.
    if runtime == Runtime::Crun {
        rows.extend([
            ("user namespace, host's network", Container { user_namespace: true, ..of_host }),
            ("user 1000", user),
            ("no capabilities", powerless),
            ("default seccomp", filtered),
            ("read-only", read_only),
        ]);
    }
    for (what, container) in rows {
        row(what, runtime, || proves(&functions, container, &functions.first))?;
    }
    Ok(())
}

/// In exclusive mode a container with a network namespace of its own proves nothing, unless the device is moved there.
pub(super) fn exclusive() -> Result<()> {
    let functions = Functions::make()?;
    set_netns("exclusive")?;
    let looked = exclusively(&functions);
    set_netns("shared")?;
    looked
}

/// The kernel refuses while a namespace other than the first one is there, or still being deleted.
fn set_netns(mode: &str) -> Result<()> {
    guest::until(mode, || guest::run("rdma", &["system", "set", "netns", mode]).is_ok())
}

fn exclusively(functions: &Functions) -> Result<()> {
    for runtime in Runtime::ALL {
        let own = functions.opener(runtime);
        let of_host = Container { network: Network::Host, ..own.clone() };
        row("host's network", runtime, || proves(functions, of_host, &functions.first))?;
        row("own network", runtime, || proves_nothing(functions, own.clone()))?;
        // The remedy: the device moves to the container before the program starts, and returns when that has ended.
        let script = format!(
            "exec >/tmp/hook 2>&1; pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); \
             ip netns attach lab $pid && rdma dev set {} netns lab && ip netns del lab",
            functions.name
        );
        let moved = Container { hooks: vec![hook(&script)], ..own };
        row("own network, device moved there", runtime, || {
            let proved = proves(functions, moved, &functions.first);
            proved.with_context(|| format!("{:?}", fs::read_to_string("/tmp/hook")))
        })?;
        guest::until("the device to return", || {
            guest::stdout("rdma", &["dev"]).is_ok_and(|list| list.contains(&functions.name))
        })?;
    }
    Ok(())
}

/// A container is created for one function, and started when another one has its number: it gets the other one, and the
/// proof inside is right about that.
pub(super) fn control() -> Result<()> {
    for runtime in Runtime::ALL {
        row("function swapped before the start", runtime, || {
            let functions = Functions::make()?;
            let prepared = functions.opener(runtime).prepare()?;
            functions.swap()?;
            let output = prepared.run()?;
            let (_, open) = documents(&functions, output.success()?)?;
            ensure!(open["proven"] == true, "{open}");
            let guid = Guid(functions::guid(&functions.second)?).to_string();
            ensure!(open["attributes"]["node_guid"] == *guid, "{open}");
            let allocs = guest::hca_value(&functions.name, "allocs")?;
            ensure!(allocs == "1", "{allocs} contexts were allocated");
            functions::release_all()
        })?;
    }
    Ok(())
}

const KIND: &str = "example.org/rdma";

/// A CDI file with the device of a function. Its hook passes on what it gets.
fn cdi_file(functions: &Functions, hook: &Hook) -> Result<()> {
    let file = json!({
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": [{
            "name": functions.first,
            "containerEdits": {
                "env": [format!("FUNCTION={}", functions.first)],
                "deviceNodes": [{
                    "path": functions.node, "fileMode": 0o666, "permissions": "rw",
                }],
                "hooks": [{
                    "hookName": "createRuntime",
                    "path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout,
                }],
            },
        }],
    });
    fs::create_dir_all(CDI_DIRECTORY)?;
    fs::write(Path::new(CDI_DIRECTORY).join("lab.json"), serde_json::to_vec(&file)?)?;
    Ok(())
}

/// A hook that runs a shell script.
fn hook(script: &str) -> Hook {
    Hook {
        path: "/usr/bin/sh".into(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/bin".to_owned()],
        timeout: 10,
    }
}

/// The boot id that a hook finds after a reboot, as far as it can see.
const OTHER_BOOT: &str = "11111111-2222-4333-8444-555555555555\n";

pub(super) fn cdi_and_hooks() -> Result<()> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    fs::write("/tmp/boot_id", OTHER_BOOT)?;
    guest::run("mount", &["--bind", "/tmp/boot_id", BOOT_ID])?;
    let done = cdi_and_hooks_in_another_boot();
    guest::run("umount", &[BOOT_ID])?;
    done
}

fn cdi_and_hooks_in_another_boot() -> Result<()> {
    let functions = Functions::make()?;
    let syslog = Syslog::start()?;
    let state = Path::new("/tmp/state");
    cdi_file(&functions, &hook("cat >/tmp/state; cat /proc/sys/kernel/random/boot_id >/tmp/boot"))?;
    for runtime in Runtime::ALL {
        let script = format!("echo $FUNCTION; uverbs open --json {}", functions.name);
        let container = Container {
            cdi: vec![format!("{KIND}={}", functions.first)],
            ..Container::new(runtime, &["sh", "-c", &script])
        };
        let _ = fs::remove_file(state);
        row("CDI device", runtime, || {
            let output = container.clone().run()?;
            let printed = output.success()?;
            let json = printed.strip_prefix(&format!("{}\n", functions.first));
            let open: Value = serde_json::from_str(json.with_context(|| printed.to_owned())?)?;
            ensure!(open["proven"] == true, "{open}");
            let state: Value = serde_json::from_slice(&fs::read(state)?)?;
            ensure!(state["pid"].as_u64().is_some_and(|pid| pid > 1), "{state}");
            ensure!(fs::read_to_string("/tmp/boot")? == OTHER_BOOT, "the hook saw another boot id");
            Ok(())
        })?;
        row("unknown CDI device", runtime, || {
            let cdi = vec![format!("{KIND}=0000:3b:1f.7")];
            let refused = Container { cdi, ..container.clone() }.run();
            let is_refused = refused.map_or(true, |output| output.status != Some(0));
            ensure!(is_refused, "it was run");
            Ok(())
        })?;
        row("hook that refuses", runtime, || {
            let hooks = vec![hook("echo refused >&2; logger refused; exit 1")];
            let output = Container { hooks, ..container }.run()?;
            let messages = syslog.messages()?;
            let is_logged = messages.len() == 1 && messages[0].ends_with("refused");
            ensure!(is_logged, "{messages:?}, {output:?}");
            ensure!(output.status != Some(0) && output.stdout.is_empty(), "{output:?}");
            // crun discards what it prints.
            let shows = output.stderr.contains("refused");
            ensure!(shows == (runtime == Runtime::Runc), "{output:?}");
            Ok(())
        })?;
    }
    fs::remove_file(Path::new(CDI_DIRECTORY).join("lab.json"))?;
    Ok(())
}

pub(super) fn promtool() -> Result<()> {
    let path = Path::new("/tmp/metrics.prom");
    let good = "# HELP lab_devices Devices of the lab.\n# TYPE lab_devices gauge\nlab_devices 1\n";
    for (text, status) in [
        (good, 0),
        (good.trim_end(), 1),
        ("# TYPE lab_devices gauge\nlab_devices 1\n", 3),
        ("lab_devices{name=\"a\\x20b\"} 1\n", 1),
    ] {
        fs::write(path, text)?;
        let output = container::promtool(path)?;
        ensure!(output.status == Some(status), "{text:?}: {output:?}");
    }
    Ok(())
}
