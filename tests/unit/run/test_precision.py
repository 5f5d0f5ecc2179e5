"""How a run computes: a table of devices and configs, and what is decided for each, with its reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.experiments.measure.weights import parse_measure
from largebatch.gradient.options import GradientOptions, choose_gradient
from largebatch.losses import CrossEntropy
from largebatch.records.checkpoint import Checkpoint, CheckpointError
from largebatch.run import parts
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.initial_state import build_optimizer
from largebatch.run.parts import as_agreed, own_copy
from largebatch.run.plan_report import plan_record
from largebatch.run.precision import speed
from largebatch.run.precision.decisions import Decisions, decide, decision_rows, gpu_row
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import number_format, settled
from largebatch.run.prepare import Prepared, prepare
from largebatch.run.resume.identity import check_identity, run_identity
from tests.unit.composing import compose_run

CPU = Device()
H100, V100 = Device("H100", (9, 0), has_bf16=True), Device("V100", (7, 0))
SMALL = ("data=synthetic", "logger=none", "length=4ep", "schedule.warmup=1ep")
BITS = {
    "ordered": ("batch.reduction=ordered", "batch.micro=2"),
    "recomputed": ("observers.recompute.every=10",),
    "ledger": ("observers.ledger.enabled=true",),
}


class Images(nn.Sequential):
    def __init__(self, in_features: int = 64, num_outputs: int = 3) -> None:
        pixels = (round(in_features**0.5) - 2) ** 2
        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * pixels, num_outputs))


def config_of(*overrides: str) -> TrainConfig:
    return parse_config(compose_run(*SMALL, *overrides))


def numbers_of(config: TrainConfig, world_size: int = 1) -> RunNumbers:
    return derive(config, num_samples=512, world_size=world_size)


def decided(device: Device, *overrides: str, model: nn.Module | None = None, world_size: int = 1) -> Decisions:
    config = config_of(*overrides)
    return decide(device, config, model or Images(), numbers_of(config, world_size))


def prepared(*overrides: str) -> Prepared:
    return prepare(compose_run(*SMALL, "model=linear", *overrides), {})


@pytest.mark.parametrize(
    ("device", "asked", "everywhere", "format_", "reason"),
    [
        (CPU, "auto", True, "fp32", "no GPU here; a GPU that has bfloat16 would compute in bf16"),
        (H100, "auto", True, "bf16", "H100 has bfloat16"),
        (V100, "auto", True, "fp32", "V100 has no bfloat16; precision=fp16 uses its tensor cores"),
        (H100, "auto", False, "fp32", "the GPU of another rank has no bfloat16"),
        (H100, "fp32", True, "fp32", "On H100 precision=bf16 computes matrix products up to 15 times as fast"),
        (V100, "fp32", True, "fp32", "precision.compute"),
        (CPU, "bf16", True, "bf16", "precision.compute"),
        (H100, "fp64", True, "fp64", "precision.compute"),
    ],
)
def test_the_number_format_is_that_of_the_device_of_every_rank(
    device: Device, asked: str, everywhere: bool, format_: str, reason: str
):
    found = number_format(device, config_of(f"precision={asked}").precision, everywhere=everywhere)
    assert found.value == format_
    assert found.reason.endswith(reason)


def test_tf32_that_is_asked_for_is_not_told_to_be_slow():
    asked = config_of("precision=fp32", "precision.tf32=true").precision
    assert number_format(H100, asked).reason == "precision.compute"


@pytest.mark.parametrize("bits", BITS)
def test_promises_of_bits_turn_deterministic_kernels_on_where_a_gpu_computes(bits: str):
    overrides = BITS[bits]
    on = decided(H100, *overrides).deterministic
    assert on.value is True
    assert on.reason.startswith(overrides[0].partition("=")[0])
    assert decided(H100).deterministic.value is None
    assert decided(CPU, *overrides).deterministic.value is None, "nothing changes on a CPU"
    assert decided(CPU, *overrides, "precision.deterministic=false").deterministic.value is None
    assert decided(H100, "precision.deterministic=true").deterministic.value is True
    assert decided(CPU, "precision.deterministic=true").deterministic.value is True


@pytest.mark.bad_input("deterministic=false beside bits that are compared, on a GPU")
@pytest.mark.parametrize("bits", BITS)
def test_kernels_that_vary_do_not_go_with_promises_of_bits(bits: str, monkeypatch: pytest.MonkeyPatch):
    overrides = (*BITS[bits], "precision.deterministic=false")
    assert prepared(*overrides).numbers.num_steps, "on a CPU they repeat anyway"
    monkeypatch.setattr(Device, "own", lambda: H100)
    with pytest.raises(ConfigError) as caught:
        prepared(*overrides)
    (error,) = caught.value.errors
    fact, rule, remedy = f"{overrides[0]}: does not go with precision.deterministic=false", "other bits", "Use "
    assert error.startswith(fact)
    assert rule in error
    assert f"{remedy}" in error
    assert error.endswith("precision.deterministic=null.")


class Puts(nn.Linear):
    """Writes to places of a tensor, which torch cannot do in a fixed order."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        places = torch.zeros(len(inputs), dtype=torch.int64)
        torch.zeros(4).put_(places, torch.ones(len(inputs)), accumulate=False)
        return super().forward(inputs.flatten(1))


