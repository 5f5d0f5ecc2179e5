"""Slurm, containers and Kubernetes, whose commands are stood in for by scripts that write down how they were called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from largebatch import launch_dir
from largebatch.__main__ import main
from largebatch.cli import launch

LAUNCH = Path(launch_dir())
K8S = sorted((LAUNCH / "k8s").glob("*.yaml"))


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Commands of a cluster of two nodes: `srun` runs its command on both, with 1 and 2 GPUs; ranks end with CODE."""
    commands = {
        "scontrol": 'echo "scontrol $*" >> "$CALLS"; [[ $1 == show ]] && printf "node1\nnode2\n" || true',
        "srun": """echo "srun $*" >> "$CALLS"
while [[ $1 == -* ]]; do shift; done
for gpus in 1 2; do SLURM_GPUS_ON_NODE=$gpus "$@" || code=$?; done
exit ${code:-0}""",
        "apptainer": """echo "apptainer $*" >> "$CALLS"
while [[ $1 != bash ]]; do shift; done
exec "$@" """,
        "python": """if [[ $1 == -c ]]; then exit 0; fi
echo "python $*" >> "$CALLS"
exit ${CODE:-0}""",
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "submitted").mkdir()
    return {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "LARGEBATCH_VENV": "none",
        "SLURM_SUBMIT_DIR": str(tmp_path / "submitted"), "LARGEBATCH_LAUNCH": str(LAUNCH), "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "0",
    }  # fmt: skip


def batch(cluster: dict[str, str], *arguments: str, **more: str) -> tuple[int, list[str]]:
    """Exit code of the batch script, and the calls of the commands."""
    script = [LAUNCH / "slurm.sbatch", *arguments]
    done = subprocess.run(script, env={**cluster, **more}, capture_output=True, text=True, check=False)
    calls = Path(cluster["CALLS"])
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [done.stderr]


def test_each_node_starts_as_many_processes_as_it_has_gpus(cluster: dict[str, str]) -> None:
    code, calls = batch(cluster, "batch.total=64", "model=mlp")
    assert code == 0
    starts = [call for call in calls if call.startswith("python")]
    assert [call.split("--nproc-per-node ")[1].split()[0] for call in starts] == ["1", "2"]
    for call in starts:
        assert call.startswith(f"python {LAUNCH}/bounded_torchrun.py ")
        assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:24711 --rdzv-id 4711-0" in call
        assert call.endswith("-m largebatch train run.dir=runs/4711 resume=auto batch.total=64 model=mlp")


def test_tasks_of_an_array_have_folders_of_their_own(cluster: dict[str, str]) -> None:
    _, calls = batch(cluster, "seed=${oc.env:SLURM_ARRAY_TASK_ID}", SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="3")
    assert calls[-1].endswith("run.dir=runs/4700_3 resume=auto seed=${oc.env:SLURM_ARRAY_TASK_ID}")
    assert (Path(cluster["SLURM_SUBMIT_DIR"]) / "runs" / "4700_3").is_dir()


def test_a_stopped_job_is_requeued_and_a_failed_one_is_not(cluster: dict[str, str]) -> None:
    code, calls = batch(cluster, CODE="75")
    assert (code, calls[-1]) == (75, "scontrol requeue 4711")
    Path(cluster["CALLS"]).unlink()
    code, calls = batch(cluster, CODE="1")
    assert code == 1
    assert not any("requeue" in call for call in calls)


def test_ranks_run_in_the_image_that_is_named(cluster: dict[str, str]) -> None:
    here = cluster["SLURM_SUBMIT_DIR"]
    _, calls = batch(cluster, CONTAINER_IMAGE="/images/l.sqsh", CONTAINER_MOUNTS="/data:/data")
    (srun,) = [call for call in calls if call.startswith("srun")]
    assert f"--container-image=/images/l.sqsh --container-workdir={here} " in srun
    assert f"--container-mounts={here}:{here},{LAUNCH}:{LAUNCH},/data:/data bash -c" in srun
    _, calls = batch(cluster, APPTAINER_IMAGE="/images/l.sif")
    inside = f"apptainer exec --nv --pwd {here} --bind {here} --bind {LAUNCH} /images/l.sif bash -c"
    assert sum(call.startswith(inside) for call in calls) == 2


def test_a_job_that_was_submitted_elsewhere_says_what_works_from_there(cluster: dict[str, str]) -> None:
    cluster.pop("LARGEBATCH_LAUNCH")
    code, (message,) = batch(cluster)
    assert code == 2
    assert "largebatch launch slurm, which works from any folder" in message


def test_an_active_python_without_the_package_is_refused_with_the_remedy(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E -P "$@"\n')
    empty.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LARGEBATCH_VENV": "none"}
    command = [LAUNCH / "torchrun.sh", "2", "debug=tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert f"LARGEBATCH_VENV=none uses the active Python: {empty}" in done.stderr
    assert "pip install largebatch" in done.stderr


def test_the_verb_hands_options_to_slurm_and_overrides_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(launch.os, "execvpe", lambda *given: called.append(given))
    monkeypatch.setattr(launch.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    with pytest.raises(AssertionError):
        main(["launch", "slurm", "--nodes", "4", "--time=1:00:00", "+observers.mine.every=2", "--not-ours"])
    ((name, command, environment),) = called
    script = str(LAUNCH / "slurm.sbatch")
    assert (name, command) == (
        "sbatch",
        ["sbatch", "--nodes", "4", "--time=1:00:00", script, "+observers.mine.every=2", "--not-ours"],
    )
    assert environment["LARGEBATCH_VENV"] == "none"
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_files_are_shown_and_missing_commands_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "show", "k8s/job.yaml"]) == 0
    assert capsys.readouterr().out == (LAUNCH / "k8s" / "job.yaml").read_text()
    assert main(["launch", "show", "job.yaml"]) == 2
    assert "k8s/job.yaml" in capsys.readouterr().err
    assert main(["launch", "mpirun"]) == 2
    assert "torchrun, accelerate, multinode, slurm" in capsys.readouterr().err


@pytest.mark.parametrize("file", K8S, ids=lambda path: path.name)
def test_kubernetes_knows_every_field_of(file: Path) -> None:
    """A reader of the published types drops a field that it does not know, and refuses one of another type."""
    from kubeflow_trainer_api import models

    types = {
        "Job": models.IoK8sApiBatchV1Job,
        "JobSet": models.JobsetV1alpha2JobSet,
        "Service": models.IoK8sApiCoreV1Service,
        "TrainJob": models.TrainerV1alpha1TrainJob,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    }
    for given in yaml.safe_load_all(file.read_text()):
        read = types[given["kind"]].from_dict(given)
        assert read is not None
        assert json.loads(json.dumps(read.to_dict())) == given


@pytest.mark.parametrize("file", K8S, ids=lambda path: path.name)
def test_the_command_of_the_pods_is_a_run_that_can_be_composed(file: Path) -> None:
    from largebatch.cli.composition.composing import compose_config

    def commands(node: Any) -> list[list[str]]:
        if isinstance(node, dict):
            own = [[*node.get("command", []), *node.get("args", [])]] if "command" in node else []
            return own + [one for part in node.values() for one in commands(part)]
        return [one for part in node for one in commands(part)] if isinstance(node, list) else []

    ((*_, command),) = [[one for given in yaml.safe_load_all(file.read_text()) for one in commands(given)]]
    assert command[0] == "torchrun"
    assert command[command.index("largebatch") + 1] == "train"
    assert compose_config(command[command.index("train") + 1 :]).resume == "auto"
