//! `benches/RESULTS.md`: the figures and the targets of some runs.

use super::figures::{Run, Times};

/// The times that are compared, and their labels.
const TIMES: [(&str, &str); 22] = [
    ("sweep", "names of both class directories, read and thrown away"),
    ("list_ibverbs", "`ibv_get_device_list`"),
    ("rescan", "`Registry::devices`, nothing changed"),
    ("rescan_watched", "the same, with a watch attached"),
    ("rescan_1_changed", "`Registry::devices`, 1 device renamed"),
    ("rescan_10_changed", "the same, 10 renamed"),
    ("rescan_100_changed", "the same, 100 renamed"),
    ("first_list_ibverbs", "`ibv_get_device_list`, the first of a process"),
    ("first_list", "`Host::open` and `Registry::devices`, the first of a process"),
    ("open_ibverbs", "`ibv_open_device`, `ibv_close_device`"),
    ("open", "`Device::open`, close"),
    ("first_open", "`Device::open`, the first after a first list"),
    ("sweep_1_threads", "names, 1 thread"),
    ("sweep_8_threads", "names, 8 threads at once"),
    ("rescan_1_threads", "`Registry::devices`, 1 thread"),
    ("rescan_8_threads", "`Registry::devices`, 8 threads at once"),
    ("open_ibverbs_1_threads", "`ibv_open_device`, close, 1 thread"),
    ("open_ibverbs_2_threads", "`ibv_open_device`, close, 2 threads at once"),
    ("open_ibverbs_8_threads", "`ibv_open_device`, close, 8 threads at once"),
    ("open_1_threads", "`Device::open`, close, 1 thread"),
    ("open_2_threads", "`Device::open`, close, 2 threads at once"),
    ("open_8_threads", "`Device::open`, close, 8 threads at once"),
];

const COUNTS: [(&str, &str); 10] = [
    ("calls_first_list", "system calls, first list"),
    ("calls_rescan", "system calls, list, nothing changed"),
    ("calls_rescan_watched", "system calls, list, watched, nothing changed"),
    ("calls_rescan_1_changed", "system calls, list, 1 renamed"),
    ("calls_rescan_10_changed", "system calls, list, 10 renamed"),
    ("calls_first_open", "system calls, first open and close"),
    ("calls_open", "system calls, open and close, warm"),
    ("allocations_rescan", "allocations, list, nothing changed"),
    ("heap_per_device", "bytes of heap for each listed device"),
    ("descriptors_kept", "descriptors kept for a list"),
];

const INTRODUCTION: &str = "\
What listing and opening cost, beside libibverbs and beside the minimum that the kernel needs to return the names.
`cargo xtask bench --runs 2 --write` writes this file; `cargo xtask bench` measures again and fails when a target is
missed.

The devices are test HCAs (`lab/hca/`) that libibverbs takes for soft-RoCE. The peer is rdma-core 44 of Debian 12. The
kernel runs in QEMU without hardware acceleration, with two processors. Times are many times those of a real machine and
vary with the load of the host, so only the ratios count. The two sides of a comparison are measured in turns (A B A B
…), each call on its own. strace counts system calls; the allocator counts allocations and bytes.
";

const NOTES: &str = "\
## What the figures justify in the code

- **Sweeps are compared as they are** (`src/listing.rs`): names and inodes are appended to buffers that are kept, and two
  looks are equal when the buffers are. The first version made a map of the names at each list, and a list of what was
  found.
- **Sweeps are made without the lock** (`src/registry.rs`): otherwise threads that list at once would wait for one
  another for the whole of a sweep. A sweep that finds a change, after another thread has found one, is made again under
  the lock.
- **The index is searched for** (`src/index.rs`): a dump of 1,000 devices takes 110 ms, `GET_CHARDEV` of one index 14
  us. By the order of registration one request finds it if no device has been removed. The join, which decides, is the
  same as after a dump.
- **Short netlink buffers** (`src/netlink.rs`): the kernel makes, and clears, the messages of a dump as long as the
  longest buffer that it has seen. Warm opens took 757 us with 32 KiB (`ibv_open_device` beside them 74), and take 400
  with 2 KiB (62; 10th percentiles). A list that does not fit is requested again with 32 KiB.
