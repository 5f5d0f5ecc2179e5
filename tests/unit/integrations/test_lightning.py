"""The callback in a real Trainer of Lightning: what it logs is computed by hand, and it changes nothing."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from largebatch.batch import Schedule
from largebatch.optim import LARS, ScheduleLR, follow_batch
from tests.noise_by_hand import noise_by_hand

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")

GENERATOR = torch.Generator().manual_seed(0)
ROWS, CLASSES = torch.randn(31, 5, generator=GENERATOR), torch.randint(0, 3, (31,), generator=GENERATOR)
TRAIN, VALIDATION = TensorDataset(ROWS[:22], CLASSES[:22]), TensorDataset(ROWS[22:], CLASSES[22:])


def fitted(folder: Path, *, is_watched: bool, dropout: float = 0.0, accumulation: int = 2) -> dict[str, Any]:
    import lightning.pytorch as pl

    from largebatch.integrations.lightning import LargeBatchCallback

    noted: list[Any] = []
    rows: list[dict[str, float]] = []

    class Module(pl.LightningModule):
        """Runs a part of itself, as many do."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx % accumulation == 0:
                noted.append((copy.deepcopy(self.net), []))
            noted[-1][1].append(batch)
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return LARS(self.parameters(), lr=0.5)

    class Rows(pl.loggers.Logger):
        name, version = "rows", 0

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            rows.append(dict(metrics))

    pl.seed_everything(3, verbose=False)
    module = Module()
    callback = LargeBatchCallback(gap=(nn.CrossEntropyLoss(), TRAIN, VALIDATION))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", accumulate_grad_batches=accumulation, gradient_clip_val=0.05,
        callbacks=[callback] if is_watched else [], logger=Rows(), log_every_n_steps=1, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few loader workers
        trainer.fit(module, DataLoader(TRAIN, 4, shuffle=True), DataLoader(VALIDATION, 4))
    weights = torch.cat([one.detach().flatten() for one in module.parameters()])
    return {"rows": rows, "weights": weights.tolist(), "noted": noted, "module": module, "callback": callback}


def logged(rows: list[dict[str, float]], key: str) -> list[float]:
    return [float(row[key]) for row in rows if key in row]


def test_the_logged_noise_is_computed_by_hand(tmp_path: Path):
    """22 samples in batches of 4, two per step: the last batch has 2. Gradients are clipped."""
    result = fitted(tmp_path, is_watched=True)

    def loss_of(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    expected = [
        noise_by_hand(before, batches, loss_of, [len(one[1]) for one in batches])[1:]
        for before, batches in result["noted"]
    ]
    assert [len(batches) for _, batches in result["noted"]] == [2, 2, 2]
    means = np.cumsum(expected, axis=0) / np.arange(1, 4)[:, None]
    np.testing.assert_allclose(logged(result["rows"], "noise_scale/trace"), means[:, 0], rtol=2e-4)
    np.testing.assert_allclose(logged(result["rows"], "noise_scale/grad_sq_norm"), means[:, 1], rtol=2e-4, atol=1e-6)
    assert len(logged(result["rows"], "trust_ratio/net.0.weight")) == 3


def test_the_training_is_the_same_to_the_last_bit_and_the_gap_is_logged(tmp_path: Path):
    watched, plain = (fitted(tmp_path, is_watched=one, dropout=0.3) for one in (True, False))
    assert watched["weights"] == plain["weights"]
    net = watched["module"].net.eval()
    with torch.no_grad():
        other, own = F.cross_entropy(net(ROWS[22:]), CLASSES[22:]), F.cross_entropy(net(ROWS[:22]), CLASSES[:22])
    (gap,) = logged(watched["rows"], "gap/loss")
    (stderr,) = logged(watched["rows"], "gap/loss_stderr")
    assert abs(gap - float(other - own)) < 3 * stderr, "of a part of the training samples"
    assert logged(watched["rows"], "val_loss") == logged(plain["rows"], "val_loss")


def test_a_restored_trainer_continues_the_measurements(tmp_path: Path):
    from largebatch.integrations.lightning import LargeBatchCallback

    result = fitted(tmp_path, is_watched=True)
    saved = result["callback"].state_dict()
    assert len(saved["measurements"]) == 3
    again = LargeBatchCallback()
    again.load_state_dict(saved)
    assert again.state_dict() == saved


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedule_over_samples_is_followed_whenever_lightning_steps_it(tmp_path: Path, interval: str):
    import lightning.pytorch as pl

    schedule, found = Schedule(total_samples=60, warmup_samples=12, decay="linear"), []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 3)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
            stepped = itemgetter("lr", "momentum")  # of the group of then: accelerate makes new ones
            optimizer.register_step_pre_hook(lambda *_: found.append(stepped(optimizer.param_groups[0])))
            scaled = follow_batch(optimizer, 6, base_batch_size=3, rule="linear_half_life")
            scheduler = ScheduleLR(optimizer, schedule, global_batch_size=6, scaled=scaled)
            return [optimizer], [{"scheduler": scheduler, "interval": interval}]

    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(Module(), DataLoader(TRAIN, batch_size=6, drop_last=True))
    peak = 0.2 * 2 * (1 - 0.81) / (1 - 0.9)
    assert found == [pytest.approx((peak * schedule(6 * step), 0.81), rel=1e-12) for step in range(6)]
