//! Names and meanings of errnos.
//!
//! `strerror(3)`, with which the standard library and rustix print an errno, opens locale files once the program
//! has called `setlocale(3)`. A library that is used inside a sandbox must not do that.

use std::fmt;

use crate::kernel::Errno;

/// An errno that prints as its name and meaning: `ENOENT (no such file or directory)`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Described(pub(crate) Errno);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TABLE.iter().find(|(errno, ..)| *errno == self.0) {
            Some((_, name, meaning)) => write!(f, "{name} ({meaning})"),
            None => write!(f, "errno {}", self.0.raw_os_error()),
        }
    }
}

impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Every errno that Linux returns to programs, and `ENOTSUPP`, which is meant to stay inside the kernel but does
/// not.
macro_rules! errnos {
    ($($errno:ident $name:ident $meaning:literal)*) => {
        const TABLE: &[(Errno, &str, &str)] = &[
            $((Errno::$errno, stringify!($name), $meaning),)*
            (Errno::from_raw_os_error(524), "ENOTSUPP", "operation not supported by the driver"),
        ];

        /// The C library's number for each name.
        #[cfg(test)]
        const NUMBERS: &[i32] = &[$(libc::$name),*];
    };
}

errnos! {
    PERM EPERM "operation not permitted"
    NOENT ENOENT "no such file or directory"
    SRCH ESRCH "no such process"
    INTR EINTR "interrupted by a signal"
    IO EIO "input or output failed"
    NXIO ENXIO "no such device or address"
    TOOBIG E2BIG "argument list too long"
    NOEXEC ENOEXEC "not an executable of a known format"
    BADF EBADF "bad file descriptor"
    CHILD ECHILD "no child processes"
    AGAIN EAGAIN "try again: it would block"
    NOMEM ENOMEM "out of memory"
    ACCESS EACCES "permission denied"
    FAULT EFAULT "bad address"
    NOTBLK ENOTBLK "not a block device"
    BUSY EBUSY "device or resource busy"
    EXIST EEXIST "it exists already"
    XDEV EXDEV "on another mount or file system"
    NODEV ENODEV "no such device"
    NOTDIR ENOTDIR "not a directory"
    ISDIR EISDIR "is a directory"
    INVAL EINVAL "invalid argument"
    NFILE ENFILE "too many open files on this host"
    MFILE EMFILE "too many open files in this process"
    NOTTY ENOTTY "not an ioctl of this device"
    TXTBSY ETXTBSY "the executable is in use"
    FBIG EFBIG "file too large"
    NOSPC ENOSPC "no space left"
    SPIPE ESPIPE "cannot seek here"
    ROFS EROFS "read-only file system"
    MLINK EMLINK "too many links"
    PIPE EPIPE "nobody reads the pipe"
    DOM EDOM "argument outside the domain of the function"
    RANGE ERANGE "result out of range"
    DEADLK EDEADLK "it would deadlock"
    NAMETOOLONG ENAMETOOLONG "name too long"
    NOLCK ENOLCK "no locks available"
    NOSYS ENOSYS "no such system call"
    NOTEMPTY ENOTEMPTY "directory not empty"
    LOOP ELOOP "symbolic link not allowed, or too many of them"
    NOMSG ENOMSG "no message of that type"
    IDRM EIDRM "identifier removed"
    CHRNG ECHRNG "channel number out of range"
    L2NSYNC EL2NSYNC "level 2 not synchronized"
    L3HLT EL3HLT "level 3 halted"
    L3RST EL3RST "level 3 reset"
    LNRNG ELNRNG "link number out of range"
    UNATCH EUNATCH "protocol driver not attached"
    NOCSI ENOCSI "no CSI structure available"
    L2HLT EL2HLT "level 2 halted"
    BADE EBADE "bad exchange"
    BADR EBADR "bad request descriptor"
    XFULL EXFULL "exchange full"
    NOANO ENOANO "no anode"
    BADRQC EBADRQC "bad request code"
    BADSLT EBADSLT "bad slot"
    BFONT EBFONT "bad font file"
    NOSTR ENOSTR "not a stream"
    NODATA ENODATA "no data"
    TIME ETIME "timer expired"
    NOSR ENOSR "out of stream resources"
    NONET ENONET "not on a network"
    NOPKG ENOPKG "package not installed"
    REMOTE EREMOTE "object is remote"
    NOLINK ENOLINK "link severed"
    ADV EADV "advertise error"
    SRMNT ESRMNT "remote mount error"
    COMM ECOMM "sending failed"
    PROTO EPROTO "protocol error"
    MULTIHOP EMULTIHOP "multihop attempted"
    DOTDOT EDOTDOT "RFS error"
    BADMSG EBADMSG "malformed message"
    OVERFLOW EOVERFLOW "value too large for its type"
    NOTUNIQ ENOTUNIQ "name not unique on the network"
    BADFD EBADFD "file descriptor in a bad state"
    REMCHG EREMCHG "remote address changed"
    LIBACC ELIBACC "cannot load a shared library"
    LIBBAD ELIBBAD "damaged shared library"
    LIBSCN ELIBSCN "damaged .lib section"
    LIBMAX ELIBMAX "too many shared libraries"
    LIBEXEC ELIBEXEC "a shared library cannot be executed"
    ILSEQ EILSEQ "invalid byte sequence"
    RESTART ERESTART "interrupted: to be restarted"
    STRPIPE ESTRPIPE "pipe error of a stream"
    USERS EUSERS "too many users"
    NOTSOCK ENOTSOCK "not a socket"
    DESTADDRREQ EDESTADDRREQ "destination address required"
    MSGSIZE EMSGSIZE "message too long"
    PROTOTYPE EPROTOTYPE "wrong protocol for this socket"
    NOPROTOOPT ENOPROTOOPT "protocol option not available"
    PROTONOSUPPORT EPROTONOSUPPORT "protocol not supported"
    SOCKTNOSUPPORT ESOCKTNOSUPPORT "socket type not supported"
    NOTSUP EOPNOTSUPP "operation not supported"
    PFNOSUPPORT EPFNOSUPPORT "protocol family not supported"
    AFNOSUPPORT EAFNOSUPPORT "address family not supported"
    ADDRINUSE EADDRINUSE "address in use"
    ADDRNOTAVAIL EADDRNOTAVAIL "address not available"
    NETDOWN ENETDOWN "network is down"
    NETUNREACH ENETUNREACH "network unreachable"
    NETRESET ENETRESET "connection dropped by a network reset"
    CONNABORTED ECONNABORTED "connection aborted"
    CONNRESET ECONNRESET "connection reset by the peer"
    NOBUFS ENOBUFS "no buffer space left"
    ISCONN EISCONN "already connected"
    NOTCONN ENOTCONN "not connected"
    SHUTDOWN ESHUTDOWN "the endpoint was shut down"
    TOOMANYREFS ETOOMANYREFS "too many references"
    TIMEDOUT ETIMEDOUT "timed out"
    CONNREFUSED ECONNREFUSED "connection refused"
    HOSTDOWN EHOSTDOWN "host is down"
    HOSTUNREACH EHOSTUNREACH "no route to the host"
    ALREADY EALREADY "already in progress"
    INPROGRESS EINPROGRESS "now in progress"
    STALE ESTALE "stale file handle"
    UCLEAN EUCLEAN "the structure needs cleaning"
    NOTNAM ENOTNAM "not a XENIX named file"
    NAVAIL ENAVAIL "no XENIX semaphores available"
    ISNAM EISNAM "is a named file"
    REMOTEIO EREMOTEIO "remote input or output failed"
    DQUOT EDQUOT "quota exceeded"
    NOMEDIUM ENOMEDIUM "no medium"
    MEDIUMTYPE EMEDIUMTYPE "wrong type of medium"
    CANCELED ECANCELED "canceled"
    NOKEY ENOKEY "no such key"
    KEYEXPIRED EKEYEXPIRED "key expired"
    KEYREVOKED EKEYREVOKED "key revoked"
    KEYREJECTED EKEYREJECTED "key rejected by the service"
    OWNERDEAD EOWNERDEAD "the owner died"
    NOTRECOVERABLE ENOTRECOVERABLE "state not recoverable"
    RFKILL ERFKILL "blocked by rfkill"
    HWPOISON EHWPOISON "memory page with a hardware error"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text(raw: i32) -> String {
        Described(Errno::from_raw_os_error(raw)).to_string()
    }

    #[test]
    fn each_prints_as_name_and_meaning() {
        assert_eq!(text(libc::ENOENT), "ENOENT (no such file or directory)");
        assert_eq!(format!("{:?}", Described(Errno::PERM)), "EPERM (operation not permitted)");
        assert_eq!(text(524), "ENOTSUPP (operation not supported by the driver)");
        assert_eq!(text(4000), "errno 4000");
    }

    #[test]
    fn names_are_those_of_the_c_library() {
        let ours = TABLE.iter().map(|(errno, ..)| errno.raw_os_error());
        let theirs = NUMBERS.iter().copied().chain([524]);
        assert!(ours.eq(theirs));
        for (errno, name, meaning) in TABLE {
            assert!(name.starts_with('E') && !meaning.is_empty(), "{name}");
            assert_eq!(text(errno.raw_os_error()), format!("{name} ({meaning})"));
        }
    }

    #[test]
    fn errnos_names_and_meanings_are_unique() {
        let errnos: BTreeSet<_> = TABLE.iter().map(|(errno, ..)| errno.raw_os_error()).collect();
        let names: BTreeSet<_> = TABLE.iter().map(|(_, name, _)| name).collect();
        let meanings: BTreeSet<_> = TABLE.iter().map(|(.., meaning)| meaning).collect();
        assert_eq!([errnos.len(), names.len(), meanings.len()], [TABLE.len(); 3]);
    }

    #[test]
    fn no_errno_is_missing() {
        for raw in 1..4096 {
            let known = !std::io::Error::from_raw_os_error(raw).to_string().starts_with("Unknown");
            assert!(!known || text(raw).starts_with('E'), "{raw}");
        }
    }
}
