//! The ports of a device as they are seen without a context, as JSON and as text.

use serde::Serialize;
use uverbs::PortFacts;

/// A port. What is not known is null.
#[derive(Debug, Serialize)]
pub(crate) struct PortJson {
    port: u32,
    state: String,
    physical_state: String,
    /// Of all lanes.
    rate_gbps: Option<f64>,
    /// The name of its network device, escaped.
    netdev: Option<String>,
    netdev_index: Option<u32>,
}

impl PortJson {
    pub(crate) fn new(port: &PortFacts) -> Self {
        let netdev = port.netdev.as_ref();
        Self {
            port: port.port,
            state: port.state.to_string(),
            physical_state: port.physical_state.to_string(),
            rate_gbps: port.rate.map(|rate| f64::from(rate.megabits_per_second()) / 1000.0),
            netdev: netdev.map(|netdev| netdev.name.to_string()),
            netdev_index: netdev.map(|netdev| netdev.index),
        }
    }

    fn rate(&self) -> Option<String> {
        self.rate_gbps.map(|rate| format!("{rate}Gb/s"))
    }

    /// Its network device, with its number.
    pub(crate) fn netdev_in_words(&self) -> Option<String> {
        Some(format!("{} (port {})", self.netdev.as_ref()?, self.port))
    }

    /// What and in which words.
    pub(crate) fn row(&self) -> (String, String) {
        let rate = self.rate().unwrap_or_else(|| "rate unknown".to_owned());
        let mut text = format!("{} ({}), {rate}", self.state, self.physical_state);
        if let Some(netdev) = &self.netdev {
            text.push_str(&format!(", {netdev}"));
        }
        (format!("port {}", self.port), text)
    }
}

/// State, rate and network device of all ports, each in one word, for a table with a line for each device.
///
/// Two ports that differ are both shown, in their order. Of more than two, the ports in a state are counted.
pub(crate) fn columns(ports: &[PortJson]) -> [Option<String>; 3] {
    if let [port] = ports {
        return [Some(port.state.clone()), port.rate(), port.netdev.clone()];
    }
    let active = ports.iter().filter(|port| port.state == "ACTIVE").count();
    let of_all = |each: &dyn Fn(&PortJson) -> Option<String>, differ: &dyn Fn() -> String| {
        let values: Vec<_> = ports.iter().map(each).collect();
        let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        match values.as_slice() {
            [] => None,
            [first, rest @ ..] if rest.iter().all(|other| other == first) => first.clone(),
            [first, second] => Some(format!("{},{}", or_dash(first), or_dash(second))),
            _ => Some(differ()),
        }
    };
    let netdevs: Vec<_> = ports.iter().filter_map(|port| port.netdev.as_ref()).collect();
    let more = netdevs.len().saturating_sub(1);
    [
        of_all(&|port| Some(port.state.clone()), &|| format!("{active}/{}_ACTIVE", ports.len())),
        of_all(&PortJson::rate, &|| "mixed".to_owned()),
        of_all(&|port| port.netdev.clone(), &|| match netdevs.first() {
            Some(first) if more > 0 => format!("{first}+{more}"),
            Some(first) => (*first).clone(),
            None => "-".to_owned(),
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u32, state: &str, rate_gbps: Option<f64>, netdev: Option<&str>) -> PortJson {
        PortJson {
            port,
            state: state.to_owned(),
            physical_state: "LinkUp".to_owned(),
            rate_gbps,
            netdev: netdev.map(str::to_owned),
            netdev_index: None,
        }
    }

    #[test]
    fn ports_are_summarised() {
        let texts = |ports: &[PortJson]| {
            columns(ports).map(|column| column.unwrap_or_else(|| "-".to_owned())).join(" ")
        };
        let one = port(1, "ACTIVE", Some(2.5), Some("eth0"));
        assert_eq!(texts(&[one]), "ACTIVE 2.5Gb/s eth0");
        assert_eq!(texts(&[]), "- - -");
        let of = |state: &str, rate, netdev| port(1, state, rate, netdev);
        assert_eq!(texts(&[of("DOWN", None, None)]), "DOWN - -");
        let alike = || of("ACTIVE", Some(100.0), None);
        assert_eq!(texts(&[alike(), alike()]), "ACTIVE 100Gb/s -");
        let two = [of("ACTIVE", Some(40.0), Some("eth0")), of("DOWN", None, Some("eth1"))];
        assert_eq!(texts(&two), "ACTIVE,DOWN 40Gb/s,- eth0,eth1");
        let many = [
            of("ACTIVE", Some(100.0), None),
            of("DOWN", Some(100.0), Some("rep0")),
            of("ACTIVE", Some(25.0), Some("rep1")),
        ];
        assert_eq!(texts(&many), "2/3_ACTIVE mixed rep0+1");
        let one_of_many = [alike(), alike(), of("ACTIVE", Some(100.0), Some("eth0"))];
        assert_eq!(texts(&one_of_many), "ACTIVE 100Gb/s eth0");
    }

    #[test]
    fn a_port_is_a_row() {
        let (what, text) = port(2, "ACTIVE", Some(100.0), Some("eth0")).row();
        assert_eq!((&*what, &*text), ("port 2", "ACTIVE (LinkUp), 100Gb/s, eth0"));
        assert_eq!(port(1, "DOWN", None, None).row().1, "DOWN (LinkUp), rate unknown");
    }
}
