"""The fault matrix: what can happen to a run, what must come of it, and the tests that hold it to that.

As a script it prints the tests, for `pytest $(python -m tests.faults.matrix)`.
"""

from __future__ import annotations

from dataclasses import dataclass

KILL, RANKS, REAL, LOADING, NETWORK, ENDS = (
    f"tests/faults/test_{name}.py" for name in ("kill_and_resume", "ranks", "real_kills", "loading", "network", "ends")
)
EVERY_LAUNCHER = "every_launcher_goes_on_after_a_kill_of_a_rank_or_of_itself_and_after_signals"
RESUMED = "tests/unit/test_resumed_runs.py"
TRAIN, LAUNCHERS = "tests/end_to_end/test_train.py", "tests/end_to_end/test_launchers.py"
CHECKPOINT, OBSERVER = "tests/unit/test_checkpoint.py", "tests/unit/test_checkpoint_observer.py"
SAME_RUN, CONTRACT = "tests/multiprocess/test_same_run.py", "tests/multiprocess/test_contract.py"
SKIPPED = "tests/multiprocess/test_skipped_samples.py"
SHORTAGE = "tests/multiprocess/test_memory_shortage.py"
STRAGGLERS, RECOMPUTATION = (f"tests/multiprocess/test_{name}.py" for name in ("stragglers", "recomputation"))
GUARD, GUARD_OF_RANKS = "tests/unit/test_guard.py", "tests/multiprocess/test_guard.py"
RECORDS, LINES, FILES = (f"tests/unit/test_{name}.py" for name in ("records", "line_file", "durable_files"))
JSONL, WANDB = "tests/unit/test_trackers_jsonl.py", "tests/unit/test_trackers_wandb.py"
WORKERS, PREPARE, RESUME = (f"tests/unit/test_{name}.py" for name in ("data_workers", "prepare", "resume"))
DAMAGED, HOSTILE = "tests/faults/test_damaged_folders.py", "tests/unit/test_hostile_checkpoints.py"
MEETING, LAUNCH = "tests/unit/test_process_group.py", "tests/unit/test_launch.py"


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        number: of the row.
        fault: what happens.
        outcome: what must come of it.
        tests: `FILE::TEST`, without parameters.
        not_met: what is missing of the outcome, or why it cannot be injected here; empty: nothing.
        by_soak: whether `launch/test.sh soak` alone shows it.
    """

    number: int
    fault: str
    outcome: str
    tests: tuple[str, ...] = ()
    not_met: str = ""
    by_soak: bool = False


def _row(
    number: int, fault: str, outcome: str, *tests: tuple[str, str], not_met: str = "", by_soak: bool = False
) -> Row:
    return Row(number, fault, outcome, tuple(f"{file}::test_{name}" for file, name in tests), not_met, by_soak)


MATRIX = (
    _row(
        1,
        "rank killed inside a step",
        "named; resume is bitwise the same run",
        (KILL, "a_run_killed_inside_a_step_goes_on_bit_for_bit"),
        (RANKS, "a_killed_rank_is_named_by_the_other_and_the_job_goes_on_bit_for_bit"),
        (REAL, EVERY_LAUNCHER),
    ),
    _row(
        2,
        "killed twice in one epoch",
        "as 1",
        (KILL, "a_run_killed_again_and_again_comes_to_its_end"),
    ),
    _row(
        3,
        "killed inside a checkpoint",
        "whole or not at all; leftovers removed",
        (KILL, "a_checkpoint_that_is_killed_is_there_as_a_whole_or_not_at_all"),
        (CHECKPOINT, "death_at_any_moment_leaves_the_new_checkpoint_whole_or_the_former_ones"),
    ),
    _row(
        4,
        "one rank raises",
        "all stop; its error, its number",
        (RANKS, "a_rank_that_raises_tells_why_and_the_other_tells_who"),
    ),
    _row(
        5,
        "one rank exits with 0",
        "a failure that names it",
        (RANKS, "a_rank_that_leaves_as_if_all_were_well_is_a_failure_of_the_job"),
    ),
    _row(
        6,
        "SIGTERM to the launcher",
        "same step on all ranks, saved",
        (REAL, EVERY_LAUNCHER),
    ),
    _row(
        7,
        "signal to one rank",
        "as 6, resume bitwise",
        (RANKS, "a_signal_to_one_rank_stops_both_after_the_same_step_and_nothing_is_lost"),
        (RANKS, "three_ranks_stopped_at_any_step_go_on_to_the_last_bit_of_weights_rows_and_evaluations"),
    ),
    _row(
        8,
        "SIGUSR1 of Slurm",
        "as 6",
        (RANKS, "a_signal_to_one_rank_stops_both_after_the_same_step_and_nothing_is_lost"),
    ),
    _row(
        9,
        "second signal",
        "stops at once, former checkpoint intact",
        (RANKS, "a_second_signal_stops_at_once_and_the_checkpoint_before_is_intact"),
        ("tests/unit/test_interruption.py", "a_second_request_interrupts_at_once"),
    ),
    _row(
        10,
        "SIGTERM while saving",
        "saved as a whole",
        (RANKS, "a_signal_while_saving_leaves_a_whole_checkpoint"),
    ),
    _row(
        11,
        "SIGTERM while evaluating",
        "broken off, checkpoint of the last step, made up for",
        (RANKS, "a_signal_breaks_an_evaluation_off_and_the_resumed_run_makes_it_up"),
    ),
    _row(
        12,
        "Ctrl-C",
        "one request to stop, no traceback",
        (REAL, EVERY_LAUNCHER),
        (ENDS, "a_run_with_loading_processes_ends_with_its_code_and_they_end_with_it"),
    ),
    _row(
        13,
        "launcher killed",
        "no rank alive after 5 s",
        (REAL, EVERY_LAUNCHER),
        ("tests/unit/test_interruption.py", "a_rank_ends_with_its_torchrun_and_with_no_other_parent"),
        (LOADING, "loading_processes_end_with_a_rank_that_is_killed"),
        (ENDS, "a_process_of_multiprocessing_ends_in_the_middle_of_loading"),
    ),
    _row(
        14,
        "rank hangs, or the link to it is cut",
        "named in time, stack of the others",
        (RANKS, "a_rank_that_is_stopped_is_named_with_the_step_within_the_time_limit"),
        (NETWORK, "two_nodes_train_the_run_of_one_bit_for_bit"),
        (NETWORK, "a_link_cut_inside_a_step_is_told_on_both_sides_in_time_and_the_job_goes_on_bit_for_bit"),
        (LAUNCH, "a_torchrun_that_does_not_notice_that_all_its_ranks_have_ended_is_found"),
    ),
    _row(
        15,
        "rank hangs and holds the GIL",
        "as 14",
        (RANKS, "a_rank_that_holds_its_interpreter_is_named_within_the_time_limit"),
    ),
    _row(
        16,
        "straggler",
        "warning with rank and ratio, run goes on",
        (STRAGGLERS, "a_slow_rank_is_named_once_and_no_bit_of_the_run_is_another"),
        (STRAGGLERS, "a_run_names_a_slow_rank_and_has_the_ledger_of_one_that_does_not_look"),
        (STRAGGLERS, "ranks_that_are_slow_alike_are_not_accused"),
    ),
    _row(
        17,
        "rank skips a step",
        "stopped, named, nothing saved",
        (SAME_RUN, "a_rank_that_skips_a_step_is_found_and_named"),
    ),
    _row(
        18,
        "other config on a rank",
        "refused: key and both values",
        (SAME_RUN, "a_rank_of_another_run_is_refused_by_name_before_anything_is_written"),
    ),
    _row(
        19,
        "other code, data, seed on a rank",
        "refused",
        (SAME_RUN, "a_rank_of_another_run_is_refused_by_name_before_anything_is_written"),
    ),
    _row(
        20,
        "weights drift on a rank",
        "found within k steps, named",
        (SAME_RUN, "a_rank_with_another_weight_is_found_within_k_steps_and_named"),
        (SAME_RUN, "no_checkpoint_is_written_of_weights_that_ranks_do_not_share"),
    ),
    _row(
        21,
        "bit flip in a gradient before the sum",
        "found by recomputing, named, nothing updated or saved",
        (RECOMPUTATION, "every_flipped_bit_is_found_before_it_is_used_and_named_on_all_ranks"),
        (RECOMPUTATION, "nothing_is_saved_of_a_step_with_a_flipped_bit"),
        (RECOMPUTATION, "steps_that_are_computed_twice_are_bit_for_bit_those_computed_once"),
    ),
    _row(
        22,
        "NaN loss on one rank",
        "that step left out on all ranks, n in a row end the run",
        (GUARD_OF_RANKS, "a_fault_on_one_rank_is_one_skipped_step_on_all_of_them"),
        (GUARD_OF_RANKS, "bad_steps_in_a_row_end_the_run_on_all_ranks_after_the_same_step"),
        (CONTRACT, "a_nan_on_one_rank_ends_the_run_on_all_ranks_at_the_same_step"),
        (TRAIN, "weights_that_are_not_numbers_never_replace_a_good_checkpoint"),
    ),
    _row(
        23,
        "Inf in one gradient",
        "as 22",
        (GUARD_OF_RANKS, "a_fault_on_one_rank_is_one_skipped_step_on_all_of_them"),
        (GUARD, "weights_buffers_and_momentum_after_a_skipped_step_are_those_before_it"),
    ),
    _row(
        24,
        "loss spike",
        "log, skip or roll back; resume decides alike",
        (GUARD, "a_spike_is_skipped_by_the_threshold_and_the_limit_stays"),
        (GUARD, "a_rollback_goes_back_to_the_newest_checkpoint_and_on_behind_the_bad_batch"),
        (GUARD, "a_resumed_run_decides_as_an_uninterrupted_one"),
    ),
    _row(
        25,
        "overflow under fp16",
        "scaler state restored",
        (GUARD, "a_skipped_step_leaves_the_loss_scale_and_the_next_step_is_unscaled_once"),
        not_met="resuming the scaler itself needs a GPU",
    ),
    _row(
        26,
        "disk full at a checkpoint",
        "goes on or stops, bytes told, former intact",
        (CHECKPOINT, "a_write_that_the_system_refuses_is_told_with_bytes_and_leaves_the_former"),
        (CHECKPOINT, "a_disk_without_room_is_refused_before_the_first_byte"),
        (OBSERVER, "a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on"),
        (OBSERVER, "or_it_stops_the_run_where_that_is_asked_for"),
        (SAME_RUN, "every_rank_learns_that_rank_0_could_not_save"),
        (RANKS, "no_rank_ends_well_where_the_last_weights_are_not_on_the_disk"),
        (RECORDS, "a_full_disk_costs_what_does_not_fit_and_the_end_says_so"),
    ),
    _row(
        27,
        "disk full for records",
        "goes on, loss counted",
        (TRAIN, "a_ledger_that_cannot_be_written_costs_rows_and_not_the_run"),
        (JSONL, "a_full_disk_is_counted_and_printed_once"),
        (JSONL, "rows_after_a_full_disk_are_whole_again"),
        (RECORDS, "whichever_call_of_a_run_fails_its_records_are_whole_and_the_next_start_completes_them"),
        (LINES, "whichever_call_fails_earlier_lines_stay_and_later_ones_are_whole"),
        (FILES, "whichever_call_fails_the_file_is_the_former_or_the_new_one"),
    ),
    _row(
        28,
        "checkpoint folder cannot be made or vanishes",
        "as 26",
        (CHECKPOINT, "a_folder_that_cannot_be_made_is_a_checkpoint_error"),
        (KILL, "a_checkpoint_folder_that_vanishes_comes_back_with_the_next_checkpoint"),
        (RECORDS, "a_folder_that_is_renamed_is_followed_with_everything"),
        (RECORDS, "a_folder_that_is_removed_is_made_anew_with_all_rows"),
        (RECORDS, "where_it_cannot_be_made_anew_the_run_goes_on_and_its_end_tells_what_is_not_saved"),
        (RECORDS, "a_removed_checkpoint_is_told"),
    ),
    _row(
        29,
        "truncated checkpoint",
        "passed over, told",
        (CHECKPOINT, "every_truncation_and_extension_is_found"),
        (RESUMED, "an_older_one_is_used_the_newer_named_and_kept_and_its_rows_come_once"),
    ),
    _row(
        30,
        "bit flip in a checkpoint",
        "every one is found",
        (CHECKPOINT, "every_flipped_bit_is_found"),
        ("tests/unit/test_checkpoint_verb.py", "one_bit_anywhere_is_found"),
    ),
    _row(
        31,
        "file or manifest missing",
        "as 29",
        (CHECKPOINT, "a_missing_file_makes_the_one_before_the_newest_valid"),
        (CHECKPOINT, "each_newer_checkpoint_is_rejected_with_its_reason"),
    ),
    _row(32, "stale pointer to the latest", "ignored", (KILL, "junk_beside_the_checkpoints_is_ignored")),
    _row(
        33,
        "pickle in a checkpoint",
        "refused, never executed",
        (CHECKPOINT, "a_pickle_in_place_of_a_file_is_refused_and_never_executed"),
    ),
    _row(
        34,
        "two runs in one folder",
        "refused, owner named",
        ("tests/unit/test_folder_lock.py", "a_second_process_is_refused_with_the_first_ones_number_and_a_kill_lets_go"),
        (TRAIN, "a_folder_that_another_process_writes_to_is_refused"),
    ),
    _row(
        35,
        "resumed on other numbers of ranks",
        "same samples; bitwise in strict mode",
        (RANKS, "a_job_goes_on_with_any_number_of_ranks_and_any_micro_batch"),
        (RANKS, "pinned_micro_batches_in_order_are_bitwise_the_same_run_on_other_ranks"),
        (LAUNCHERS, "two_nodes_that_meet_by_c10d_rendezvous_finish_what_one_process_has_begun"),
    ),
    _row(
        36,
        "batch not divisible by the ranks",
        "uneven split, exact weights",
        (CONTRACT, "every_factorization_equals_one_big_batch_in_float64"),
    ),
    _row(
        37,
        "other micro-batch on resume",
        "same samples",
        (RANKS, "a_job_goes_on_with_any_number_of_ranks_and_any_micro_batch"),
    ),
    _row(
        38,
        "other model, optimizer, data or seed on resume",
        "refused, keys and values",
        (TRAIN, "resume_refuses_another_run_and_names_what_changed"),
        (RESUME, "no_permission_lets_another_run_go_on"),
    ),
    _row(
        39,
        "other length or schedule on resume",
        "needs a permission, recorded",
        (TRAIN, "a_run_goes_on_longer_where_that_is_allowed_and_its_history_says_so"),
        (RESUME, "a_change_of_length_or_rate_needs_a_permission_and_the_error_names_it"),
    ),
    _row(40, "other package versions on resume", "told", (RESUME, "versions_that_changed_are_told")),
    _row(
        41,
        "other data on resume",
        "refused",
        (RESUME, "a_training_set_that_grew_or_shrank_is_another_run"),
        (RESUME, "other_samples_under_the_same_name_are_another_run_unless_that_is_allowed"),
    ),
    _row(
        42,
        "resumed at an epoch's end, in the last step, after it",
        "correct; already finished",
        (KILL, "a_run_goes_on_at_the_boundary_of_an_epoch"),
        (KILL, "a_run_killed_in_its_last_step_takes_it_again"),
        (KILL, "a_run_that_has_ended_is_already_finished"),
    ),
    _row(
        43,
        "killed inside evaluation or accumulation",
        "the step is taken again as a whole",
        (KILL, "a_step_killed_inside_accumulation_is_taken_again_as_a_whole"),
        (KILL, "a_run_killed_while_it_evaluates_goes_on_bit_for_bit"),
    ),
    _row(
        44,
        "random draws after a resume",
        "bitwise, any number of workers",
        (LOADING, "random_items_and_dropout_are_bitwise_the_same_after_kills_with_any_number_of_workers"),
        (WORKERS, "no_one_and_two_workers_give_bitwise_the_same_batches"),
        (CONTRACT, "pinned_micro_batches_make_batch_norm_dropout_and_augmentation_agree_on_any_world"),
    ),
    _row(
        45,
        "loading process killed or hangs",
        "error names the samples, bounded",
        (WORKERS, "a_killed_worker_is_an_error_that_names_the_samples_it_had_where_they_are_waited_for"),
        (WORKERS, "a_hanging_worker_is_an_error_within_the_time_limit"),
    ),
    _row(
        46,
        "bad sample",
        "named; or skipped and counted, alike on any ranks",
        (WORKERS, "a_bad_sample_is_named_after_the_good_ones_before_it"),
        ("tests/unit/test_data_images.py", "a_bad_row_is_named_with_its_file"),
        (SKIPPED, "a_step_is_that_of_the_sound_samples_alone"),
        (SKIPPED, "every_skipped_sample_is_told_with_its_reason_and_counted"),
        (SKIPPED, "any_number_of_ranks_and_any_micro_batch_skip_alike"),
    ),
    _row(
        47,
        "uneven data over ranks",
        "exact weights; each example once",
        ("tests/multiprocess/test_evaluation.py", "every_example_counts_exactly_once_on_any_world"),
        ("tests/unit/test_data_loader.py", "every_sample_comes_once_per_epoch_when_the_batch_does_not_divide_the_set"),
    ),
    _row(48, "W&B down at the start", "offline, a line", (WANDB, "a_server_that_is_down_costs_a_line_and_no_time")),
    _row(49, "W&B dies", "counted, never raises", (WANDB, "a_service_that_dies_is_counted_and_never_raises")),
    _row(50, "no key, no terminal", "never asks", (WANDB, "online_without_a_key_never_asks_for_one")),
    _row(51, "W&B gets an odd value", "counted", (WANDB, "odd_values_cost_themselves_and_are_counted")),
    _row(
        52,
        "unused or frozen parameters",
        "named before step 1",
        (PREPARE, "bad_input_is_reported_with_its_key_and_a_remedy_and_nothing_else"),
    ),
    _row(
        53,
        "batch norm statistics per rank",
        "merged exactly",
        ("tests/multiprocess/test_running_statistics.py", "any_number_of_ranks_arrives_at_the_statistics_of_one"),
    ),
    _row(
        54,
        "port taken",
        "told with the remedy",
        ("tests/unit/test_doctor.py", "a_port_that_is_taken_is_a_problem_only_where_rank_0_opens_it"),
        (MEETING, "a_port_that_is_taken_is_told_by_rank_0_with_the_variable_to_set"),
    ),
    _row(
        55,
        "a node never comes",
        "bounded, count told",
        (MEETING, "ranks_that_do_not_come_are_counted_and_named_and_nothing_is_left_behind"),
        (MEETING, "a_run_whose_other_ranks_do_not_come_ends_with_one_line_as_any_wrong_input"),
        (MEETING, "ranks_that_have_come_all_say_the_same_about_those_that_have_not"),
        (MEETING, "a_rank_that_cannot_reach_rank_0_says_where_and_why"),
        (LAUNCH, "a_node_whose_others_never_come_says_so_in_one_line"),
        (LAUNCH, "a_node_that_does_not_reach_the_meeting_point_says_so_in_one_line"),
    ),
    _row(
        56,
        "out of memory on one rank",
        "all ranks lower the micro-batch and take the step again",
        (SHORTAGE, "a_run_that_does_not_fit_is_bit_for_bit_the_one_that_began_with_smaller_micro_batches"),
        (SHORTAGE, "a_shortage_in_the_middle_changes_the_cut_from_there_on_and_no_sample"),
        (SHORTAGE, "a_single_sample_that_does_not_fit_ends_the_run_on_every_rank_and_says_where"),
        (TRAIN, "a_run_without_enough_memory_lowers_its_micro_batches_and_says_so"),
    ),
    _row(
        57,
        "clock jumps",
        "durations are monotonic",
        ("tests/unit/test_house.py", "durations_are_never_taken_from_the_wall_clock"),
    ),
    _row(
        58,
        "too many threads",
        "told with the number that fits",
        ("tests/unit/test_doctor.py", "more_threads_than_cores_are_told_with_the_number_that_fits"),
    ),
    _row(
        59,
        "killed before the first checkpoint",
        "from scratch, says so",
        (KILL, "a_run_killed_before_its_first_checkpoint_starts_from_scratch_and_says_so"),
    ),
    _row(
        60,
        "30 random faults, 60 kills of real jobs; every way out under every launcher",
        "ledger, rows and weights of the uninterrupted run; its exit code, no process left",
        ("tests/faults/test_soak.py", "thirty_random_faults_end_with_the_weights_of_the_uninterrupted_run"),
        (REAL, "sixty_real_kills_end_with_the_uninterrupted_run"),
        (ENDS, "a_job_ends_with_its_code_and_leaves_no_process"),
        by_soak=True,
    ),
    _row(
        61,
        "hostile checkpoint",
        "passed over or refused with its reason; nothing imported, no hang",
        (HOSTILE, "every_kind_of_hostile_checkpoint_is_passed_over_and_named_by_every_consumer"),
        (HOSTILE, "a_file_that_cannot_be_this_model_is_refused_before_a_byte_of_it_is_read"),
    ),
    _row(
        62,
        "damaged run folder",
        "named, the others drawn; no traceback, no hang",
        (DAMAGED, "of_forty_damaged_folders_each_is_named_and_the_healthy_ones_are_drawn_as_without_them"),
        (DAMAGED, "folders_that_vanish_or_cannot_be_looked_into_are_named"),
        (DAMAGED, "what_stops_the_page_all_the_same_is_found_and_left_out"),
        (DAMAGED, "compare_leaves_damaged_runs_out_by_name_and_ledger_refuses_them"),
    ),
    _row(
        63,
        "300 hostile checkpoints, 300 damaged folders, secrets in 16 kinds of processes",
        "as 61, 62 and 64",
        (HOSTILE, "three_hundred_hostile_checkpoints"),
        (DAMAGED, "three_hundred_damaged_folders_end_without_traceback_or_hang"),
        ("tests/end_to_end/test_canaries.py", "no_byte_of_real_processes_holds_a_secret"),
        by_soak=True,
    ),
    _row(
        64,
        "secret in a config or a variable",
        "refused, or in no byte of what a run leaves",
        ("tests/end_to_end/test_canaries.py", "no_byte_of_a_run_and_nothing_that_it_prints_holds_a_secret"),
    ),
)

if __name__ == "__main__":
    print("\n".join(sorted({test for row in MATRIX for test in row.tests})))
