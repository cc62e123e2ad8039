//! The targets: the figures that a run has to reach.

use std::collections::HashMap;

use anyhow::{Result, ensure};

/// The measured and counted figures, by number of devices and name.
#[derive(Default)]
pub(super) struct Findings(HashMap<(usize, String), f64>);

impl Findings {
    /// A median, in microseconds.
    pub(super) fn time(&mut self, devices: usize, name: &str, median: f64) {
        self.0.insert((devices, name.to_owned()), median);
    }

    /// A number that is the same each time. It is printed here.
    pub(super) fn count(&mut self, devices: usize, name: &str, number: usize) {
        println!("count\t{devices}\t{name}\t{number}");
        self.0.insert((devices, name.to_owned()), number as f64);
    }

    fn get(&self, devices: usize, name: &str) -> Option<f64> {
        self.0.get(&(devices, name.to_owned())).copied()
    }

    /// Prints each target and whether it is met.
    pub(super) fn judge(&self) -> Result<()> {
        let (mut judged, mut missed) = (0, 0);
        for target in self.targets() {
            // Figures that were not measured in this run are not judged.
            let Some(found) = target.found else { continue };
            let met = match target.limit {
                Limit::AtMost(limit) => found <= limit,
                Limit::AtLeast(limit) => found >= limit,
            };
            let (word, limit) = match target.limit {
                Limit::AtMost(limit) => ("at most", limit),
                Limit::AtLeast(limit) => ("at least", limit),
            };
            let verdict = if met { "PASS" } else { "FAIL" };
            println!("target\t{verdict}\t{}\t{word} {limit}\t{found:.2}", target.what);
            judged += 1;
            missed += usize::from(!met);
        }
        ensure!(judged > 0 && missed == 0, "{missed} of {judged} targets missed");
        Ok(())
    }

    fn targets(&self) -> Vec<Target> {
        use Limit::{AtLeast, AtMost};
        let ratio = |devices, a: &str, b: &str| Some(self.get(devices, a)? / self.get(devices, b)?);
        // How much slower the same call is with eight threads, compared with how much slower a peer is.
        let slower = |ours: &str, peer: &str| {
            let of = |name: &str| {
                ratio(1000, &format!("{name}_8_threads"), &format!("{name}_1_threads"))
            };
            Some(of(ours)? / of(peer)?)
        };
        let growth = |name: &str| Some(self.get(8000, name)? / self.get(1000, name)?);
        let per_changed = |from: &str, to: &str, changed: f64| {
            Some((self.get(1000, to)? - self.get(1000, from)?) / changed)
        };
        let of_first = |each: Option<f64>| Some(each? / (self.get(1000, "first_list")? / 1000.0));
        let mut targets = vec![
            target(
                "rescan, nothing changed, 1,000 devices: times faster than ibv_get_device_list",
                AtLeast(100.0),
                ratio(1000, "list_ibverbs", "rescan"),
            ),
            target(
                "rescan, nothing changed, 1,000 devices: times the bare sweep",
                AtMost(2.0),
                ratio(1000, "rescan", "sweep"),
            ),
            target(
                "rescan, nothing changed: allocations with 1,000 devices beyond those with 64",
                AtMost(0.0),
                self.get(1000, "allocations_rescan")
                    .zip(self.get(64, "allocations_rescan"))
                    .map(|(many, few)| many - few),
            ),
            target(
                "rescan, nothing changed: system calls with 1,000 devices beyond those with 64 (pages of names)",
                AtMost(2.0),
                self.get(1000, "calls_rescan")
                    .zip(self.get(64, "calls_rescan"))
                    .map(|(many, few)| many - few),
            ),
            target(
                "list while watched, nothing changed, 1,000 devices: times the bare sweep",
                AtMost(0.2),
                ratio(1000, "rescan_watched", "sweep"),
            ),
            target(
                "rescan, 1 of 1,000 changed: times the bare sweep",
                AtMost(4.0),
                ratio(1000, "rescan_1_changed", "sweep"),
            ),
            target(
                "rescan, 100 of 1,000 changed: cost of each, in those of a device of a first list",
                AtMost(2.0),
                of_first(per_changed("rescan_1_changed", "rescan_100_changed", 99.0)),
            ),
            target(
                "rescan, 1,000 devices: system calls for each changed one",
                AtMost(14.0),
                per_changed("calls_rescan_1_changed", "calls_rescan_10_changed", 9.0),
            ),
            target(
                "first list, 1,000 devices: times faster than libibverbs'",
                AtLeast(2.0),
                ratio(1000, "first_list_ibverbs", "first_list"),
            ),
            target(
                "first open after a list of 1,000: times faster than ibv_get_device_list",
                AtLeast(100.0),
                ratio(1000, "list_ibverbs", "first_open"),
            ),
            target(
                "rescan, nothing changed, 8,000 devices: times the bare sweep",
                AtMost(2.0),
                ratio(8000, "rescan", "sweep"),
            ),
            target(
                "first list, 8,000 devices: times that of 1,000",
                AtMost(12.0),
                growth("first_list"),
            ),
            target(
                "eight threads list: slower than one, in terms of the bare sweep's slowdown",
                AtMost(1.5),
                slower("rescan", "sweep"),
            ),
            target(
                "eight threads open: slower than one, in terms of the bare sweep's slowdown",
                AtMost(1.5),
                slower("open", "sweep"),
            ),
        ];
        targets.extend([
            target(
                "guarded list, 256 devices: times ibv_get_device_list",
                AtMost(1.3),
                ratio(256, "guarded_list", "plain_list"),
            ),
            target(
                "start of a program under the guard: milliseconds more",
                AtMost(1.0),
                self.get(1, "start_guarded")
                    .zip(self.get(1, "start_plain"))
                    .map(|(guarded, plain)| (guarded - plain) / 1000.0),
            ),
            target(
                "memory that the guard adds to a program, in KiB",
                AtMost(300.0),
                self.get(1, "guard_memory_kib"),
            ),
        ]);
        for devices in [1, 1000] {
            targets.push(target(
                &format!("guarded open and close, {devices} listed: times libibverbs'"),
                AtMost(6.0),
                ratio(devices, "guarded_open", "plain_open"),
            ));
            targets.push(target(
                &format!("list while watched, nothing changed, {devices} listed: system calls"),
                AtMost(1.0),
                self.get(devices, "calls_rescan_watched"),
            ));
            targets.push(target(
                &format!("open and close, warm, {devices} listed: times libibverbs'"),
                AtMost(4.5),
                ratio(devices, "open", "open_ibverbs"),
            ));
            targets.push(target(
                &format!("open and close, warm, {devices} listed: system calls"),
                AtMost(36.0),
                self.get(devices, "calls_open"),
            ));
        }
        for devices in [64, 1000, 8000] {
            targets.push(target(
                &format!("heap per listed device, {devices} listed, in bytes"),
                AtMost(1024.0),
                self.get(devices, "heap_per_device"),
            ));
            targets.push(target(
                &format!("descriptors that a list of {devices} keeps"),
                AtMost(0.0),
                self.get(devices, "descriptors_kept"),
            ));
        }
        targets
    }
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

struct Target {
    what: String,
    limit: Limit,
    /// `None` if it was not measured.
    found: Option<f64>,
}

fn target(what: &str, limit: Limit, found: Option<f64>) -> Target {
    Target { what: what.to_owned(), limit, found }
}