@pytest.mark.bad_input("an operation without a deterministic form")
def test_an_operation_without_a_deterministic_kernel_is_found_before_the_first_step_with_a_remedy():
    chosen = f"model._target_={__name__}.Puts"
    assert prepared(chosen).numbers.num_steps
    with pytest.raises(ConfigError) as caught:
        prepared(chosen, "precision.deterministic=true")
    assert "does not have a deterministic implementation" in str(caught.value)
    assert "Use another operation, or leave out what compares bits" in str(caught.value)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loop_of_ones_own_is_held_to_the_same_promise():
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), precision="fp32")
    nothing: Any = None
    for options in (GradientOptions(ordered=True), GradientOptions(recompute_every=2)):
        with pytest.raises(
            ValueError, match=r"use_deterministic_algorithms\(False\): .*use_deterministic_algorithms\(True\)"
        ):
            choose_gradient(on_gpu, nn.Linear(2, 2), CrossEntropy(), nothing, options)


@pytest.mark.bad_input("a workspace of cuBLAS that does not repeat its bits")
def test_a_workspace_that_breaks_the_promise_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Device, "own", lambda: H100)
    composed = compose_run(*SMALL, "model=linear", *BITS["ledger"])
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0: .*Unset it, or set it to :4096:8 or :16:8"):
        prepare(composed, {"CUBLAS_WORKSPACE_CONFIG": ":0:0"})
    assert prepare(composed, {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}).config.precision.deterministic is True


@pytest.mark.parametrize(
    ("device", "overrides", "channels_last", "benchmark"),
    [
        (H100, (), True, True),
        (H100, ("precision=fp16",), True, True),
        (H100, ("precision=fp32",), False, True),
        (H100, ("precision.channels_last=false",), False, True),
        (H100, ("precision.deterministic=true",), True, False),
        (H100, ("data.on_bad_sample=skip",), True, None),
        (V100, (), False, True),
        (CPU, (), False, None),
        (CPU, ("precision.channels_last=true",), True, None),
    ],
)
def test_convolutions_get_their_layout_and_the_choice_of_kernels(
    device: Device, overrides: tuple[str, ...], channels_last: bool, benchmark: bool | None
):
    found = decided(device, *overrides)
    assert (found.channels_last.value, found.cudnn_benchmark.value) == (channels_last, benchmark)
    plain = decided(device, model=nn.Linear(2, 2))
    assert (plain.channels_last.value, plain.cudnn_benchmark.value) == (False, None)


@pytest.mark.bad_input("channels_last without a convolution")
def test_a_layout_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"precision.channels_last=true: has no effect.*Use null"):
        prepared("precision.channels_last=true")


