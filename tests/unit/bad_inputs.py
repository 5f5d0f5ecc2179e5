"""Bad inputs of a run, each with the tests that hold its error: fact, rule and remedy, before anything is trained.

Most are told before any process group. What only rank 0 can see, in the folder of the run and at the meeting point, is
told by all ranks once they have met, or by each of them when they do not.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIG, PREPARE, CLI, LAUNCHER, TARGETS, CREDENTIALS, DOCTOR, BATCH, RUNTIME, RESUME, CHECKPOINT, MEETING, LOCK = (
    f"tests/unit/test_{name}.py"
    for name in (
        "config", "prepare", "cli", "launcher", "targets", "credentials", "doctor", "batch", "runtime", "resume",
        "checkpoint", "process_group", "folder_lock",
    )
)  # fmt: skip
IMAGES, TOKENS, SYNTHETIC = (f"tests/unit/test_data_{name}.py" for name in ("images", "tokens", "array"))
GROUPS, MEMORY, WANDB = (f"tests/unit/test_{name}.py" for name in ("optim_groups", "machine_memory", "trackers_wandb"))
TRAIN, LAUNCHERS = "tests/end_to_end/test_train.py", "tests/end_to_end/test_launchers.py"

# Tables of overrides and errors.
VALUE = (CONFIG, "a_bad_value_is_one_line_with_key_value_rule_and_remedy")
TABLE = (PREPARE, "bad_input_is_reported_with_its_key_and_a_remedy_and_nothing_else")
OF_HYDRA = (CONFIG, "what_hydra_itself_refuses")
HINT = ("tests/unit/test_remedies.py", "what_does_not_exist_is_one_line_with_what_was_meant")
RAMP = (PREPARE, "a_ramp_that_makes_no_sense_is_refused")
ENVIRONMENT = (LAUNCHER, "every_problem_is_one_sentence_with_the_variable_and_a_remedy")


@dataclass(frozen=True)
class Row:
    """A row of the list.

    Attributes:
        number: of the row.
        what: is wrong.
        tests: `FILE::TEST`, without parameters.
        nothing_to_refuse: why there is no such input here, or no such error; empty: there is.
        not_met: what is missing of the error; empty: nothing.
    """

    number: int
    what: str
    tests: tuple[str, ...] = ()
    nothing_to_refuse: str = ""
    not_met: str = ""


def _row(number: int, what: str, *tests: tuple[str, str], nothing_to_refuse: str = "", not_met: str = "") -> Row:
    return Row(number, what, tuple(f"{file}::test_{name}" for file, name in tests), nothing_to_refuse, not_met)


BAD_INPUTS = (
    _row(1, "a batch that is no number", VALUE),
    _row(2, "a batch or a length as a float", VALUE),
    _row(3, "a batch of 0 or less", VALUE),
    _row(
        4,
        "a batch that ranks and pinned micro-batches do not divide",
        TABLE,
        (BATCH, "the_remedies_for_too_few_micro_batches_work_and_are_sharp"),
        nothing_to_refuse="uneven shares are exact; refused where a rank would have none",
    ),
    _row(5, "a batch smaller than the ranks", TABLE, (BATCH, "the_remedies_for_too_few_samples_work_and_are_sharp")),
    _row(6, "a pinned micro-batch larger than a rank's share", TABLE),
    _row(7, "a batch larger than the training set", TABLE),
    _row(
        8,
        "a stage of a ramp that ranks cannot share",
        (PREPARE, "a_ramp_that_leaves_a_rank_without_samples_is_refused"),
    ),
    _row(9, "milestones that do not rise", RAMP, TABLE),
    _row(10, "a milestone after the end", RAMP, TABLE),
    _row(
        11,
        "several lengths of a run, or none",
        VALUE,
        nothing_to_refuse="there is one key, length, with its unit; others are unknown keys",
    ),
    _row(12, "a length of 0 or less", VALUE, TABLE),
    _row(13, "a warmup as long as the run", TABLE),
    _row(14, "a learning rate of 0 or less, NaN or infinity", VALUE),
    _row(15, "a scaling rule without its base batch", VALUE),
    _row(
        16,
        "an unknown optimizer",
        (TARGETS, "a_name_that_leads_nowhere_is_reported_with_its_cause"),
        HINT,
    ),
    _row(17, "an unknown argument of the optimizer", TABLE, (TARGETS, "arguments_that_do_not_fit_are_named")),
    _row(18, "a beta outside of [0, 1)", TABLE),
    _row(19, "a negative weight decay", TABLE, (GROUPS, "a_weight_decay_out_of_range_is_refused")),
    _row(20, "momentum of an optimizer that has none", TABLE),
    _row(21, "an exclusion that fits no parameter", TABLE, (GROUPS, "an_entry_without_effect_or_sense_is_refused")),
    _row(22, "a norm of 0 or less to clip to", VALUE),
    _row(
        23,
        "an unknown key",
        OF_HYDRA,
        HINT,
    ),
    _row(24, "an unknown key that is added with a plus", VALUE),
    _row(25, "an unknown choice of a group", OF_HYDRA),
    _row(26, "a plus before a group that has a choice", OF_HYDRA, HINT),
    _row(27, "a sweep without --multirun", OF_HYDRA),
    _row(28, "unbalanced braces or quotes", OF_HYDRA, HINT),
    _row(29, "a value without a default", VALUE, (CONFIG, "all_values_without_a_default_are_named_at_once")),
    _row(30, "a variable of the environment that is not set", VALUE),
    _row(31, "fp16 on a CPU", TABLE, (RUNTIME, "fp16_without_a_gpu_is_refused")),
    _row(32, "bf16 on a GPU without it", (PREPARE, "a_gpu_without_bfloat16_or_for_fewer_ranks_is_reported")),
    _row(33, "fp8", VALUE),
    _row(34, "a GPU that is not there", nothing_to_refuse="no key names a device; plan and doctor tell which is used"),
    _row(35, "more ranks than GPUs", (PREPARE, "a_gpu_without_bfloat16_or_for_fewer_ranks_is_reported")),
    _row(36, "NCCL on a CPU", nothing_to_refuse="no key names a backend: it follows from the device"),
    _row(
        37,
        "compilation without a compiler",
        (PREPARE, "a_compiler_is_needed_only_for_compilation"),
        (PREPARE, "kernels_for_a_gpu_need_triton"),
    ),
    _row(
        38,
        "compressed gradients on gloo",
        ("tests/multiprocess/test_communication.py", "compressed_gradients_are_timed_as_they_are_sent"),
        nothing_to_refuse="they work there; what they do not go with is refused",
    ),
    _row(39, "a hook under FSDP", ENVIRONMENT, nothing_to_refuse="there is no FSDP; that of accelerate is refused"),
    _row(
        40,
        "unused parameters and a static graph",
        TABLE,
        nothing_to_refuse="no key reaches these switches of DDP; unused parameters are refused",
    ),
    _row(41, "clipping under FSDP", ENVIRONMENT, nothing_to_refuse="there is no FSDP; that of accelerate is refused"),
    _row(42, "WORLD_SIZE without RANK", ENVIRONMENT, TABLE),
    _row(43, "a rank beyond WORLD_SIZE", ENVIRONMENT),
    _row(
        44,
        "a launcher that accelerate does not see",
        (RUNTIME, "a_launcher_that_accelerate_does_not_see_is_refused_and_leaves_nothing_behind"),
        (LAUNCHERS, "a_launcher_that_starts_fewer_processes_than_meant_is_refused"),
    ),
    _row(45, "settings of accelerate against the config", ENVIRONMENT, TABLE),
    _row(46, "no address to meet at", ENVIRONMENT),
    _row(
        47,
        "a port that is none, or taken",
        ENVIRONMENT,
        (MEETING, "a_port_that_is_taken_is_told_by_rank_0_with_the_variable_to_set"),
        (DOCTOR, "a_port_that_is_taken_is_a_problem_only_where_rank_0_opens_it"),
    ),
    _row(48, "processes that nobody started", ENVIRONMENT, TABLE),
    _row(
        49,
        "a run folder that cannot be written, or holds a run",
        TABLE,
        (PREPARE, "a_folder_without_permission_is_reported"),
        (PREPARE, "a_folder_with_a_run_is_not_written_over"),
    ),
    _row(
        50,
        "a run folder in use",
        (LOCK, "a_second_process_is_refused_with_the_first_ones_number_and_a_kill_lets_go"),
        (TRAIN, "a_folder_that_another_process_writes_to_is_refused"),
    ),
    _row(
        51,
        "no checkpoint to resume, or none that is valid",
        TABLE,
        (TRAIN, "resume_refuses_another_run_and_names_what_changed"),
        (CHECKPOINT, "each_newer_checkpoint_is_rejected_with_its_reason"),
    ),
    _row(
        52,
        "another config on resume",
        (RESUME, "no_permission_lets_another_run_go_on"),
        (RESUME, "a_change_of_length_or_rate_needs_a_permission_and_the_error_names_it"),
    ),
    _row(53, "a checkpoint of a newer format", (CHECKPOINT, "a_newer_format_is_refused_with_the_remedy")),
    _row(54, "checkpoints at no interval, or none to keep", TABLE, VALUE),
    _row(
        55,
        "a disk without room for a checkpoint",
        (PREPARE, "a_disk_without_room_for_weights_and_optimizer_is_told_before_the_run"),
        (CHECKPOINT, "a_disk_without_room_is_refused_before_the_first_byte"),
    ),
    _row(
        56,
        "data that are missing, empty or damaged",
        TABLE,
        (IMAGES, "faults_of_a_folder_are_named"),
        (IMAGES, "faults_of_an_image_folder_are_named"),
        (TOKENS, "bad_streams_are_refused"),
    ),
    _row(
        57,
        "other classes than the model's outputs",
        TABLE,
        (PREPARE, "a_label_beyond_the_outputs_is_found_wherever_it_is"),
        (SYNTHETIC, "a_label_error_is_a_data_error"),
    ),
    _row(
        58,
        "inputs of another shape than the model's",
        TABLE,
        (PREPARE, "an_evaluated_set_that_does_not_fit_the_model_is_found"),
    ),
    _row(
        59,
        "an empty validation set, or an evaluation after the end",
        TABLE,
        nothing_to_refuse="a run is always evaluated at its end, whatever the interval",
    ),
    _row(
        60,
        "a vocabulary or a context beyond the model's",
        (PREPARE, "text_with_more_tokens_or_a_longer_context_than_the_model_has_is_found"),
        (TOKENS, "a_token_outside_the_vocabulary_is_refused_or_on_request_an_error_of_its_window"),
    ),
    _row(
        61,
        "too many loading processes, or too little shared memory",
        VALUE,
        TABLE,
        (DOCTOR, "little_shared_memory_is_told"),
        not_met="workers are refused above four per core, without a warning below; shared memory is for doctor",
    ),
    _row(
        62,
        "a target outside of what is allowed",
        ("tests/unit/test_listed_targets.py", "every_node_of_a_config_is_checked_before_anything_is_imported"),
        ("tests/unit/test_listed_targets.py", "what_is_defined_off_the_list_is_not_called_whatever_leads_to_it"),
        ("tests/unit/test_listed_targets.py", "settings_of_hydra_are_held_to_the_list_before_hydra_acts_on_them"),
        (TARGETS, "what_hydra_forbids_stays_forbidden"),
    ),
    _row(
        63,
        "a target that cannot be imported",
        TABLE,
        (TARGETS, "the_error_that_hid_a_module_of_ones_own_is_shown"),
    ),
    _row(
        64,
        "a secret in the config",
        (CREDENTIALS, "what_looks_like_a_secret_is_named_and_not_repeated"),
        (CREDENTIALS, "a_secret_on_a_command_line_is_refused_before_anything_repeats_it"),
    ),
    _row(65, "W&B online without a key", TABLE, (WANDB, "online_without_a_key_never_asks_for_one")),
    _row(66, "a project that W&B refuses", VALUE),
    _row(
        67,
        "plots without matplotlib",
        (DOCTOR, "every_direct_dependency_is_looked_at"),
        nothing_to_refuse="it is a direct dependency",
    ),
    _row(68, "a seed below 0 or beyond 2^63", VALUE),
    _row(
        69,
        "an operation without a deterministic form",
        nothing_to_refuse="no key asks for deterministic operations of a GPU",
    ),
    _row(70, "two metrics of one name", nothing_to_refuse="names are ours; no key adds a metric"),
    _row(
        71,
        "a width or a number of samples that no memory holds",
        TABLE,
        (PREPARE, "a_model_of_ones_own_is_made_once"),
        (MEMORY, "what_is_larger_than_all_memory_is_refused_with_both_sizes"),
        (MEMORY, "made_up_sets_and_models_that_no_memory_holds_are_refused_before_they_are_made"),
        not_met="a model of the user's own is made to find out; many layers of Python objects are not counted",
    ),
    _row(
        72,
        "a number for a group, as in batch=64",
        ("tests/unit/test_remedies.py", "a_number_for_a_group_is_wrong_input_with_the_choices"),
    ),
    _row(
        73,
        "a model, an optimizer or types that fail in a step, or that no checkpoint can hold",
        ("tests/unit/test_trial.py", "what_would_fail_in_the_run_or_after_it_is_refused_before"),
    ),
    _row(
        74,
        "a value of another type than the target takes, as `nesterov=no`, a text, which counts as true",
        TABLE,
        ("tests/unit/test_argument_types.py", "a_value_of_another_type_is_one_line_with_what_is_taken_and_a_remedy"),
        ("tests/unit/test_argument_types.py", "what_torch_and_largebatch_bring_is_held_to_its_types"),
    ),
    _row(75, "a name that is no name of a folder", VALUE),
    _row(76, "a pinned micro-batch above the most samples of a forward pass", TABLE),
    _row(
        77,
        "a number that YAML reads as another one, as 010 and 1:30",
        VALUE,
        ("tests/unit/test_remedies.py", "a_number_that_yaml_reads_as_another_one_is_refused_with_its_line"),
    ),
)
