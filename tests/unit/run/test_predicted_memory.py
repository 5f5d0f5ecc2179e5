"""The predicted memory of a rank is that of a real run, tensor by tensor."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import Tensor, nn

from largebatch.__main__ import main
from largebatch.diagnostics.memory.live_bytes import CUDA_GRANULE, LiveBytes
from largebatch.distributed.runtime import Runtime
from largebatch.run.parts import build_loader, build_run
from largebatch.run.predicted_memory import prediction
from largebatch.run.predicted_memory.prediction import NotPredictableError, PredictionFailedError, predict_memory
from largebatch.run.predicted_memory.report import memory_rows
from largebatch.run.prepare import Prepared, prepare
from largebatch.training.loop import train
from largebatch.training.observers import EvaluationObserver
from largebatch.training.row_log import RowLog
from tests.unit.composing import compose_run

SCALARS = 1024  # bytes: sums of the loss and the like


def prepared_run(*overrides: str, model: str | None = None, world_size: int = 1, **arguments: Any) -> Prepared:
    config = compose_run("data=digits", *overrides)
    if model is not None:
        OmegaConf.update(config, "model", {"_target_": f"{__name__}.{model}", **arguments}, merge=False)
    ranks = {"WORLD_SIZE": str(world_size), "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "0"}
    return prepare(config, ranks if world_size > 1 else {}, trains=False)


def real_peak(prepared: Prepared) -> int:
    """Most bytes of tensors in three real steps."""
    with Runtime.open(precision=prepared.config.precision.compute) as runtime, LiveBytes() as memory:
        run = build_run(prepared, runtime, build_loader(prepared, runtime.rank), num_steps=3)
        memory.watch([*run.module.parameters(), *run.module.buffers()])
        memory.restart()
        train(run)
        return memory.peak


class Stack(nn.Sequential):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__(nn.Flatten(), *(nn.Linear(width, width, bias=False) for _ in range(layers)))


TEXT = ("data=text", "data.path=LICENSE", "data.vocab_size=128", "data.context_length=32", "batch.total=6")
CASES = {
    "mlp, SGD, one micro-batch": ("model=mlp", "batch.total=64"),
    "mlp, AdamW, clipped, three": ("model=mlp", "optimizer=adamw", "clip_norm=1", "batch.total=6", "batch.max_micro=2"),
    "mlp, LAMB, three": ("model=mlp", "optimizer=lamb", "batch.total=96", "batch.max_micro=32"),
    "mlp, float64": ("model=mlp", "precision=fp64", "batch.total=64"),
    "mlp, halving": ("model=mlp", "batch.on_out_of_memory=lower", "batch.total=96", "batch.max_micro=32"),
    "convnet, LARS, guarded": ("model=convnet", "optimizer=lars", "guard.policy=skip", "batch.total=64"),
    "convnet, bfloat16, three": ("model=convnet", "precision=bf16", "batch.total=96", "batch.max_micro=32"),
    "convnet, exact batch norm": ("model=convnet", "batch_norm=exact", "batch.total=96", "batch.max_micro=32"),
    "resnet18": ("model=resnet18", "batch.total=8", "batch.max_micro=4"),
    "gpt, LAMB, three": (*TEXT, "optimizer=lamb", "batch.max_micro=2", "model.num_layers=2"),
    "gpt, Muon, checkpointed": (*TEXT, "optimizer=muon", "precision.activation_checkpointing=true"),
    "two views": ("data=paired_views", "model=two_views", "loss=info_nce", "batch.total=96", "batch.max_micro=32"),
}  # fmt: skip


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_the_predicted_peak_is_that_of_a_real_run(overrides: tuple[str, ...]):
    """But for loaded samples that are still held: on a GPU they are the host's."""
    prepared = prepared_run(*overrides)
    found, real = predict_memory(prepared, "cpu"), real_peak(prepared)
    loaded = [part.inputs.nbytes + part.targets.nbytes for part in build_loader(prepared, 0).micro_batches(0, 1)]
    assert -SCALARS < real - found.step.peak < sum(loaded) + SCALARS


def test_a_stack_of_linear_layers_takes_what_a_calculation_by_hand_says():
    """Layers of d x d weights without bias, under SGD with momentum and decay: weights, momenta, gradients, P each.

    At the last of the weight gradients the inputs and the derivative of the first layer's output are alive besides, and
    what lies ready for later. Torch's kernels for many tensors add the decay to copies of all gradients; fused ones do
    not.
    """
    layers, width, size = 4, 64, 16
    by_hand = {"model": "Stack", "layers": layers, "width": width}
    overrides = (
        f"batch.total={size}",
        "optimizer.weight_decay=0.01",
        "parameters.exclude_from_decay=[]",
        "precision=fp32",
    )
    fused = predict_memory(prepared_run(*overrides, **by_hand), "cuda")
    foreach = predict_memory(prepared_run(*overrides, "+optimizer.foreach=true", "data.prefetch=0", **by_hand), "cuda")
    of_weights, of_activations, few = 4 * layers * width**2, 4 * size * width, 8 * CUDA_GRANULE
    for found, num_ready, num_copies in ((fused, 2, 0), (foreach, 0, 1)):
        assert (found.weights, found.optimizer, found.step.all_gradients) == (of_weights,) * 3
        in_passes = 3 * of_weights + (2 + num_ready) * of_activations
        in_update = (3 + num_copies) * of_weights + num_ready * of_activations
        assert (found.step.in_passes, found.step.in_update) == pytest.approx((in_passes, in_update), abs=few)


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_kernels_of_our_own_need_nothing_beside_weights_gradients_and_state_and_torchs_do(optimizer: str):
    overrides = ("model=mlp", "batch.total=8", f"optimizer={optimizer}", "precision=fp32", "data.prefetch=0")
    ours = predict_memory(prepared_run(*overrides), "cuda")
    torchs = predict_memory(prepared_run(*overrides, "+optimizer.compile=false"), "cuda").step.in_update
    least = ours.weights + ours.optimizer + ours.step.all_gradients
    assert ours.step.in_update == pytest.approx(least, abs=64 * CUDA_GRANULE)
    assert torchs > 1.1 * least


