//! One suite of tests that runs against the Rust interface and against the C interface, on a simulated kernel.

#![allow(clippy::result_large_err)] // the cases take errors apart

mod api;
mod c;
mod cases;
mod rust;

macro_rules! suite {
    ($($case:ident)*) => {
        mod through_rust {
            $(#[test]
            fn $case() {
                crate::cases::$case::<crate::rust::Rust>();
            })*
        }
        mod through_c {
            $(#[test]
            fn $case() {
                crate::cases::$case::<crate::c::C>();
            })*
        }
    };
}

suite! {
    a_list_has_every_device
    a_device_is_found_by_each_key
    a_lookup_without_a_match_fails
    a_device_reports_what_it_is
    an_open_is_proved_check_by_check
    a_context_answers_queries
    a_descriptor_is_taken_out
    a_replaced_device_is_refused
    a_removed_device_is_refused
    a_node_that_leads_elsewhere_is_refused
    without_netlink_nothing_is_proved
    a_device_outlives_its_list_and_registry
    a_descriptor_is_verified
    a_handle_of_libibverbs_is_verified
    after_a_reload_of_ib_core_a_handle_is_refused
    lists_differ_by_their_changes
    a_watch_reports_each_change
    a_watch_waits
    events_arrive_and_end
    hostile_names_are_escaped
    faults_are_listed
    a_system_call_that_fails_is_named
}
