use super::*;

#[test]
fn hostile_names() {
    for name in [&b"mlx5_0"[..], b"rocep1s0f0", b"a-b.c"] {
        assert!(!is_hostile(name));
    }
    for name in [&b""[..], b".", b"..", b"a/b", b"a\nb", b"\x1b[31m", b"a b", b"\xff", b"%n$("] {
        assert!(is_hostile(name), "{}", name.escape_ascii());
    }
}

#[test]
fn without_devices_the_line_has_the_reason() {
    let absent = |is_loaded, names: &[&str]| Absent {
        is_loaded,
        without_verbs: names.iter().map(|&name| name.to_owned()).collect(),
    };
    for (absent, is_good) in [
        (absent(true, &[]), true),
        (absent(false, &[]), true),
        (absent(true, &["mlx5_0"]), true),
        (absent(false, &["mlx5_0"]), false),
    ] {
        let mut audit = Audit::default();
        report_no_devices(&mut audit, &absent);
        assert_eq!(audit.is_good(), is_good, "{absent:?}");
        assert!(audit::rest(&audit).ends_with(&absent.of_empty_list()), "{absent:?}");
    }
}

#[test]
fn the_number_of_devices_is_exact() {
    for (usable, is_good) in [(7, false), (8, true), (9, false)] {
        let mut audit = Audit::default();
        let others = [(9, "listed"), (0, "of another network namespace"), (1, "without a node")];
        count(&mut audit, 8, usable, [others[0], others[1], others[2], (0, "cannot be listed")]);
        assert_eq!(audit.is_good(), is_good, "{usable}");
        let words = match is_good {
            true => &audit.checked[0],
            false => &audit.findings[0].message,
        };
        assert!(words.contains("(9 listed, 1 without a node)"), "{words}");
    }
}

#[test]
fn a_timeout_leaves_time_to_do_something() {
    assert_eq!(timeout("0.1"), Ok(Duration::from_millis(100)));
    assert_eq!(timeout("86400"), Ok(Duration::from_secs(86_400)));
    for text in ["0", "0.09", "-1", "86401", "NaN", ""] {
        assert!(timeout(text).is_err(), "{text}");
    }
}

#[cfg(feature = "demo")]
mod simulated {
    use std::ffi::OsStr;

    use uverbs::sim::{DeviceSpec, Machine, NodeKind};

    use super::*;
    use crate::check::lock::Holder;
    use crate::check::worker::Refusal;

    const OPEN: Task = Task { open: true, ports: true };

    /// Opens devices of a simulated kernel, which no other process can.
    struct Here;

    impl Probe for Here {
        fn probe(&mut self, device: &Device, task: Task) -> Probed {
            assert!(task.open);
            let opened = device.open().map(drop).map_err(|error| Failure::from(error).into());
            Probed { opened: Some(opened), ..Probed::default() }
        }
    }

    /// A probe that has no result.
    struct Troubled(fn() -> Trouble);

    impl Probe for Troubled {
        fn probe(&mut self, _: &Device, _: Task) -> Probed {
            Probed { trouble: Some((self.0)()), ..Probed::default() }
        }
    }

    fn listed(machine: &Machine) -> (Host, Devices) {
        let host = Host::simulated(machine).expect("a host");
        let devices = Registry::new(host.clone()).devices().expect("a list");
        (host, devices)
    }

    /// The result of opening, if that is wanted.
    fn opened(machine: &Machine, open: bool, unusable: &BTreeSet<u32>) -> Audit {
        probed(machine, open, unusable, &mut Here)
    }

    fn probed(
        machine: &Machine,
        open: bool,
        unusable: &BTreeSet<u32>,
        prober: &mut impl Probe,
    ) -> Audit {
        let (_, devices) = listed(machine);
        let selected: Vec<_> = devices.iter().collect();
        let plan = Plan { task: open.then_some(OPEN), ..Plan::default() };
        let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
        probe_devices(&mut audit, &plan, &devices, &selected, unusable, prober);
        audit
    }

    /// A check of these devices, or of all, whose nodes are as given.
    fn checked(
        machine: &Machine,
        names: &[&str],
        expect: Option<usize>,
        missing: impl FnOnce(&[&Device]) -> nodes::Missing,
    ) -> Audit {
        let (host, devices) = listed(machine);
        let selectors = names.iter().map(|name| Selector::parse(OsStr::new(name)).expect("one"));
        let plan = Plan { selectors: selectors.collect(), expect, ..Plan::default() };
        let mut audit = Audit::default();
        let selected = select(&mut audit, &plan, &devices);
        look_at_devices(&mut audit, &plan, (&host, &devices), &selected, |_, here| missing(here));
        audit
    }

    /// Findings of the host that the test runs on are not counted.
    fn of_devices(audit: &Audit) -> Vec<(Severity, &str)> {
        let findings = audit.findings.iter();
        let findings = findings.filter(|finding| !finding.subject.starts_with("/dev/"));
        findings.map(|finding| (finding.severity, &*finding.message)).collect()
    }

