//! What differs.

use super::play::Record;

/// The differences between the two records.
pub(super) fn show(script: &dyn std::fmt::Debug, real: &Record, simulated: &Record) -> String {
    let mut lines = vec![format!("{script:?}")];
    for at in 0..real.len().max(simulated.len()) {
        match (real.get(at), simulated.get(at)) {
            (Some(real), Some(simulated)) if real == simulated => {
                lines.push(format!("      {real}"))
            }
            (real, simulated) => {
                let word =
                    |record: Option<&String>| record.cloned().unwrap_or("nothing".to_owned());
                lines.push(format!("REAL  {}", word(real)));
                lines.push(format!("SIM   {}", word(simulated)));
            }
        }
    }
    lines.join("\n")
}
