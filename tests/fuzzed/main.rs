//! Runs the seeds of the fuzz targets (`fuzz/`), and random bytes, through the code of the targets.

mod event;
mod input;
mod plan;
mod plugged;
mod responses;
mod sanity;
mod uevents;

use proptest::prelude::*;

/// Runs a target on each of its seeds.
#[allow(clippy::disallowed_methods)] // a test reads its own files
fn replay(target: &str, run: fn(&[u8])) {
    let seeds = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for seed in std::fs::read_dir(&seeds).expect("seeds") {
        run(&std::fs::read(seed.expect("a seed").path()).expect("a seed"));
        count += 1;
    }
    assert!(count >= 5, "{seeds} has only {count}");
}

#[test]
fn seeds() {
    replay("attributes", uverbs::fuzzing::attributes);
    replay("netlink", uverbs::fuzzing::netlink);
    replay("plan", plan::run);
    replay("responses", responses::run);
    replay("uevents", uevents::run);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn plans(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        plan::run(&bytes);
    }

    #[test]
    fn answers(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        responses::run(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn messages(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        uevents::run(&bytes);
    }
}

/// Without the checks that no other check backs, some seeds lead to the wrong device. So the model notices wrong
/// devices.
#[cfg(uverbs_leave_out)]
#[test]
fn the_model_sees_a_wrong_device() {
    use uverbs::{CheckId, Step, leave_out::leave_out};

    for (seed, check) in [
        ("stale-node", (Step::Prove, CheckId::ProtectionDomain)),
        ("replaced", (Step::Pin, CheckId::UverbsInode)),
    ] {
        let seed = format!("{}/fuzz/seeds/plan/{seed}", env!("CARGO_MANIFEST_DIR"));
        #[allow(clippy::disallowed_methods)] // a test reads its own files
        let bytes = std::fs::read(&seed).expect("a seed");
        plan::run(&bytes);
        leave_out(&[check]);
        let panic =
            std::panic::catch_unwind(|| plan::run(&bytes)).expect_err("nothing was noticed");
        leave_out(&[]);
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains("WRONG DEVICE") || text.contains("another device"), "{text}");
    }
}