def test_an_evaluation_is_predicted_too():
    """Its batches are larger than micro-batches, and no gradient is kept: here outputs and inputs decide."""
    prepared = prepared_run("model=mlp", "batch.total=8", "observers.evaluation.micro=180")
    found = predict_memory(prepared, "cpu")
    with Runtime.open() as runtime, LiveBytes() as memory:
        run = build_run(prepared, runtime, build_loader(prepared, 0), num_steps=2)
        memory.watch([*run.module.parameters(), *run.module.buffers()])
        train(run)
        sets = prepared.train_plain, prepared.validation
        observer = EvaluationObserver(RowLog([], num_samples=1), *sets, prepared.measured_loss, None, 180)
        memory.restart()
        observer.measure(run)
    assert memory.peak == pytest.approx(found.evaluation, rel=0.02)
    assert found.evaluation > found.step.in_passes


class Branching(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.mean() > 0:
            inputs = 2 * inputs
        return super().forward(inputs.flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(8, 32, num_layers=2, batch_first=True), nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.head(self.layers(inputs.squeeze(1))[0][:, -1])
        return last


def test_recurrent_layers_on_a_cpu_keep_what_onednn_asks_for_and_on_a_gpu_every_step():
    prepared = prepared_run("batch.total=24", "batch.max_micro=8", model="Recurrent")
    found = predict_memory(prepared, "cpu")
    assert real_peak(prepared) == pytest.approx(found.step.peak, rel=0.02)
    of_gates = 2 * 8 * 8 * 4 * 32 * 2  # layers, samples, steps, gates, in bfloat16
    assert predict_memory(prepared, "cuda").activations > of_gates


class Numpy(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1)) + float(inputs.detach().numpy().mean())


def test_a_failure_of_the_prediction_itself_is_no_property_of_the_model(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NotPredictableError, match=r"test_predicted_memory.py:\d+ in forward"):
        predict_memory(prepared_run(model="Numpy", in_features=64, out_features=10), "cuda")
    monkeypatch.setattr(prediction, "FRAGMENTED", None)
    with pytest.raises(PredictionFailedError, match=r"TypeError: .* a defect of largebatch, not of the run"):
        predict_memory(prepared_run("model=mlp"), "cuda", budget=2**36)


class Choosing(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        return super().forward(inputs) + 0 * inputs[inputs > 0].sum()


@pytest.mark.parametrize("model", ["Branching", "Choosing"])
def test_a_model_that_needs_values_is_not_predicted_and_the_line_is_named(model: str):
    with pytest.raises(
        NotPredictableError, match=r"test_predicted_memory.py:\d+ in forward, the (value|shape) of a tensor"
    ):
        predict_memory(prepared_run(model=model, in_features=64, out_features=10), "cuda")


def test_the_largest_micro_batch_fits_and_one_more_sample_does_not():
    overrides = ("model=mlp", "batch.total=1024")
    budget = 4 * 2**20
    fit = predict_memory(prepared_run(*overrides, "batch.max_micro=8"), "cpu", budget=budget).fit
    assert fit is not None
    assert 8 < fit.size < 1024
    peaks = [
        predict_memory(prepared_run(*overrides, f"batch.micro={size}", "batch.max_micro=null"), "cpu").step.in_passes
        for size in (fit.size, fit.size + 1)
    ]
    assert peaks[0] <= budget < peaks[1]
    assert fit.peak == peaks[0]


def test_plan_prints_the_memory_as_a_table_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    overrides = ["model=mlp", "data=digits", "batch.total=64", "plan.memory=80 GiB"]
    assert main(["plan", *overrides]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "80 GiB less 2.5 GiB and 10%: 70.5 GiB for tensors" in said
    assert main(["plan", *overrides, "plan.format=json", "plan.device=cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["precision"]["compute"]["value"], record["prefetch"]["value"]) == ("fp32", 0), "as the table says"
    memory = record["memory"]
    parts = (memory["weights"], memory["optimizer"], memory["step"]["gradients"], memory["activations"])
    assert (memory["peak"], memory["fit"]["size"]) == (sum(parts), 64)
    assert memory["fit"]["key"] == "batch.max_micro"


def test_a_pinned_micro_batch_that_fits_is_named_by_its_own_key():
    predicted = predict_memory(prepared_run("model=mlp", "batch.total=24", "batch.micro=8"), "cuda", budget=2**36)
    assert "batch.micro=24" in [value for _, value, _ in memory_rows(predicted)]


def test_a_model_without_weights_is_predicted_as_one_with_them(capsys: pytest.CaptureFixture[str]):
    overrides = ["model=convnet", "data=digits", "batch.total=64", "plan.memory=true", "plan.format=json"]
    found = []
    for dry_run in ("true", "false"):
        assert main(["plan", *overrides, f"plan.dry_run={dry_run}"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["memory"] == found[1]["memory"]
    assert [len(one["notes"]) for one in found] == [0, 1]


@pytest.mark.parametrize(
    ("text", "problem"), [("80", "has no unit"), ("80gigs", "is no unit"), ("much", "is no amount")]
)
def test_an_amount_of_memory_that_is_none_is_refused(text: str, problem: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", f"plan.memory={text}"]) == 2
    assert problem in capsys.readouterr().err
