"""A script of a user of accelerate, with a model and a data set of its own: `accelerate launch ... FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from largebatch import GlobalBatches, OrderSampler, SampleOrder, Schedule, ScheduleLR

SAMPLES, BATCH, STEPS = 41, 19, 6


class Waves(Dataset[Any]):
    """Items as processors of Hugging Face make them."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"x": torch.randn(5, generator=generator, dtype=torch.float64), "labels": index % 3}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def schedule() -> Schedule:
    return Schedule(total_samples=STEPS * BATCH, warmup_samples=2 * BATCH, decay="linear")


def require_each_sample_of_an_epoch(accelerator: Accelerator) -> None:
    """A loader that accelerate shares out gets the order of one process, and goes on behind an epoch."""
    sampler = OrderSampler(SampleOrder(SAMPLES), rank=0, world_size=1)
    loader = accelerator.prepare(DataLoader(range(SAMPLES), 4, sampler=sampler))
    for epoch in range(2):
        ids = torch.cat([accelerator.gather_for_metrics(batch) for batch in loader])
        assert ids.tolist() == SampleOrder(SAMPLES).ids(epoch * SAMPLES, SAMPLES).tolist()


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    require_each_sample_of_an_epoch(accelerator)
    model = Net()
    optimizer = optimizer_of(model)
    stream = GlobalBatches(Waves(), BATCH, max_micro=4, length=STEPS * BATCH, device=accelerator.device, num_workers=1)
    scheduler = ScheduleLR(optimizer, schedule(), stream)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    accelerator.register_for_checkpointing(stream)

    def train() -> dict[str, Tensor]:
        for batch in stream:
            for micro in batch:
                with micro.sync(model):
                    loss = F.cross_entropy(model(**micro.inputs), micro.targets, reduction="sum")
                    accelerator.backward(loss * micro.weight)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if stream.samples_seen == 3 * BATCH:
                accelerator.save_state(folder / "state")
        return {name: value.clone() for name, value in accelerator.unwrap_model(model).state_dict().items()}

    first = train()
    accelerator.load_state(folder / "state")
    again = train()
    save_file(again, folder / f"rank{accelerator.process_index}_of_{accelerator.num_processes}.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