    #[test]
    fn a_node_that_looks_right_and_leads_elsewhere_is_found_by_opening() {
        let machine = Machine::new();
        let old = machine.add(DeviceSpec::new("siw0").disassociates(false)).expect("added");
        machine.set_node(0, NodeKind::Static);
        let theirs = machine.foreign_context(old).expect("opened");
        machine.remove(old);
        machine.add(DeviceSpec::new("siw1").disassociates(false)).expect("added");
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let look = |open| opened(&machine, open, &BTreeSet::new());

        let opened = look(true);
        assert!(!opened.is_good());
        let json = serde_json::to_value(&opened).expect("JSON");
        let (siw1, rxe0) = (&json["opens"][0], &json["opens"][1]);
        assert_eq!((&siw1["device"], &siw1["proven"]), (&"siw1 (uverbs0)".into(), &false.into()));
        assert_eq!(siw1["error"]["kind"], "node_mismatch");
        assert_eq!((&rxe0["proven"], &rxe0["error"]), (&true.into(), &serde_json::Value::Null));
        assert_eq!(json["findings"][0]["subject"], "siw1 (uverbs0)");
        assert_eq!(opened.findings.len(), 1);
        let seen = opened.seen.as_ref().expect("devices");
        assert_eq!((seen.devices[0].proven, seen.devices[1].proven), (Some(false), Some(true)));

        let before = machine.node_opens().len();
        let closed = look(false);
        assert!(closed.is_good() && closed.opens.is_none());
        assert_eq!(machine.node_opens().len(), before);

        machine.close_foreign(old, theirs);
        assert!(look(true).is_good());
    }

    #[test]
    fn a_device_that_is_known_not_to_open_is_no_second_finding() {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        machine.set_node(0, NodeKind::Missing);
        let audit = opened(&machine, true, &BTreeSet::from([0]));
        assert!(audit.is_good());
        let opens = audit.opens.as_ref().expect("attempts");
        assert!(!opens[0].proven && opens[0].error.is_some());
        assert!(!opened(&machine, true, &BTreeSet::new()).is_good());
    }

    #[test]
    fn a_probe_without_a_result_is_a_finding_that_states_what_was_seen() {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        for (trouble, severity, kind, words) in [
            (
                (|| Trouble::TimedOut {
                    doing: "opening it",
                    timeout: Duration::from_millis(1500),
                    left_behind: Some(4711),
                }) as fn() -> Trouble,
                Severity::Error,
                "timeout",
                "opening it took longer than 1.5 s: process 4711 was killed and has not ended",
            ),
            (
                || Trouble::Held(Holder { pid: 4711, was_killed: true }),
                Severity::Error,
                "timeout",
                "an earlier probe still hangs: process 4711 was killed and has not ended",
            ),
            (
                || Trouble::Held(Holder { pid: 4711, was_killed: false }),
                Severity::Unknown,
                "busy",
                "process 4711 is probing it, so it was not probed",
            ),
            (
                || Trouble::NotReady { within: Duration::from_secs(21) },
                Severity::Unknown,
                "timeout",
                "the process that probes was not ready after 21 s",
            ),
            (|| Trouble::Failed("no fork".to_owned()), Severity::Unknown, "os", "no fork"),
        ] {
            let audit = probed(&machine, true, &BTreeSet::new(), &mut Troubled(trouble));
            assert_eq!(audit.findings.len(), 1);
            let finding = &audit.findings[0];
            assert_eq!(finding.severity, severity, "{words}");
            assert_eq!(finding.subject, "rxe0 (uverbs0)");
            assert!(finding.message.contains(words), "{}", finding.message);
            let proven = audit.seen.as_ref().expect("devices").devices[0].proven;
            assert_eq!(proven, (severity == Severity::Error).then_some(false));
            let json = serde_json::to_value(&audit).expect("JSON");
            let attempt = &json["opens"][0];
            assert_eq!(
                (&attempt["proven"], &attempt["error"]["kind"]),
                (&false.into(), &kind.into())
            );
        }
    }