@pytest.mark.parametrize(
    ("device", "optimizer", "model", "value"),
    [
        (H100, {"_target_": "torch.optim.AdamW"}, nn.Linear(2, 2), True),
        (H100, {"_target_": "torch.optim.SGD"}, nn.Linear(2, 2), True),
        (CPU, {"_target_": "torch.optim.SGD"}, nn.Linear(2, 2), None),
        (H100, {"_target_": "torch.optim.SGD", "fused": False}, nn.Linear(2, 2), None),
        (H100, {"_target_": "torch.optim.SGD", "foreach": True}, nn.Linear(2, 2), None),
        (H100, {"_target_": "torch.optim.SGD", "differentiable": True}, nn.Linear(2, 2), None),
        (H100, {"_target_": "torch.optim.Adagrad"}, nn.Linear(2, 2), None),
        (H100, {"_target_": "largebatch.optim.LARS"}, nn.Linear(2, 2), None),
        (H100, {"_target_": "torch.optim.SGD"}, nn.Embedding(4, 2, sparse=True), None),
        (H100, {"_target_": "torch.optim.SGD"}, nn.Linear(2, 2, dtype=torch.complex64), None),
    ],
)
def test_optimizers_of_torch_are_fused_on_a_gpu_unless_the_config_says_otherwise(
    device: Device, optimizer: dict[str, Any], model: nn.Module, value: bool | None, monkeypatch: pytest.MonkeyPatch
):
    config = config_of().model_copy(update={"optimizer": optimizer})
    assert decide(device, config, model, None).fused.value is value
    monkeypatch.setattr(Device, "own", lambda: device)
    made = build_optimizer(config, model)
    given = optimizer.get("fused")
    assert all(group.get("fused") is (value if given is None else given) for group in made.param_groups)


@pytest.mark.parametrize(("keeps", "compute", "tf32"), [("communication", "bf16", True), (None, "fp32", False)])
def test_steps_are_timed_in_the_format_of_the_run_and_small_differences_measured_in_fp32(
    keeps: str | None, compute: str, tf32: bool
):
    config = compose_run("precision=bf16", "precision.tf32=true", config_name="measure")
    parse_measure(config, keeps_format_for=keeps)
    assert (config.precision.compute, config.precision.tf32) == (compute, tf32)


def test_the_adamw_beside_muon_is_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    config = config_of().model_copy(update={"optimizer": {"_target_": "largebatch.optim.MuonWithAdamW"}})
    monkeypatch.setattr(Device, "own", lambda: H100)
    optimizer = build_optimizer(config, model)
    assert {group["muon"]: group.get("fused") for group in optimizer.param_groups} == {True: None, False: True}
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    with torch.profiler.profile() as profiled:
        optimizer.step()
    launches = {one.key: one.count for one in profiled.key_averages()}
    assert launches["aten::_fused_adamw_"] == sum(not group["muon"] for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("overrides", "world_size", "reason"),
    [
        (("batch.total=64", "batch.max_micro=16"), 2, "once: every micro-batch has 16 samples"),
        (("batch.total=50", "batch.max_micro=9"), 1, "micro-batches of 8 to 9 samples, each by itself; equal with "
         "batch.total=48 or batch.total=54"),
        (("batch.total=50", "batch.micro=8"), 1, "micro-batches of 2 to 8 samples, each by itself; equal with "
         "batch.total=48 or batch.total=56"),
        (("batch.total=7",), 2, "micro-batches of 3 to 4 samples, each by itself; equal with batch.total=6 or "
         "batch.total=8"),
        (("batch.total=50", "batch.micro=8", "data.on_bad_sample=skip"), 1, "micro-batches of 2 to 8 samples, the "
         "second one for all sizes; equal with batch.total=48 or batch.total=56"),
    ],
)  # fmt: skip
def test_the_plan_says_which_sizes_are_compiled_and_which_batches_have_one(
    overrides: tuple[str, ...], world_size: int, reason: str
):
    assert decided(CPU, "precision.compile=blocks", *overrides, world_size=world_size).compile.reason == reason