- **Places are remembered** (`src/listing.rs:name_of`): a list in which 1 of 1,000 names had changed took 7.1 ms while it
  sorted the names to find the other 999. It takes half of that now that it looks for each near its last place.
- **A netlink socket for each open** (`src/netlink.rs:Source`), at some 20 us: one that is kept would keep ib_core from
  being unloaded, and threads that share one wait for each other's answers.
";

/// The whole file.
pub(crate) fn results(runs: &[Run]) -> String {
    let Some(last) = runs.last() else { return String::new() };
    let mut text = format!("# Measured on Linux {}\n\n{INTRODUCTION}\n## Targets\n\n", last.kernel);
    let columns: String = (1..=runs.len()).map(|number| format!(" run {number} |")).collect();
    text.push_str(&format!("| | |{columns}\n|---|---|{}\n", "---|".repeat(runs.len())));
    for target in &last.targets {
        let found: String = runs
            .iter()
            .map(|run| {
                let same = run.targets.iter().find(|other| other.what == target.what);
                match same {
                    Some(found) if found.met => format!(" {} |", found.found),
                    Some(missed) => format!(" **{}: missed** |", missed.found),
                    None => " |".to_owned(),
                }
            })
            .collect();
        text.push_str(&format!("| {} | {} |{found}\n", target.what, target.limit));
    }
    let sizes = last.sizes();
    let heads: String = sizes.iter().map(|devices| format!(" {devices} |")).collect();
    let rule = format!("|---|{}", "---|".repeat(sizes.len()));
    text.push_str(
        "\n## Times of the last run\n\nMedians, and from the 10th to the 90th percentile, by number of devices.\n\n![time against number of devices](devices.svg)\n\n",
    );
    text.push_str(&format!("| |{heads}\n{rule}\n"));
    for (name, label) in TIMES {
        let cell = |&devices: &usize| {
            format!(" {} |", last.time(name, devices).map_or_else(String::new, cell))
        };
        let cells: String = sizes.iter().map(cell).collect();
        text.push_str(&format!("| {label} |{cells}\n"));
    }
    text.push_str(&opens_per_second(last));
    text.push_str(&format!("\n## Counts\n\n| |{heads}\n{rule}\n"));
    for (name, label) in COUNTS {
        let cell = |&devices: &usize| {
            format!(" {} |", last.count(name, devices).map_or_else(String::new, |n| n.to_string()))
        };
        let cells: String = sizes.iter().map(cell).collect();
        text.push_str(&format!("| {label} |{cells}\n"));
    }
    text.push('\n');
    text.push_str(NOTES);
    text
}

/// How many opens all threads together make in a second, by their number.
fn opens_per_second(run: &Run) -> String {
    const THREADS: [u32; 3] = [1, 2, 8];
    let mut text = "\n## Opens per second, of 1,000 listed\n\n| threads | `ibv_open_device`, close | `Device::open`, close |\n|---|---|---|\n".to_owned();
    for threads in THREADS {
        let rate = |name: &str| {
            let time = run.time(&format!("{name}_{threads}_threads"), 1000)?;
            Some(format!("{:.0}", f64::from(threads) * 1e6 / time.median))
        };
        if let (Some(theirs), Some(ours)) = (rate("open_ibverbs"), rate("open")) {
            text.push_str(&format!("| {threads} | {theirs} | {ours} |\n"));
        }
    }
    text
}

fn cell(times: Times) -> String {
    format!("{} ({} – {})", micros(times.median), micros(times.low), micros(times.high))
}

/// Microseconds with three significant digits.
fn micros(time: f64) -> String {
    match time {
        ..100.0 => format!("{time:.1} us"),
        ..1000.0 => format!("{time:.0} us"),
        ..100_000.0 => format!("{:.1} ms", time / 1e3),
        ..1_000_000.0 => format!("{:.0} ms", time / 1e3),
        _ => format!("{:.1} s", time / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::TEXT;

    #[test]
    fn a_missed_target_is_shown() {
        let run = Run::parse(TEXT).expect("read");
        let text = results(&[run.clone(), run]);
        assert!(text.contains("| it is quick | at most 2 | 1.50 | 1.50 |"), "{text}");
        assert!(text.contains("**1.50: missed**"));
        assert!(
            text.contains("| `ibv_get_device_list` | 100 us (90.0 us – 120 us) | 100 ms"),
            "{text}"
        );
    }
}
