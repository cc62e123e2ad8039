//! Uevents of the kernel: what a message is about, as far as a watch needs to know.

/// What a message suggests. It is only a hint that a list may have changed. Nothing that it contains is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something happened to a uverbs device (subsystem `infiniband_verbs`).
    Verbs,
    /// An RDMA device is registered (subsystem `infiniband`, action `add`). The kernel sends this when the
    /// registration is complete.
    Registered,
    /// Something else happened to an RDMA device, such as a rename.
    Rdma,
    /// It is about a device of another subsystem.
    Foreign,
    /// It is not a uevent.
    Malformed,
}

impl Hint {
    /// Reads a message (`kobject_uevent_env`, `lib/kobject_uevent.c`): `ACTION@DEVPATH`, then `KEY=VALUE` fields, each
    /// ended by a NUL.
    pub(crate) fn of(message: &[u8]) -> Self {
        let mut fields = message.split(|byte| *byte == 0);
        if !fields.next().is_some_and(|header| header.contains(&b'@')) {
            return Self::Malformed;
        }
        let (mut action, mut subsystem) = (None, None);
        for field in fields {
            if let Some(value) = field.strip_prefix(b"ACTION=") {
                action = action.or(Some(value));
            } else if let Some(value) = field.strip_prefix(b"SUBSYSTEM=") {
                subsystem = subsystem.or(Some(value));
            }
        }
        match (subsystem, action) {
            (Some(b"infiniband_verbs"), Some(_)) => Self::Verbs,
            (Some(b"infiniband"), Some(b"add")) => Self::Registered,
            (Some(b"infiniband"), Some(_)) => Self::Rdma,
            (Some(_), Some(_)) => Self::Foreign,
            _ => Self::Malformed,
        }
    }
}

/// The result of one `recvmsg(2)` on a uevent socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packet {
    /// The length of the part that is in the buffer.
    pub(crate) len: usize,
    /// The message was longer than the buffer.
    pub(crate) is_cut: bool,
    /// The sender's netlink port. It is 0 for the kernel, and also for a message that a user injected through
    /// `uevent_net_rcv_skb`.
    pub(crate) port: u32,
    /// The multicast groups that it was sent to, as bits.
    pub(crate) groups: u32,
    /// The sender's process id and user id (`SCM_CREDENTIALS`).
    pub(crate) sender: Option<(i32, u32)>,
}

/// The multicast group of the kernel's events, as a bit. Group 2 has those of udev.
pub(crate) const KERNEL_GROUP: u32 = 1;

impl Packet {
    /// Whether the kernel made the message. No user can send one with process id 0: `__scm_send` looks up the
    /// process, and there is none. The user id is no sign: in a user namespace to which root is not mapped, the kernel's
    /// own messages have the overflow user id (`from_kuid_munged`).
    pub(crate) fn is_genuine(&self) -> bool {
        let is_without_process = self.sender.is_some_and(|(process, _)| process == 0);
        self.port == 0 && self.groups == KERNEL_GROUP && is_without_process
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_read_from_two_keys() {
        let hint = |text: &str| Hint::of(text.replace('|', "\0").as_bytes());
        let verbs = "remove@/d/u0|ACTION=remove|DEVPATH=/d/u0|SUBSYSTEM=infiniband_verbs|SEQNUM=7|";
        assert_eq!(hint(verbs), Hint::Verbs);
        assert_eq!(hint("add@/d/r|ACTION=add|SUBSYSTEM=infiniband|NAME=r|"), Hint::Registered);
        assert_eq!(hint("move@/d/r|ACTION=move|SUBSYSTEM=infiniband|"), Hint::Rdma);
        assert_eq!(hint("add@/d/l|ACTION=add|SUBSYSTEM=net|"), Hint::Foreign);
        // The first of several counts.
        let twice = "add@/d|SUBSYSTEM=net|ACTION=add|SUBSYSTEM=infiniband_verbs|";
        assert_eq!(hint(twice), Hint::Foreign);
        for malformed in [
            "",
            "|",
            "libudev|ACTION=add|SUBSYSTEM=infiniband_verbs|",
            "add@/d|SUBSYSTEM=infiniband_verbs|",
            "add@/d|ACTION=add|",
            "add@/d|ACTION=add|XSUBSYSTEM=infiniband_verbs|",
        ] {
            assert_eq!(hint(malformed), Hint::Malformed, "{malformed}");
        }
    }

    #[test]
    fn only_the_kernel_is_genuine() {
        let kernel = Packet { len: 1, is_cut: false, port: 0, groups: 1, sender: Some((0, 0)) };
        assert!(kernel.is_genuine());
        assert!(Packet { sender: Some((0, 65_534)), ..kernel }.is_genuine());
        for forged in [
            Packet { port: 1, ..kernel },
            Packet { groups: 0, ..kernel },
            Packet { groups: 2, ..kernel },
            Packet { groups: 3, ..kernel },
            Packet { sender: None, ..kernel },
            Packet { sender: Some((197, 0)), ..kernel },
            Packet { sender: Some((197, 65_534)), ..kernel },
        ] {
            assert!(!forged.is_genuine(), "{forged:?}");
        }
    }
}
