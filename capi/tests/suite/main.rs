//! One suite of tests that runs against the Rust interface and against the C interface, on a simulated kernel.

#![allow(clippy::result_large_err)] // the cases take errors apart

mod api;
mod c;
mod cases;
mod parents;
mod rust;

macro_rules! suite {
    ($($file:ident: $($case:ident)*;)*) => {
        mod through_rust {
            $($(#[test]
            fn $case() {
                crate::$file::$case::<crate::rust::Rust>();
            })*)*
        }
        mod through_c {
            $($(#[test]
            fn $case() {
                crate::$file::$case::<crate::c::C>();
            })*)*
        }
    };
}

suite! {
    cases:
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
    a_system_call_that_fails_is_named;
    parents:
    each_parent_is_reported
    hostile_names_of_parents_stay_as_they_are
    a_parent_that_cannot_be_read_is_an_error
    devices_are_found_by_pci_address
    ports_and_their_network_devices_are_reported;
}
