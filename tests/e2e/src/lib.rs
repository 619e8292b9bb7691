//! Scenarios of the whole product, told in the lab: one function each, grouped by what they show.
//!
//! `cargo test -p e2e` starts one lab and runs all of them in turn; `cargo test -p e2e -- cut`
//! those with `cut` in their names. To add one, write a function that takes the lab and gives an
//! [`lab::scenario::Outcome`], and put its name into [`ALL`].
//! With `GODWIT_LAB_STOCK=1` those in [`ASKED_FOR`] are told, too.

pub mod cluster;
mod drs;
mod ground;
mod guest;
mod guests;
mod leases;
mod life;
mod maintenance;
mod migration;
mod survival;
pub mod web;
mod witness;

use lab::scenario::Scenario;
use lab::scenarios;

/// Every scenario, in the order in which they are told.
pub const ALL: &[Scenario] = scenarios![
    ground::hosts_reach_each_other,
    ground::hosts_have_their_own_identity,
    ground::programs_and_kvm_are_there,
    ground::files_go_in_and_come_back,
    ground::the_datastore_is_coherent,
    ground::a_file_is_cloned_on_the_server,
    ground::a_cut_cable_separates_and_heals,
    ground::one_way_cuts_lose_one_way,
    ground::a_frozen_host_stands_still,
    ground::a_stopped_clock_loses_time,
    ground::a_power_cut_leaves_an_empty_host,
    ground::a_dead_hosts_lock_becomes_free,
    ground::the_datastore_survives_a_power_cut_of_the_storage,
    guests::a_busybox_guest_answers_reboots_in_place_and_powers_off,
    guests::a_debian_guest_outlives_its_vmm_on_a_raw_disk,
    guests::a_debian_guest_finds_what_fio_wrote,
    cluster::hosts_form_a_cluster,
    cluster::the_lead_moves_when_the_leader_dies,
    cluster::a_cut_off_host_is_isolated_and_not_dead,
    cluster::a_guest_migrates_by_one_command,
    life::life_of_a_guest_from_creation_to_deletion,
    life::life_of_a_cluster_that_shrinks,
    migration::a_debian_guest_moves_there_and_back,
    drs::drs_evens_out_load_and_mends_a_rule_with_one_move,
    maintenance::maintenance_empties_a_host_and_no_connection_breaks,
    maintenance::maintenance_goes_on_when_the_leader_dies_in_the_middle,
    survival::survival_the_leader_dies_with_its_guest_and_comes_back,
    survival::survival_the_last_host_of_three_brings_everything_back,
    survival::survival_two_hosts_need_no_third,
    survival::survival_a_thawed_host_gives_up_its_guest,
    survival::survival_a_host_without_storage_gives_up_its_guest,
    survival::survival_what_spares_the_guest_restarts_nothing,
    survival::survival_an_isolated_host_responds_as_it_was_told,
    leases::leases_one_wins_every_race,
    leases::leases_a_spec_loses_no_change,
    leases::leases_a_power_cut_moves_the_guest,
    leases::leases_a_thawed_holder_writes_nothing,
    leases::leases_a_holder_whose_clock_stood_still_reaches_no_disk,
    leases::leases_a_cut_that_heals_in_time_is_a_pause,
    leases::leases_a_cut_that_lasts_moves_the_guest,
    leases::leases_a_storage_restart_moves_nobody,
    leases::leases_a_stale_file_is_found_again,
    leases::leases_a_dead_agent_costs_no_guest,
];

/// What takes minutes, and an image that nothing else needs.
pub const ASKED_FOR: &[Scenario] =
    scenarios![guests::a_stock_debian_boots_to_its_login_reboots_and_powers_off];
