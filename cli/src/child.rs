//! What a process does first that the command starts to make calls which may never return. It may be left behind, and
//! must not keep anything of its caller's then.

use std::fs;

/// Closes what this process inherited beside its standard streams. One that hangs would keep those descriptors open
/// for good: a lock of a cron job, or the pipe that somebody reads to its end.
pub(crate) fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let numbers: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        // Nothing in this process owns one of them. The one of the listing is closed by now.
        let _ = nix::unistd::close(number);
    }
}
