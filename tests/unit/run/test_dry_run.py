"""The dry run: what users bring is used as torch means it, or refused before the run with its reason."""

from __future__ import annotations

import inspect
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from largebatch.records.checkpoint import load_checkpoint, save_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.initial_state import initial_model
from largebatch.run.prepare import Prepared, prepare
from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

pytestmark = pytest.mark.quick

HERE = "tests.unit.run.test_dry_run"
SMALL = ("data=synthetic", "model=linear", "logger=none", "length=4ep", "schedule.warmup=1ep")
TWO_RANKS = {
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1",
}  # fmt: skip


class Net(nn.Module):
    """A body of 8 features and a head; what others have besides is in their own classes."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(in_features, 8), nn.Linear(8, num_outputs)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.features(self.body(inputs.flatten(1))))

    def features(self, hidden: Tensor) -> Tensor:
        return hidden.relu()


# --- models that train


class InPlace(Net):
    """Normalises the very tensor that it is given, as a first layer with inplace=True does."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs.sub_(0.5))


class OutOfPlace(Net):
    """The same function, which leaves its inputs alone."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs - 0.5)


class Restless(Net):
    """Moves all that a module can keep: buffers, weights, counters, lists, tensors, generators, global generators."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("cache", None, persistent=False)
        self.calls, self.seen, self.loose = 0, [1], torch.zeros(3)
        self.drawn = torch.Generator().manual_seed(5), np.random.default_rng(5), random.Random(5)

    def features(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(hidden))
        self.loose += torch.rand(3, generator=self.drawn[0])
        self.last = hidden.detach().mean(0)
        self.cache = hidden.detach()
        self.drawn[1].random(), self.drawn[2].random(), np.random.random(), random.random()  # noqa: NPY002
        with torch.no_grad():
            self.body.weight.mul_(0.999)
        return self.dropout(self.norm(hidden))


class Unstored(Net):
    """Statistics of the micro-batch in evaluation, too: of one sample there are none."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def features(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden).relu()


class Half(Net):
    """Computes in float16 by itself."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).half()


class Tied(Net):
    """One weight under two names, a view, a buffer that is not contiguous, an odd name."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.twin = nn.Linear(in_features, 8)
        self.twin.weight = self.body.weight
        self.register_buffer("first", self.body.weight.detach()[:2])
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("nothing", None)
        self.register_parameter("odd / näme~", nn.Parameter(torch.zeros(())))

    def features(self, hidden: Tensor) -> Tensor:
        return hidden + self.twin.bias + getattr(self, "odd / näme~")


class Complex(Net):
    """A filter in the frequency domain, as in FNO and GFNet."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.filter = nn.Parameter(torch.ones(5, dtype=torch.complex64))

    def features(self, hidden: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(hidden) * self.filter, n=8)


class Normed(Net):
    """Parametrisations, old hooks and masks, which compute the weight in every pass."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        nn.utils.parametrizations.spectral_norm(self.body)
        self.old = nn.utils.weight_norm(nn.Linear(8, 8))
        self.masked = prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5)

    def features(self, hidden: Tensor) -> Tensor:
        return self.masked(self.old(hidden))


class FixedSize(Net):
    """A batch size written into the model, as stateful recurrent networks have it."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden.view(32, 8) if self.training else hidden


# --- models that would fail in the run, or after it


class TwoHeads(Net):
    """As Inception and GoogLeNet: (main, auxiliary) in training, main in evaluation."""

    def forward(self, inputs: Tensor) -> Any:
        outputs = super().forward(inputs)
        return (outputs, outputs) if self.training else outputs


class NeedsTwo(Net):
    """Batch statistics of features."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.norm = nn.BatchNorm1d(8)

    def features(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class InFours(Net):
    """As a minibatch standard deviation over groups of four."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.view(-1, 4, 8).std(1, keepdim=True).expand(-1, 4, 8).reshape(-1, 8)


