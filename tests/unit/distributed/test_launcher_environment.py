"""What the launcher's environment may say, and what is refused before a process group exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.distributed.launcher_environment import launcher_problems, restart_note, restart_problem, start_problems

pytestmark = pytest.mark.quick

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = MEETING | {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "precision", "num_processes"),
    [
        ({}, "fp32", None),
        ({}, "fp32", 1),
        (TORCHRUN, "fp32", None),
        (TORCHRUN, "fp32", 4),
        (TORCHRUN | {"RANK": "3"}, "fp32", 4),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, "fp64", 1),
        # What `accelerate launch` sets by default.
        (
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
                "ACCELERATE_DYNAMO_BACKEND": "NO",
                "ACCELERATE_USE_FSDP": "false",
            },
            "bf16",
            None,
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bf16", None),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16", None),
    ],
)
def test_a_sound_environment_has_no_problems(environ: dict[str, str], precision: str, num_processes: int | None):
    assert launcher_problems(environ, precision=precision, num_processes=num_processes) == []


PARTIAL = "only part of a launcher's environment is here. Start with torchrun or accelerate launch, or unset it."


@pytest.mark.bad_input(
    "a hook under FSDP",
    "clipping under FSDP",
    "WORLD_SIZE without RANK",
    "a rank beyond WORLD_SIZE",
    "settings of accelerate against the config",
    "no address to meet at",
    "a port that is none, or taken",
    "processes that nobody started",
)
@pytest.mark.parametrize(
    ("environ", "precision", "num_processes", "problems"),
    [
        (MEETING | {"WORLD_SIZE": "2"}, "fp32", None, [f"WORLD_SIZE is set but RANK is not: {PARTIAL}"]),
        (
            {"RANK": "0"},
            "fp32",
            None,
            [f"RANK is set but WORLD_SIZE is not: {PARTIAL}", f"RANK is set but LOCAL_RANK is not: {PARTIAL}"],
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "fp32",
            None,
            [f"RANK is set but LOCAL_RANK is not: {PARTIAL}", "MASTER_ADDR", "MASTER_PORT"],
        ),
        # As in a pod of PyTorchJob.
        (
            MEETING | {"WORLD_SIZE": "2", "RANK": "0"},
            "fp32",
            None,
            ["RANK is set but LOCAL_RANK is not, as in a pod of Kubeflow's PyTorchJob or of Vertex AI: there RANK"],
        ),
        # accelerate starts a process group as soon as it sees LOCAL_RANK.
        ({"LOCAL_RANK": "0"}, "fp32", None, [f"LOCAL_RANK is set but RANK is not: {PARTIAL}"]),
        (TORCHRUN | {"RANK": "4"}, "fp32", None, ["RANK=4 with WORLD_SIZE=4: ranks count from 0."]),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "fp32", None, ["WORLD_SIZE=two: not an integer."]),
        (TORCHRUN | {"LOCAL_RANK": "²"}, "fp32", None, ["LOCAL_RANK=²: not an integer."]),
        (TORCHRUN | {"RANK": "-1"}, "fp32", None, ["RANK=-1: not an integer."]),
        (TORCHRUN | {"LOCAL_RANK": ""}, "fp32", None, ["LOCAL_RANK=: not an integer."]),
        (
            TORCHRUN | {"MASTER_ADDR": "", "MASTER_PORT": ""},
            "fp32",
            None,
            [
                "MASTER_ADDR is not set, and WORLD_SIZE=4: the ranks cannot find each other. Start",
                "MASTER_PORT is not",
            ],
        ),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "fp32", None, ["MASTER_PORT=99999: a port is an integer up to 65535."]),
        (TORCHRUN | {"MASTER_PORT": "http"}, "fp32", None, ["MASTER_PORT=http: a port is an integer up to 65535."]),
        (
            {},
            "fp32",
            4,
            ["launcher.num_processes=4, but 1 started. Start with `torchrun --standalone --nproc-per-node 4 "],
        ),
        (TORCHRUN, "fp32", 8, ["launcher.num_processes=8, but 4 started."]),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "fp32",
            None,
            ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4: accelerate would divide the loss a second time. Set"],
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "bf16",
            None,
            ["ACCELERATE_MIXED_PRECISION=fp16 contradicts precision.compute=bf16. Set precision=..."],
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "fp32", None, ["ACCELERATE_MIXED_PRECISION=bf16 contradicts"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp16", None, ["ACCELERATE_MIXED_PRECISION=fp8 contradicts"]),
        ({"ACCELERATE_USE_FSDP": "true"}, "fp32", None, ["ACCELERATE_USE_FSDP: this plug-in takes over"]),
        ({"ACCELERATE_USE_DEEPSPEED": "True"}, "fp32", None, ["ACCELERATE_USE_DEEPSPEED: this plug-in"]),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "fp32", None, ["ACCELERATE_USE_MEGATRON_LM: this plug-in"]),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "fp32", None, ["ACCELERATE_USE_PARALLELISM_CONFIG: this plug"]),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "fp32",
            None,
            ["ACCELERATE_DYNAMO_BACKEND is set: use precision.compile"],
        ),
        (
            MEETING | {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "1", "ACCELERATE_MIXED_PRECISION": "fp16"},
            "fp32",
            3,
            [
                "WORLD_SIZE is set but RANK",
                "launcher.num_processes=3, but 2",
                "ACCELERATE_MIXED",
                "ACCELERATE_USE_FSDP",
            ],
        ),
    ],
)
def test_every_problem_is_one_sentence_with_the_variable_and_a_remedy(
    environ: dict[str, str], precision: str, num_processes: int | None, problems: list[str]
):
    found = launcher_problems(environ, precision=precision, num_processes=num_processes)
    assert len(found) == len(problems)
    for sentence, start in zip(found, problems, strict=True):
        assert sentence.startswith(start)


SRUN = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environ", "starts", "types"),
    [
        (
            SRUN | {"SLURM_STEP_NUM_TASKS": "4"},
            "srun started 4 processes (SLURM_STEP_NUM_TASKS=4)",
            "srun --ntasks-per",
        ),
        (SRUN, "srun started 8 processes (SLURM_NTASKS=8)", "--nproc-per-node 8 -m largebatch"),
        (SRUN | {"SLURM_PROCID": "3", "ENVIRONMENT": "BATCH"}, "srun started 8", "srun"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            "Open MPI started 2",
            "mpirun --map-by ppr:1:node",
        ),
        ({"PMI_SIZE": "16", "PMI_RANK": "15"}, "MPI started 16 processes (PMI_SIZE=16)", "mpiexec -ppn 1 torchrun"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH started 2", "mpirun_rsh"),
        ({"HOROVOD_SIZE": "2"}, "Horovod started 2", "on each of them `torchrun"),
        ({"JSM_NAMESPACE_SIZE": "6"}, "jsrun started 6", "jsrun --rs_per_host 1"),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, "Flux started 2", "flux run"),
        ({"SM_HOSTS": '["algo-1","algo-2"]', "SM_NUM_GPUS": "8"}, "SageMaker started 2", "torchrun --nnodes"),
        ({"SKYPILOT_NUM_NODES": "3"}, "SkyPilot started 3", "torchrun"),
        (
            {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "0"},
            "Kubeflow Trainer started 2",
            "torchrun",
        ),
        ({"AWS_BATCH_JOB_NUM_NODES": "3"}, "AWS Batch started 3", "torchrun"),
    ],
)
def test_copies_of_one_process_are_no_ranks_and_are_refused_with_the_line_to_type(
    environ: dict[str, str], starts: str, types: str
):
    (problem,) = start_problems(environ, num_processes=None)
    assert problem.startswith(starts)
    assert types in problem
    assert start_problems(environ, num_processes=1) == []  # runs that are meant to be apart
    assert start_problems(environ | TORCHRUN, num_processes=None) == []  # each starter may start torchruns


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},  # a shell of salloc
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks 1, or salloc's own interactive step
        SRUN | {"SLURM_NTASKS": "1"},
        SRUN | {"ENVIRONMENT": "BATCH"},  # the script of sbatch itself
        MEETING | {"WORLD_SIZE": "1", "RANK": "0"},  # a PyTorchJob of one pod
        {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "8"},
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"FLUX_JOB_SIZE": "4"},  # a shell of flux alloc
        {"SM_HOSTS": '["algo-1"]', "SM_NUM_GPUS": "8"},
        {"SM_HOSTS": "[", "PMI_SIZE": "many"},
        {"JOB_COMPLETION_INDEX": "4"},  # an indexed Job of Kubernetes may be a sweep
    ],
)
def test_one_process_of_a_job_runs_plainly(environ: dict[str, str]):
    assert start_problems(environ, num_processes=None) == []


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("verb", ["train", "study", "textbook lars", "bench loop"])
def test_a_copy_is_told_so_before_any_other_fault_in_every_verb_that_joins_a_job(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main([*verb.split(), "batch.total=1000000", "seed=x"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "largebatch: 1 error in the configuration:"
    assert said[1].startswith("  - Open MPI started 2 processes")
    assert list(tmp_path.iterdir()) == []


def test_a_restart_of_torchrun_that_would_begin_from_nothing_is_refused_and_told_before():
    first = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "3"}
    again = first | {"TORCHELASTIC_RESTART_COUNT": "1"}
    assert restart_problem(first, resume="none") is None
    assert "restart 1 of 3" in str(restart_problem(again, resume="none"))
    assert "resume=auto" in str(restart_note(first, resume="none"))
    for environ in (first, again, {}):
        assert restart_problem(environ, resume="auto") is restart_note(environ, resume="auto") is None
    assert restart_note({"TORCHELASTIC_MAX_RESTARTS": "0"}, resume="none") is None
