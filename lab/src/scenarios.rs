//! The scenarios, grouped by topic.

mod capi;
mod cdi;
mod checking;
mod containers;
mod events;
mod expect;
pub(crate) mod guard;
mod limits;
mod listing;
mod nodes;
mod parents;
mod passing;
mod proof;
mod providers;
mod queries;
mod replacing;
pub(crate) mod soak;
mod sriov;
mod traced;
pub(crate) mod watching;

use anyhow::Result;

use crate::container::{self, Runtime};
use crate::functions;

/// A scenario: it passes when it returns no error.
pub(crate) type Scenario = fn() -> Result<()>;

/// Scenarios that run in one guest.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// In the order in which they run.
    pub(crate) scenarios: &'static [(&'static str, Scenario)],
    /// The option of `cargo xtask lab run` that the guest has to be started with; empty if any guest will do.
    pub(crate) option: &'static str,
    /// Whether this guest was.
    pub(crate) is_possible: fn() -> bool,
}

/// The group that runs where none is named.
pub(crate) const PLAIN: &str = "plain";

pub(crate) const GROUPS: &[Group] = &[
    Group { name: PLAIN, scenarios: ANYWHERE, option: "", is_possible: || true },
    Group {
        name: "sriov",
        scenarios: SRIOV,
        option: "--sriov",
        is_possible: || functions::directory(functions::PF).exists(),
    },
    Group {
        name: "containers",
        scenarios: CONTAINERS,
        option: "--sriov --containers --memory 2048",
        is_possible: container::is_possible,
    },
];

/// With virtual functions, and with runtimes for containers.
const CONTAINERS: &[(&str, Scenario)] = &[
    ("containers_of_crun_prove_in_shared_mode", || containers::shared(Runtime::Crun)),
    ("containers_of_runc_prove_in_shared_mode", || containers::shared(Runtime::Runc)),
    ("containers_of_podman_prove_in_shared_mode", || containers::shared(Runtime::Podman)),
    ("containers_prove_in_the_hosts_namespace_in_exclusive_mode", containers::exclusive),
    ("containers_control_the_function_that_took_the_number", containers::control),
    ("containers_get_cdi_devices_and_hooks", containers::cdi_and_hooks),
    ("cdi_gives_a_function_and_refuses_the_next_one", cdi::given_or_refused),
    ("cdi_control_without_a_hook", cdi::control),
    ("cdi_functions_that_are_bound_again", cdi::rebound),
    ("cdi_instances_of_another_boot", cdi::rebooted),
    ("containers_promtool_checks_metrics", containers::promtool),
    ("containers_promtool_accepts_metrics_of_check", checking::promtool_accepts_metrics),
];

/// With virtual functions.
const SRIOV: &[(&str, Scenario)] = &[
    ("sriov_functions_appear_and_vanish", sriov::appear),
    ("sriov_number_is_taken_by_another_function", sriov::number_is_taken),
    ("sriov_control_libibverbs_opens_the_other_function", sriov::control_libibverbs),
    ("sriov_number_is_taken_while_unbinding_waits", sriov::unbinding_waits),
    ("sriov_many_functions_at_once", sriov::many_at_once),
    ("sriov_cost_of_a_list", sriov::cost_of_a_list),
    ("cdi_watch_writes_a_burst_once", cdi::burst),
];