class Sparse(Net):
    """Embeds signs of the inputs."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.embedding = nn.Embedding(2, 8, sparse=True)

    def features(self, hidden: Tensor) -> Tensor:
        return hidden + self.embedding((hidden > 0).long()).mean(1)


class Late(Net):
    """Makes a layer when it is called for the first time."""

    def features(self, hidden: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(8, 8)
        return self.late(hidden)


class Replaced(Net):
    """Assigns a new parameter in every pass."""

    def features(self, hidden: Tensor) -> Tensor:
        self.scale = nn.Parameter(torch.ones(8))
        return hidden * self.scale


class GrowingState(Net):
    """A queue that begins empty."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.register_buffer("queue", torch.zeros(0, 8))

    def features(self, hidden: Tensor) -> Tensor:
        self.queue = torch.cat([self.queue, hidden.detach()])
        return hidden


class LateBuffer(Net):
    """A buffer that is None until the first pass."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.register_buffer("mean", None)

    def features(self, hidden: Tensor) -> Tensor:
        self.mean = hidden.detach().mean(0)
        return hidden


class NotANumber(Net):
    """The loss is not a number."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden / 0


class RootOfZero(Net):
    """The loss is fine, its gradient is 0 * inf."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden + (hidden * 0).sqrt()


class OnceDifferentiable(Net):
    """Changes in place what the backward pass needs."""

    def features(self, hidden: Tensor) -> Tensor:
        exponential = hidden.exp()
        return exponential.mul_(2)


class KeepsItsGraph(Net):
    """A hidden state that goes from one batch to the next with its graph."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.hidden = torch.zeros(8)

    def features(self, hidden: Tensor) -> Tensor:
        self.hidden = (hidden.mean(0) + 0.5 * self.hidden).tanh()
        return hidden + self.hidden


class Shared(Net):
    """A weight whose elements share one place."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.scale = nn.Parameter(torch.ones(1).expand(8))

    def features(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale


class Divides(Net):
    """Fails in a way that is no RuntimeError."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden * (1 // (len(hidden) - len(hidden)))


class WithExtraState(Net):
    """What get_extra_state returns is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass


class Wide(Net):
    """A parameter that safetensors has no type for."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.filter = nn.Parameter(torch.ones(8, dtype=torch.complex128))

    def features(self, hidden: Tensor) -> Tensor:
        return hidden * self.filter.real.float()


class Expanded(Net):
    """Torch itself cannot load into a buffer whose elements share one place."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.register_buffer("wide", torch.ones(1).expand(8))

    def features(self, hidden: Tensor) -> Tensor:
        return hidden * self.wide


class TellsNothing(Net):
    """Refuses to be saved."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("use export()")


class LeavesOut(Net):
    """Saves its head alone."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "head" in name}


class Rounds(Net):
    """Loads what it saved, rounded."""

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({name: one.bfloat16() for name, one in state_dict.items()}, *args, **kwargs)


class LoadsNothing(Net):
    """Takes its state for read, and leaves its weights as they are."""

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(self.state_dict(), *args, **kwargs)


class Unreal(Net):
    """Lies on the device of shapes alone."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.to("meta")


# --- optimizers


class Forgetful(torch.optim.SGD):
    """Counts its steps where no checkpoint looks."""

    count = 0

    def step(self, closure: Any = None) -> None:
        self.count += 1
        for group in self.param_groups:
            for one in group["params"]:
                one.data.sub_(one.grad, alpha=group["lr"] / self.count)


class KeepsObjects(torch.optim.SGD):
    """Its state is no tensor."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one]["history"] = [1.0]


class WantsClosure(torch.optim.SGD):
    """Computes the loss again, as line searches do."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


# --- data sets


class Points:
    """Whole samples of a kind that is asked for."""

    def __init__(self, kind: str, count: int = 64) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        row = np.random.default_rng(index).standard_normal(64)
        kinds = {"float64": row, "float16": row.astype(np.float16), "uint8": (9 * row).astype(np.uint8)}
        return kinds[self.kind], index % 10


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, and a folder of the test's own for runs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


