//! The id of this boot.

use std::fs;

use uverbs::BootId;

use crate::output::Failure;

/// The same in every namespace; random(4).
const PATH: &str = "/proc/sys/kernel/random/boot_id";

/// Reads it.
pub(crate) fn id() -> Result<BootId, Failure> {
    let text = fs::read_to_string(PATH)
        .map_err(|error| Failure::os(format_args!("cannot read {PATH}"), &error))?;
    let id = text.trim_end().parse();
    id.map_err(|error| Failure::new("malformed", format!("{PATH}: {error}")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_stays() {
        assert_eq!(super::id().expect("a boot id"), super::id().expect("a boot id"));
    }
}
