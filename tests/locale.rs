//! Printing an error opens no file, even if the program has a locale.
//!
//! glibc looks for translations of `strerror(3)` once `setlocale(3)` was called, so a sandboxed program would be
//! killed by its own error message. The test starts itself again, with a filter that kills it if it opens a file.
#![allow(unsafe_code)] // setlocale
#![allow(clippy::disallowed_methods)] // a test makes the tree that it passes in

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use uverbs::{Error, Host, Registry};

const ROLE: &str = "UVERBS_TEST_ROLE";

#[test]
fn printing_an_error_opens_no_file() {
    match std::env::var(ROLE).as_deref() {
        Ok("ours") => {
            let error = refused();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
            behind_the_filter(|| format!("{error} {error:?}"));
        }
        Ok("strerror") => {
            behind_the_filter(|| std::io::Error::from_raw_os_error(libc::ELOOP).to_string());
        }
        _ => {
            let ours = started("ours");
            assert!(ours.success(), "{ours}");
            // This case shows that the filter works.
            if cfg!(target_env = "gnu") {
                assert_eq!(started("strerror").signal(), Some(libc::SIGSYS));
            }
        }
    }
}

fn started(role: &str) -> ExitStatus {
    let mut test = Command::new(std::env::current_exe().expect("this program"));
    test.args(["--exact", "printing_an_error_opens_no_file", "--test-threads=1"]);
    test.env(ROLE, role).status().expect("it starts")
}

/// An error of a system call: there is a link in place of a directory.
fn refused() -> Error {
    let root = std::env::temp_dir().join(format!("uverbs-locale-{}", std::process::id()));
    std::fs::create_dir_all(root.join("elsewhere")).expect("made");
    std::os::unix::fs::symlink("elsewhere", root.join("class")).expect("made");
    let dir = || Dir::open_ambient_dir(&root, ambient_authority()).expect("opened");
    let host = Host::builder().sys(dir()).dev(dir()).allow_foreign_sys(true).build();
    let host = host.expect("a host");
    let error = Registry::new(host).devices().expect_err("refused");
    std::fs::remove_dir_all(&root).expect("removed");
    error
}

fn behind_the_filter(format: impl FnOnce() -> String) {
    // SAFETY: no other thread of this process reads or sets the locale meanwhile.
    let set = unsafe { libc::setlocale(libc::LC_ALL, c"C.UTF-8".as_ptr()) };
    assert!(!set.is_null(), "there is no C.UTF-8");
    let calls = [libc::SYS_openat];
    #[cfg(target_arch = "x86_64")]
    let calls = calls.into_iter().chain([libc::SYS_open]);
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let (open, rest) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let arch = std::env::consts::ARCH.try_into().expect("a filter for it");
    let filter = SeccompFilter::new(rules, rest, open, arch).expect("a filter");
    seccompiler::apply_filter(&BpfProgram::try_from(filter).expect("a program")).expect("applied");
    assert!(!format().is_empty());
}