def test_compiled_runs_prefer_equal_micro_batches_and_others_are_cut_as_before():
    sizes = {
        how: numbers_of(config_of(f"precision.compile={how}", "batch.total=50", "batch.max_micro=13"))
        for how in ("blocks", "false")
    }
    assert sizes["blocks"].plan.micro_batch_sizes == (10,) * 5
    assert sizes["false"].plan.micro_batch_sizes == (13, 13, 12, 12)


def test_every_decision_is_a_row_on_a_gpu_and_a_cpu_says_what_a_gpu_would_choose():
    rows = {what: value for what, value, _ in decision_rows(decided(H100))}
    assert rows == {
        "precision": "bf16", "deterministic kernels": "off", "channels_last": "on", "cuDNN benchmark": "on",
        "compile": "off", "fused optimizer": "on",
    }  # fmt: skip
    assert [what for what, _, _ in decision_rows(decided(CPU))] == ["precision"]
    assert all(reason for _, _, reason in decision_rows(decided(H100)))
    _, value, _ = gpu_row(decided(CPU), Images(), numbers_of(config_of()))
    assert value == "bf16, channels_last, cuDNN benchmark, fused optimizer"


def test_the_resolved_format_is_in_the_record_and_the_identity_and_the_config_keeps_what_was_given():
    run = prepared()
    assert run.config.precision.compute == "fp32"
    assert run.public["precision"]["compute"] == "auto"
    assert run_identity(run)["precision"] == "fp32"
    record = plan_record(run)["precision"]
    assert record["compute"]["value"] == "fp32"
    assert record["device"]["name"] == "CPU"


def test_ranks_that_agree_on_fp32_decide_all_else_by_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Device, "own", lambda: H100)
    run = prepared(f"model._target_={__name__}.Images")
    agreed: Any = SimpleNamespace(precision="fp32")
    own: Any = SimpleNamespace(precision="bf16")
    assert as_agreed(run, own) is run
    assert (run.config.precision.compute, run.decisions.channels_last.value) == ("bf16", True)
    other = as_agreed(run, agreed)
    assert (other.config.precision.compute, other.decisions.channels_last.value) == ("fp32", False)
    assert other.decisions.compute.reason == "precision=auto: the GPU of another rank has no bfloat16"
    assert run_identity(other)["precision"] == "fp32"


NO_COMPILER = "CC=cc is not on PATH. Install gcc or clang."


def kernels_work_if(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "reason_against", lambda device: None if works else NO_COMPILER)
    monkeypatch.setattr(speed, "has_triton", lambda: works)