def prepared(*overrides: str, environ: dict[str, str] | None = None, trains: bool = True) -> Prepared:
    return prepare(compose_run(*SMALL, *overrides), environ or {}, trains=trains)


def error(*overrides: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        prepared(*overrides, environ=environ)
    (line,) = caught.value.errors
    return line


def of(model: type[nn.Module]) -> str:
    return f"model._target_={HERE}.{model.__name__}"


def points(kind: str) -> list[str]:
    left_out = ("num_samples", "num_classes", "shape", "split")
    return [
        override
        for name in ("train", "validation")
        for override in (
            f"data.{name}._target_={HERE}.Points",
            *(f"~data.{name}.{key}" for key in left_out),
            f"+data.{name}.kind={kind}",
        )
    ]


# --- what is used


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
def test_nothing_of_a_model_that_was_tried_is_changed_bit_for_bit(precision: str):
    run = prepared(of(Restless), f"precision={precision}", "batch.total=30", "batch.micro=4")
    torch.manual_seed(0)
    fresh = Restless(64, 10)
    module = run.model
    assert isinstance(module, Restless)
    state = module.state_dict()
    assert torch.equal(state["last"], torch.zeros(8))
    assert torch.equal(state["norm.running_mean"], torch.zeros(8))
    assert int(state["norm.num_batches_tracked"]) == 0
    assert (module.calls, module.seen, module.cache) == (0, [1], None)
    assert torch.equal(module.loose, torch.zeros(3))
    assert [module.drawn[0].get_state().tolist()] == [fresh.drawn[0].get_state().tolist()]
    assert module.drawn[1].bit_generator.state == fresh.drawn[1].bit_generator.state
    assert module.drawn[2].getstate() == fresh.drawn[2].getstate()
    assert module.training
    assert all(one.grad is None for one in module.parameters())
    # Its weights are those that a run which is not tried would have: drawn by the same key.
    for name, one in initial_model(run.config, run.config.seed, run.train).state_dict().items():
        assert torch.equal(one, state[name]), name


def test_the_generators_of_the_process_are_where_they_were(monkeypatch: pytest.MonkeyPatch):
    """But for torch's, which a run seeds by its keys before every pass."""
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr] # noqa: NPY002
    prepared(of(Restless))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index, union-attr] # noqa: NPY002


@pytest.mark.parametrize("model", [Half, Tied, FixedSize, Complex, Normed, Unstored])
def test_a_model_that_torch_trains_is_accepted(model: type[nn.Module]):
    assert prepared(of(model)).numbers.num_steps == 64


def test_what_is_accepted_comes_back_from_a_checkpoint(tmp_path: Path):
    module = prepared(of(Tied)).model
    path = save_checkpoint(tmp_path, step=1, tensors={"model": dict(module.state_dict())}, values={}, keep=1)
    torch.manual_seed(3)
    other = Tied(64, 10)
    other.load_state_dict(load_checkpoint(path).tensors["model"])
    assert all(torch.equal(other.state_dict()[name], value) for name, value in module.state_dict().items())