/// In any guest. Those that reload modules come last.
const ANYWHERE: &[(&str, Scenario)] = &[
    ("list_matches_the_kernel", listing::matches_the_kernel),
    ("open_succeeds_with_evidence_on_each", listing::open_succeeds_with_evidence),
    ("hostile_names_are_listed_and_escaped", listing::hostile_names),
    ("wrong_contents_are_an_error_for_that_device", listing::wrong_contents),
    ("mounted_over_is_an_error_for_that_device", listing::mounted_over),
    ("parents_match_sysfs", parents::match_sysfs),
    ("parents_ports_match_rdma_link", parents::ports_match_rdma),
    ("parents_cost_beside_ibv_devices", parents::a_list_beside_libibverbs),
    ("a_context_matches_ibv_devinfo_and_sysfs", queries::rxe),
    ("every_speed_of_a_port", queries::speeds),
    ("a_removed_device_answers_no_query", queries::removed),
    ("every_kind_of_async_event", events::every_kind),
    ("a_removal_ends_the_events", events::removal_ends_the_stream),
    ("a_removal_ends_a_tokio_stream", events::a_stream_ends),
    ("without_disassociation_no_removal_is_reported", events::no_removal_is_reported),
    ("a_hundred_contexts_while_devices_vanish", events::a_hundred),
    ("fork_safety_is_reported", events::fork_safety),
    ("a_context_is_passed_to_a_sandboxed_worker", passing::broker),
    ("show_matches_rdma", passing::show),
    ("check_opens_nodes_only_on_request", passing::check),
    ("a_hold_ends_with_the_device", passing::hold),
    ("check_names_devices_of_another_network_namespace", passing::exclusive),
    ("check_has_a_status_for_each_result", checking::statuses),
    ("check_gives_up_on_a_device_that_hangs", checking::hangs),
    ("check_leaves_one_child_behind", checking::left_behind),
    ("check_is_not_misled_by_another_user", checking::left_behind_by_another_user),
    ("check_waits_for_a_check_at_the_same_time", checking::at_once),
    ("check_writes_metrics", checking::metrics),
    ("providers_give_each_driver_its_data", providers::each_driver),
    ("providers_are_found_by_modalias", providers::by_modalias),
    ("providers_of_another_abi_do_not_open", providers::abi_out_of_range),
    ("providers_unknown_give_no_data", providers::unknown),
    ("providers_of_the_program_are_torn_down_once", providers::registered),
    ("providers_may_open_devices", providers::reentry),
    ("a_handle_opens_after_its_list_was_dropped", listing::handle_outlives_list),
    ("control_libibverbs_opens_the_replacement", replacing::control_libibverbs),
    ("replaced_with_another_guid", replacing::other_guid),
    ("replaced_with_the_same_guid", replacing::same_guid),
    ("replaced_rxe", replacing::rxe),
    ("removed", replacing::removed),
    ("renamed", replacing::renamed),
    ("evicted_from_the_cache", replacing::evicted),
    ("timestamps_moved_by_listxattr", replacing::listxattr),
    ("static_node_bound_to_the_old_device", nodes::static_node),
    ("static_node_equal_guids", nodes::static_node_equal_guids),
    ("hand_made_node_in_devtmpfs", nodes::hand_made),
    ("static_node_rxe", nodes::static_node_rxe),
    ("wrong_kinds_of_node", nodes::wrong_kinds),
    ("forbidden_node", nodes::forbidden),
    ("eight_threads_two_devices", proof::eight_threads),
    ("contexts_come_and_go_in_another_process", proof::churn),
    ("more_contexts_than_the_first_buffer_holds", proof::long_list),
    ("more_contexts_than_one_message_holds", proof::paged),
    ("the_thread_of_a_proof_allocates_nothing", proof::allocates_nothing),
    ("child_pid_namespace", proof::pid_namespace),
    ("netlink_denied", proof::netlink_denied),
    ("verify_refuses_other_descriptors", proof::verify),
    ("strace_list_and_open", traced::list_and_open),
    ("strace_wrong_node_is_not_opened", traced::wrong_node),
    ("strace_replaced_node_is_not_opened", traced::replaced),
    ("strace_known_gone_makes_no_call", traced::known_gone),
    ("openat2_blocked", traced::openat2_blocked),
    ("example_hotplug", traced::example_hotplug),
    ("example_handed_in", traced::example_handed_in),
    ("watch_beside_random_changes", watching::on_a_thread),
    ("watch_and_loaded_modules", watching::loads),
    ("watch_read_between_random_changes", watching::between),
    ("watch_reports_a_removal_that_waits", watching::blocked),
    ("watch_overflow", watching::burst),
    ("watch_forged_events", watching::container::forged),
    ("watch_repeated_events", watching::synthetic),
    ("watch_in_a_container", watching::container::events_of_doubles),
    ("watch_without_events", watching::container::without_events),
    ("watch_as_a_tokio_stream", watching::a_stream),
    ("watch_system_calls", watching::idle),
    ("watch_does_not_grow", watching::memory),
    ("capi_lists_what_the_command_lists", capi::lists),
    ("capi_opens_with_evidence", capi::opens),
    ("capi_refuses_a_replaced_device", capi::refuses),
    ("capi_verifies_opens_of_libibverbs", capi::verifies),
    ("capi_watches", capi::watches),
    ("guard_each_class_of_caller", guard::each_class),
    ("guard_names_swapped", guard::names_swapped),
    ("guard_moved_to_another_namespace", guard::moved),
    ("guard_programs_behave_the_same", guard::behave_the_same),
    ("guard_symbolic_libibverbs", guard::symbolic_library),
    ("guard_older_libibverbs", guard::older_library),
    ("guard_unknown_private_interface", guard::unknown_interface),
    ("guard_inside_a_program", guard::inside),
    ("guard_threads_list_at_once", guard::list_at_once),
    ("guard_rdmacm_after_a_refusal", guard::after_a_refusal),
    ("guard_unproven", guard::unproven),
    ("guard_is_not_loaded", guard::refuses),
    ("boundaries_see_deaths_hangs_and_threads", crate::boundary::deaths_hangs_and_threads),
    ("every_system_call_bounded", crate::boundary::sampled),
    ("guard_every_system_call_bounded", crate::boundary::guarded_sample),
    ("control_every_system_call", crate::boundary::control),
    ("soak_bounded", soak::bounded),
    ("a_thousand_devices_sixteen_descriptors", limits::thousand),
    ("no_leak_under_leak_sanitizer", limits::no_leak),
    ("uverbs_reloaded", replacing::uverbs_reloaded),
    ("core_reloaded_with_index_reuse", replacing::core_reloaded),
    ("guard_core_reloaded", guard::core_reloaded),
    ("capi_core_reloaded", capi::core_reloaded),
    ("watch_while_modules_are_reloaded", watching::unload),
    ("uevents_as_simulated", crate::compare::uevents::all),
    ("simulator_is_true", crate::compare::sampled),
];

/// Scenarios that run for a fixed time: samples of what `cargo xtask prove` runs.
pub(crate) const SAMPLES: [&str; 5] = [
    "every_system_call_bounded",
    "guard_every_system_call_bounded",
    "control_every_system_call",
    "soak_bounded",
    "simulator_is_true",
];