@pytest.mark.parametrize(
    ("device", "overrides", "works", "value", "reason"),
    [
        (CPU, ("optimizer=lars",), True, True, "in C; torch's kernels, +optimizer.compile=false, are slower"),
        (CPU, ("optimizer=lamb",), False, False, f"slower by torch's kernels: {NO_COMPILER}"),
        (H100, ("optimizer=lamb",), True, True, "in Triton; "),
        (H100, ("optimizer=lamb",), False, False, "slower by torch's kernels: Triton is missing"),
        (CPU, ("optimizer=lamb", "+optimizer.compile=false"), True, False, "optimizer.compile"),
        (CPU, ("optimizer=lamb", "+optimizer.foreach=true"), True, None, "optimizer.foreach"),
        (CPU, ("optimizer=lamb", "+optimizer.fused=true"), True, None, "optimizer.fused"),
        (CPU, ("optimizer=sgd",), True, None, "torch.optim.SGD has none"),
    ],
)
def test_lars_and_lamb_are_compiled_where_that_works_and_the_plan_says_why(
    device: Device, overrides: tuple[str, ...], works: bool, value: bool | None, reason: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    kernels_work_if(works, monkeypatch)
    found = decided(device, *overrides)
    assert found.compiled_optimizer.value is value
    assert found.compiled_optimizer.reason.startswith(reason)
    assert found.values()["compiled_optimizer"] is bool(value)
    rows = {what: (shown, why) for what, shown, why in decision_rows(found)}
    shown = {True: "on", False: "off", None: None}[value]
    assert rows.get("compiled optimizer", (None, ""))[0] == shown


def test_where_kernels_do_not_work_the_optimizer_is_told_to_go_without_them(monkeypatch: pytest.MonkeyPatch):
    for works, told in ((True, None), (False, False)):
        kernels_work_if(works, monkeypatch)
        made = build_optimizer(config_of("optimizer=lamb"), nn.Linear(2, 2))
        assert [group["compile"] for group in made.param_groups] == [told] * len(made.param_groups)


@pytest.mark.parametrize("own", [True, False])
def test_kernels_that_do_not_work_on_one_rank_are_used_on_none(own: bool, monkeypatch: pytest.MonkeyPatch):
    kernels_work_if(own, monkeypatch)
    run = prepared("optimizer=lars")
    table = torch.tensor([[1], [0], [1], [0]])
    monkeypatch.setattr(parts, "gather_ints", lambda runtime, works: table)
    runtime: Any = SimpleNamespace(precision="fp32", world_size=4, device=torch.device("cpu"))
    agreed = as_agreed(run, runtime)
    assert agreed.decisions.compiled_optimizer.value is False
    assert agreed.decisions.compiled_optimizer.reason == (
        "slower by torch's kernels: its own do not work on ranks 1 and 3"
    )
    for one in (agreed, own_copy(agreed)):
        assert all(group["compile"] is False for group in one.optimizer.param_groups)
    assert run_identity(agreed)["arithmetic"]["compiled_optimizer"] is False


def test_another_path_of_lars_is_told_with_what_keeps_it_and_a_demanded_one_is_no_other_run(
    monkeypatch: pytest.MonkeyPatch,
):
    def identity(*overrides: str) -> dict[str, Any]:
        return run_identity(prepared("optimizer=lars", *overrides))

    def told(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
        return list(map(str, check_identity(Checkpoint(Path("runs/x"), 3, {}, {"identity": saved}), now)))

    def of_before(*overrides: str) -> dict[str, Any]:
        """As it was written when only +optimizer.compile=true compiled."""
        found = identity(*overrides)
        return found | {"arithmetic": {key: one for key, one in found["arithmetic"].items() if "compiled" not in key}}

    kernels_work_if(True, monkeypatch)
    chosen = identity()
    changed = "arithmetic.compiled_optimizer was False, now True; +optimizer.compile=false keeps its last digits"
    assert told(of_before(), chosen) == [changed]
    assert told(of_before(), identity("+optimizer.compile=false")) == []
    assert told(of_before("+optimizer.compile=true"), chosen) == []
    assert told(identity("+optimizer.compile=true"), chosen) == []
    kernels_work_if(False, monkeypatch)
    assert told(of_before(), identity()) == []
    assert [one.partition(";")[0] for one in told(chosen, identity())] == [
        "arithmetic.compiled_optimizer was True, now False"
    ]


def test_a_run_begun_on_a_cpu_is_refused_in_bf16_with_the_way_to_go_on():
    run = prepared()
    on_cpu = run_identity(run)
    on_gpu = on_cpu | {"precision": settled(config_of(), H100).precision.compute}
    checkpoint = Checkpoint(Path("runs/x"), 3, {}, {"identity": on_cpu})
    with pytest.raises(CheckpointError, match=r"precision was fp32, now bf16.* Set precision=fp32 to go on"):
        check_identity(checkpoint, on_gpu)
    kernels = on_cpu | {"arithmetic": on_cpu["arithmetic"] | {"deterministic": True, "channels_last": True}}
    told = check_identity(checkpoint, kernels)
    assert [str(one) for one in told] == [
        "arithmetic.channels_last was False, now True", "arithmetic.deterministic was False, now True",
    ]  # fmt: skip


def test_a_checkpoint_from_before_these_choices_goes_on():
    now = run_identity(prepared())
    old = {key: value for key, value in now.items() if key != "arithmetic"}
    assert check_identity(Checkpoint(Path("runs/x"), 3, {}, {"identity": old}), now) == []