class Narrow(Net):
    """Weights in bfloat16, as from_pretrained may load them."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.bfloat16()

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs.bfloat16())


def test_weights_that_are_loaded_in_half_precision_stay_in_it_and_that_is_told():
    run = prepared(of(Narrow))
    assert {one.dtype for one in run.model.parameters()} == {torch.bfloat16}
    (note,) = run.notes
    assert note.startswith("model: 4 of 4 parameters were created in bfloat16 and stay in it")
    assert not prepared(of(Net)).notes


def test_logits_that_are_widened_in_pieces_are_told():
    (note,) = prepared(of(Net), "loss.logits_at_once=100", "batch.max_micro=16").notes
    assert note.startswith("loss.logits_at_once=100: the 160 logits of a micro-batch are copied to float32 piece by")
    assert not prepared(of(Net), "loss.logits_at_once=160", "batch.max_micro=16").notes


def test_a_model_that_writes_to_its_inputs_trains_as_one_that_does_not(tmp_path: Path):
    """The noise scale reads micro-batches a second time."""
    runs = []
    for model in (InPlace, OutOfPlace):
        how = of(model), "length=4steps", "schedule.warmup=0ep", "batch.micro=8", "observers.noise_scale.every=2"
        notes = prepared(*how).notes
        assert any("InPlace writes to its inputs" in note for note in notes) == (model is InPlace)
        runs.append(train_quietly(compose_run(*SMALL, *how), tmp_path / model.__name__))
    for ours, theirs in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(ours, theirs)
    scales = [[row.get("noise_scale/trace") for row in run.rows] for run in runs]
    assert scales[0] == scales[1]


def test_float64_data_are_trained_in_float64():
    run = prepared(*points("float64"), "precision=fp64", of(Net))
    assert next(run.model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("total", [32, 34])
def test_the_batches_that_are_named_work(total: int):
    assert min(prepared(of(NeedsTwo), f"batch.total={total}", "batch.micro=4").numbers.plan.micro_batch_sizes) > 1


def test_the_smallest_micro_batch_of_any_rank_and_stage_is_tried_on_every_rank():
    one_left = error(of(NeedsTwo), "batch.total=3", environ=TWO_RANKS)
    assert "nearest that do not: 4, 5." in one_left  # 2 + 1 on two ranks; 4 is 2 + 2
    assert one_left == error(of(NeedsTwo), "batch.total=3", environ=TWO_RANKS | {"RANK": "0", "LOCAL_RANK": "0"})
    ramp = ["batch.micro=4", "batch.ramp.milestones=[1ep]", "batch.ramp.totals=[65]"]
    assert "the ramp's batch=65 leaves such" in error(of(NeedsTwo), *ramp)


def test_a_batch_norm_over_the_whole_batch_may_have_micro_batches_of_one_sample():
    assert prepared(of(NeedsTwo), "batch_norm=exact", "batch.micro=1").numbers.plan.max_micro_batch_size == 1


OF_TORCH = sorted(
    name
    for name, one in vars(torch.optim).items()
    if isinstance(one, type) and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon", "SGD")
)


@pytest.mark.parametrize("name", OF_TORCH)
def test_every_optimizer_of_torch_that_steps_once_per_batch_is_accepted(name: str):
    decays = "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters
    left_out = ["~optimizer.momentum", "~optimizer.nesterov", *([] if decays else ["~optimizer.weight_decay"])]
    assert type(prepared(f"optimizer._target_=torch.optim.{name}", *left_out, of(Net)).optimizer).__name__ == name


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb", "muon"])
def test_the_optimizers_that_are_offered_go_on_from_a_checkpoint_as_without(name: str):
    assert not prepared(f"optimizer={name}", of(Net), "clip_norm=1").optimizer.state


# --- what is refused


REFUSED: dict[str, tuple[list[str], str]] = {
    "a tuple in training alone": ([of(TwoHeads)], "model and data: .*returned a tuple"),
    "one sample without statistics": (
        [of(NeedsTwo), "batch.total=33", "batch.micro=4"],
        r"model and data: a micro-batch of one sample \(\d+: inputs float32 \[1, 1, 8, 8\].* Expected more than 1 .*"
        r"Two samples pass, one alone does not.* batch.total=33 leaves .* do not: 32, 34\.",
    ),
    "micro-batches of one": (
        [of(NeedsTwo), "batch.micro=1"],
        ".*Two samples pass, one alone does not.*Raise batch.micro",
    ),
    "a size that does not divide": (
        [of(InFours), "batch.total=30", "batch.micro=8"],
        r"model and data: a micro-batch of 6 samples \(.*'\[-1, 4, 8\]' is invalid.*dry_run.py:\d+ in features",
    ),
    "sparse gradients": ([of(Sparse)], "model and data: embedding.weight of Embedding .*sparse_coo.*sparse=False"),
    "parameters that a pass makes": ([of(Late)], r"model and data: a forward pass makes.* 2 parameters, e.g. late"),
    "parameters that a pass replaces": ([of(Replaced)], "model and data: a forward pass makes.* scale.*LazyLinear"),
    "a buffer that grows": ([of(GrowingState)], r"model and data: .*queue \[0, 8\] -> \[32, 8\].*final shape"),
    "a buffer that comes later": ([of(LateBuffer)], r"model and data: .*mean absent -> \[8\].*persistent=False"),
    "a loss that is no number": (
        [of(NotANumber)],
        "model and data: the loss of a micro-batch .* is nan at the init",
    ),
    "a gradient that is no number": ([of(RootOfZero)], "model and data: the gradient of body.weight is not finite"),
    "a backward pass that fails": (
        [of(OnceDifferentiable)],
        "model and data: .*failed in the backward pass with Run",
    ),
    "a graph that goes on": ([of(KeepsItsGraph)], "model and data: .*backward pass with RuntimeError: Trying to back"),
    "a weight that cannot be written": ([of(Shared)], "model: elements of scale share one place in memory"),
    "an error of another kind": ([of(Divides)], r"model and data: .*ZeroDivisionError.*dry_run.py:\d+ in features"),
    "an evaluation of one sample": (
        [of(Unstored), "data.validation.num_samples=33", "observers.evaluation.micro=16"],
        "model and data.train_plain: a micro-batch of one sample .*in the forward pass of an evaluation",
    ),
    "float64 in float32": (
        [*points("float64"), of(Net)],
        "model and data: .*The weights are float32 and inputs float64.* precision=fp64",
    ),
    "float16 in float32": ([*points("float16"), of(Net)], "model and data: .*weights are float32 and inputs float16"),
    "bytes": ([*points("uint8"), of(Net)], "model and data: .*weights are float32 and inputs uint8"),
    "extra state": ([of(WithExtraState)], "model: its state_dict holds values that are no tensors .*_state is a dict"),
    "a type that files lack": ([of(Wide)], "model: its state_dict cannot be saved: .*filter.*complex128"),
    "a buffer that cannot be loaded": (
        [of(Expanded)],
        "model: Expanded does not load its own .* copying .*wide",
    ),
    "no state at all": (
        [of(TellsNothing)],
        r"model: its state_dict fails with .*Error: use export\(\) \(test_dry_run.py:",
    ),
    "a state that lacks weights": (
        [of(LeavesOut)],
        "model: LeavesOut does not load its own .*lacks body.weight",
    ),
    "a state that is rounded": ([of(Rounds)], "model: Rounds does not load .* exactly: body.weight"),
    "a state that is not taken": ([of(LoadsNothing)], "model: LoadsNothing does not load the values"),
    "weights without values": ([of(Unreal)], "model: 4 of its tensors lie on the meta device.* body.weight"),
    "state beside the state": (
        [f"optimizer._target_={HERE}.Forgetful"],
        "optimizer: Forgetful takes a different step after its state was saved and loaded",
    ),
    "state of objects": ([f"optimizer._target_={HERE}.KeepsObjects"], "optimizer: The state 'history' of .* is a list"),
    "a step that wants a closure": (
        [f"optimizer._target_={HERE}.WantsClosure"],
        r"optimizer: WantsClosure fails in a step \(TypeError.*'closure'.*A run calls step\(\)",
    ),
}


@pytest.mark.bad_input("a model, an optimizer or types that fail in a step, or that no checkpoint can hold")
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fail_in_the_run_or_after_it_is_refused_before(name: str):
    overrides, expected = REFUSED[name]
    line = error(*overrides)
    assert re.match(expected, line, flags=re.DOTALL), line