    /// A probe that finds the device refused, as a worker reports it.
    struct Refused(&'static str);

    impl Probe for Refused {
        fn probe(&mut self, device: &Device, _: Task) -> Probed {
            let failure = Failure::new(self.0, format!("{device}: refused")).of(device);
            Probed { opened: Some(Err(failure.into())), ..Probed::default() }
        }
    }

    #[test]
    fn a_device_that_went_is_a_finding_only_where_it_was_named() {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let (_, devices) = listed(&machine);
        let selected: Vec<_> = devices.iter().collect();
        let check = |open, names: &[&str], prober: &mut dyn Probe| {
            let selectors = names.iter().map(|name| Selector::parse(OsStr::new(name)));
            let selectors = selectors.collect::<Result<_, _>>().expect("selectors");
            let plan = Plan { selectors, task: Some(Task { open, ports: true }), expect: None };
            let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
            probe_devices(&mut audit, &plan, &devices, &selected, &BTreeSet::new(), prober);
            audit
        };
        for open in [false, true] {
            let unnamed = check(open, &[], &mut Troubled(|| Trouble::Gone));
            assert!(unnamed.is_good() && unnamed.info.len() == 1, "{unnamed:?}");
            assert_eq!(unnamed.seen.expect("devices").devices[0].proven, None);
            let named = check(open, &["rxe0"], &mut Troubled(|| Trouble::Gone));
            assert_eq!(named.count(Severity::Error), 1, "{named:?}");
        }
        for (kind, may_happen) in [("removed", true), ("replaced", true), ("node_mismatch", false)]
        {
            let unnamed = check(true, &[], &mut Refused(kind));
            assert_eq!(unnamed.is_good(), may_happen, "{unnamed:?}");
            assert_eq!(unnamed.info.len(), usize::from(may_happen));
            let json = serde_json::to_value(&unnamed).expect("JSON");
            assert_eq!(json["opens"][0]["error"]["kind"], kind);
            let proven = unnamed.seen.expect("devices").devices[0].proven;
            assert_eq!(proven, (!may_happen).then_some(false));
            let named = check(true, &["rxe0"], &mut Refused(kind));
            assert_eq!(named.count(Severity::Error), 1, "{named:?}");
        }
    }

    #[test]
    fn a_device_that_a_worker_does_not_find_was_removed_or_replaced() {
        let machine = Machine::new();
        let old = machine.add(DeviceSpec::new("rxe0")).expect("added");
        let (host, devices) = listed(&machine);
        let registry = Registry::new(host);
        let device = devices.by_name("rxe0").expect("listed");
        let request = worker::Request::new(&device, OPEN, Duration::ZERO);
        assert!(worker::find(&registry, &request).is_ok());
        machine.remove(old);
        let kind = |found: Result<Device, Failure>| found.expect_err("gone").kind().to_owned();
        assert_eq!(kind(worker::find(&registry, &request)), "removed");
        machine.deny_netlink(Some(1));
        assert_eq!(kind(worker::find(&registry, &request)), "netlink_unavailable");
    }

    #[test]
    fn devices_that_are_asked_for_have_to_be_there() {
        let machine = Machine::new();
        for name in ["rxe0", "rxe1", "uverbs0"] {
            machine.add(DeviceSpec::new(name).guid(0xa0)).expect("added");
        }
        let checked =
            |names: &[&str]| checked(&machine, names, None, |_| nodes::Missing::default());
        // Twice the same one is one.
        let mut here = 0;
        let audit = super::simulated::checked(&machine, &["rxe0", "name=rxe0"], None, |devices| {
            here = devices.len();
            nodes::Missing::default()
        });
        assert!(of_devices(&audit).is_empty(), "{audit:?}");
        assert_eq!(here, 1);
        for (name, words) in [
            ("rxe2", "no device matches \"rxe2\"; listed: "),
            ("uverbs0", "2 devices match"),
            ("guid=00000000000000a0", "3 devices match"),
        ] {
            let audit = checked(&["rxe1", name]);
            let found = of_devices(&audit);
            assert!(
                matches!(&*found, [(Severity::Error, message)] if message.contains(words)),
                "{found:?}"
            );
        }
        // Whether it is there is not known.
        machine.deny_netlink(Some(1));
        let audit = checked(&["guid=00000000000000b0"]);
        assert_eq!(of_devices(&audit)[0].0, Severity::Unknown, "{audit:?}");
    }

    #[test]
    fn what_is_expected_is_counted_where_it_can_be_used() {
        let machine = Machine::new();
        for name in ["rxe0", "rxe1", "rxe2", "rxe3"] {
            machine.add(DeviceSpec::new(name)).expect("added");
        }
        machine.set_netns_visible(machine.instance_of(3).expect("there"), false);
        let missing = |_: &[&Device]| nodes::Missing {
            not_given: BTreeSet::from([0]),
            lost: BTreeSet::from([1]),
        };
        for (expect, is_good) in [(0, false), (1, true), (2, false), (4, false)] {
            let audit = checked(&machine, &[], Some(expect), missing);
            let errors: Vec<_> = of_devices(&audit);
            let errors: Vec<_> =
                errors.iter().filter(|(severity, _)| *severity == Severity::Error).collect();
            assert_eq!(errors.is_empty(), is_good, "{expect}: {audit:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_error_and_its_message() {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        machine.set_node(0, NodeKind::Missing);
        let (_, devices) = listed(&machine);
        let error = devices.by_name("rxe0").expect("listed").open().expect_err("no node");
        let refusal = Refusal::from(Failure::from(error));
        assert!(!refusal.message.contains("rxe0"), "{}", refusal.message);
        let text = serde_json::to_string(&worker::Line::Opened(Err(refusal))).expect("JSON");
        let Ok(worker::Line::Opened(Err(back))) = serde_json::from_str(&text) else {
            panic!("{text}");
        };
        assert_eq!((&back.error["step"], &back.error["errno"]), (&"node".into(), &2.into()));
    }
}
