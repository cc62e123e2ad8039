//! `--expect-env`: the device that this container was given.

use std::ffi::{OsStr, OsString};

use uverbs::{BootId, Device, Devices, Expectation};

use crate::boot;
use crate::output::Failure;
use crate::select::Selector;

/// The device that an environment variable describes, which is checked. `named` is the device of the command line.
///
/// Without a name of a variable, all are looked at that `uverbs cdi` writes. The environment configures nothing here:
/// it only demands more.
///
/// # Errors
/// There is no such variable, or no expectation in it; the device is another one.
pub(crate) fn find(
    devices: &Devices,
    named: Option<&Selector>,
    variable: Option<&OsStr>,
) -> Result<Device, Failure> {
    let given = given(variable, std::env::vars_os())?;
    let boot = given.iter().any(Expectation::needs_boot_id).then(boot::id).transpose()?;
    let device = named.map(|named| named.find(devices)).transpose()?;
    match_up(devices, device, &given, boot)
}

/// The expectations among the variables.
fn given(
    variable: Option<&OsStr>,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<Expectation>, Failure> {
    let malformed = |error| Failure::new("malformed", format!("environment: {error}"));
    let Some(name) = variable else {
        let given = Expectation::from_variables(variables).map_err(malformed)?;
        return match given.is_empty() {
            false => Ok(given),
            true => Err(absent(&format!("{}*", Expectation::VARIABLE))),
        };
    };
    let mut found = variables.filter(|(found, _)| found == name).map(|(_, text)| text);
    let shown = name.as_encoded_bytes().escape_ascii();
    let Some(text) = found.next() else { return Err(absent(&shown.to_string())) };
    if found.next().is_some() {
        let message = format!("the environment has the variable {shown} twice");
        return Err(Failure::new("malformed", message));
    }
    // The number in such a name has to be that of the device.
    if name.as_encoded_bytes().starts_with(Expectation::VARIABLE.as_bytes()) {
        return Expectation::from_variables([(name.to_owned(), text)]).map_err(malformed);
    }
    text.to_string_lossy().parse().map(|given| vec![given]).map_err(malformed)
}

fn absent(name: &str) -> Failure {
    let message = format!(
        "there is no environment variable {name}: nothing describes the device that was given (see uverbs cdi)"
    );
    Failure::new("not_found", message)
}

fn match_up(
    devices: &Devices,
    device: Option<Device>,
    given: &[Expectation],
    boot: Option<BootId>,
) -> Result<Device, Failure> {
    let Some(device) = device else {
        return match given {
            [only] => Ok(only.find(devices, boot)?),
            several => {
                let names: Vec<_> = several.iter().map(Expectation::variable).collect();
                let message = format!(
                    "several devices were given: name one of {} (--expect-env=VAR), or DEVICE",
                    names.join(", ")
                );
                Err(Failure::new("ambiguous", message))
            }
        };
    };
    Expectation::check_among(given, &device, boot)?;
    Ok(device)
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use uverbs::sim::{DeviceSpec, Machine};
    use uverbs::{Host, Registry};

    use super::*;

    fn devices() -> Devices {
        let machine = Machine::new();
        for function in 2..4 {
            let path = format!("pci0000:3a/0000:3b:00.{function}");
            machine.add_pci_function(&path, (1, 1), -1);
            machine.add(DeviceSpec::new(format!("vf{function}")).beneath(path)).expect("added");
        }
        Registry::new(Host::simulated(&machine).expect("a host")).devices().expect("a list")
    }

    fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
        let pairs: Vec<_> = pairs.iter().map(|(name, text)| (name.into(), text.into())).collect();
        pairs.into_iter()
    }

    const FIRST: &str = "v1,pci=0000:3b:00.2,uverbs=0,dev_t=231:192";
    const SECOND: &str = "v1,pci=0000:3b:00.3,uverbs=1,dev_t=231:193";

    #[test]
    fn a_variable_is_found_by_its_name_or_by_its_beginning() {
        let both = [("UVERBS_EXPECT_0", FIRST), ("MINE", SECOND), ("PATH", "/bin")];
        let texts = |variable: Option<&str>| {
            let given = given(variable.map(OsStr::new), variables(&both));
            given.map(|given| given.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(texts(None).expect("one"), [FIRST]);
        assert_eq!(texts(Some("MINE")).expect("one"), [SECOND]);
        assert_eq!(texts(Some("PATH")).expect_err("none").kind(), "malformed");
        let error = texts(Some("OTHER\u{1b}")).expect_err("none");
        assert!(error.to_string().contains(r"no environment variable OTHER\x1b"), "{error}");
        let error = given(None, variables(&[("PATH", "/bin")])).expect_err("none");
        assert!(error.to_string().contains("UVERBS_EXPECT_*"), "{error}");
        let twice = [("MINE", FIRST), ("MINE", SECOND)];
        let error = given(Some(OsStr::new("MINE")), variables(&twice)).expect_err("two");
        assert!(error.to_string().contains("MINE twice"), "{error}");
    }

    /// So that a message never names a variable that does not exist.
    #[test]
    fn the_number_of_a_variable_is_that_of_its_text() {
        for (pairs, why) in [
            (&[("UVERBS_EXPECT_7", FIRST)][..], "the number in the name"),
            (&[("UVERBS_EXPECT_00", FIRST)], "the number in the name"),
            (&[("UVERBS_EXPECT_", FIRST)], "the number in the name"),
            (&[("UVERBS_EXPECT_0", FIRST), ("UVERBS_EXPECT_0", FIRST)], "twice"),
        ] {
            for name in [None, Some(OsStr::new(pairs[0].0))] {
                let error = given(name, variables(pairs)).expect_err("refused");
                assert_eq!(error.kind(), "malformed");
                assert!(error.to_string().contains(why), "{error}");
            }
        }
    }

    /// mlx5_0 and smi1 of one function: the one that is named is compared with its own expectation.
    #[test]
    fn two_devices_of_one_function_each_have_their_expectation() {
        let machine = Machine::new();
        let path = "pci0000:3a/0000:3b:00.0";
        machine.add_pci_function(path, (1, 1), -1);
        for name in ["mlx5_0", "smi1"] {
            machine.add(DeviceSpec::new(name).beneath(path)).expect("added");
        }
        let devices = Registry::new(Host::simulated(&machine).expect("a host")).devices();
        let devices = devices.expect("a list");
        let given: Vec<_> = devices.iter().map(Expectation::of).collect();
        let given = given.into_iter().collect::<Result<Vec<_>, _>>().expect("read");
        for name in ["mlx5_0", "smi1"] {
            let device = devices.by_name(name).ok();
            let found = match_up(&devices, device, &given, None).expect(name);
            assert_eq!(found.name(), name);
        }
    }

    #[test]
    fn the_device_is_the_one_that_was_given() {
        let devices = devices();
        let expectation = |text: &str| text.parse::<Expectation>().expect(text);
        let [first, second] = [FIRST, SECOND].map(expectation);
        let device = |name: &str| devices.by_name(name).ok();
        let find = |device, given: &[Expectation]| match_up(&devices, device, given, None);
        assert_eq!(find(None, std::slice::from_ref(&first)).expect("it").name(), "vf2");
        let both = [first.clone(), second.clone()];
        assert_eq!(find(device("vf3"), &both).expect("it").name(), "vf3");
        let error = find(None, &both).expect_err("two");
        assert!(error.to_string().contains("UVERBS_EXPECT_0, UVERBS_EXPECT_1"), "{error}");
        let error = find(device("vf3"), &[first]).expect_err("not given");
        assert_eq!(error.kind(), "not_expected");
        assert!(error.to_string().contains(FIRST), "{error}");
        // It has the number of the one that was given, and is another.
        let other = expectation("v1,pci=0000:3b:00.7,uverbs=1,dev_t=231:193");
        let error =
            find(device("vf3"), std::slice::from_ref(&other)).expect_err("another").to_string();
        assert!(error.contains("expected pci 0000:3b:00.7; found pci 0000:3b:00.3"), "{error}");
        assert_eq!(find(None, &[other]).expect_err("another").kind(), "not_expected");
    }
}
