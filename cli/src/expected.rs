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
    // Under the usual name, whatever its own is.
    let found = variables.filter(|(found, _)| found == name);
    let found = found.map(|(_, text)| (OsString::from(Expectation::VARIABLE), text));
    let given = Expectation::from_variables(found).map_err(malformed)?;
    match given.is_empty() {
        false => Ok(given),
        true => Err(absent(&name.as_encoded_bytes().escape_ascii().to_string())),
    }
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
                    "several devices were given: name one of {}, or DEVICE",
                    names.join(", ")
                );
                Err(Failure::new("ambiguous", message))
            }
        };
    };
    let mut is_given = false;
    for expectation in given {
        if expectation.concerns(&device)? {
            expectation.check(&device, boot)?;
            is_given = true;
        }
    }
    if is_given {
        return Ok(device);
    }
    let given: Vec<_> = given.iter().map(ToString::to_string).collect();
    let message = format!(
        "{device}: it was not given to this container, which was given {}",
        given.join(" and ")
    );
    Err(Failure::new("not_expected", message).of(&device))
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
