"""Two training loops as other people write them: one with torch alone, one with accelerate.

They are rivals of our loop, so they share nothing with it but model, optimizer and samples: plain tensors, torch's
order, a DDP of their own, torch's losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

RivalLoop = Callable[[int], None]
"""Takes a number of optimizer steps."""


@dataclass(frozen=True)
class Case:
    """What a loop is to train.

    Attributes:
        model: of its own, not wrapped, on any device.
        optimizer: of the model's parameters.
        loss: (outputs, targets) -> mean over a micro-batch.
        inputs, targets: the training set, [N, ...] each, on the CPU.
        micro_batch_size: samples of a forward pass.
        num_micro_batches: passes of a rank in a step.
        device: of this rank.
        autocast: dtype of mixed precision; None: the weights' own.
        memory_format: of the model and of images.
        compile: whether torch compiles the model.
        clip_norm: largest gradient norm; None: no clipping.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    micro_batch_size: int
    num_micro_batches: int
    device: torch.device
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.preserve_format
    compile: bool = False
    clip_norm: float | None = None

    def placed_model(self) -> nn.Module:
        """The model on the device, in its layout, compiled if that is asked for."""
        model: nn.Module = self.model.to(self.device)
        model.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
        if self.compile:
            model.compile()
        return model


def torch_loop(case: Case) -> RivalLoop:
    """The loop that a careful person writes for one case: no logging, no checks, no accounting."""
    is_distributed = dist.is_initialized() and dist.get_world_size() > 1
    model = case.placed_model()
    optimizer = case.optimizer
    if is_distributed:
        on_gpu = case.device.type == "cuda"
        model = DistributedDataParallel(
            model,
            device_ids=[case.device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    no_sync = model.no_sync if isinstance(model, DistributedDataParallel) else contextlib.nullcontext
    batches = _endless(case)
    layout = case.memory_format if case.inputs.dim() == 4 else torch.preserve_format

    def loop(num_steps: int) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            for part in range(case.num_micro_batches):
                ids = next(batches)
                inputs = case.inputs[ids].to(case.device, non_blocking=True, memory_format=layout)
                targets = case.targets[ids].to(case.device, non_blocking=True)
                is_last = part == case.num_micro_batches - 1
                with contextlib.nullcontext() if is_last else no_sync():
                    with torch.autocast(case.device.type, case.autocast, enabled=case.autocast is not None):
                        loss = case.loss(model(inputs), targets) / case.num_micro_batches
                    loss.backward()
            if case.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
            optimizer.step()

    return loop


def _endless(case: Case) -> Iterator[Tensor]:
    """Ids of one micro-batch of this rank after the other, a new order every epoch."""
    dataset = TensorDataset(case.inputs, case.targets)
    ranks = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, *ranks, shuffle=True, drop_last=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        own = torch.tensor(list(sampler))
        yield from own[: len(own) // case.micro_batch_size * case.micro_batch_size].split(case.micro_batch_size)
        epoch += 1


def accelerate_loop(case: Case) -> RivalLoop:
    """The loop of accelerate's guide to gradient accumulation, with its defaults.

    It joins the process group and the mixed precision of the job that is open.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=case.num_micro_batches)
    dataset = TensorDataset(case.inputs, case.targets)
    loader = DataLoader(dataset, case.micro_batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(case.placed_model(), case.optimizer, loader)
    batches = _again_and_again(loader)

    def loop(num_steps: int) -> None:
        while num_steps:
            inputs, targets = next(batches)
            with accelerator.accumulate(model):
                accelerator.backward(case.loss(model(inputs), targets))
                if accelerator.sync_gradients and case.clip_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), case.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            num_steps -= accelerator.sync_gradients  # also at the end of an epoch

    return loop


def _again_and_again(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def torch_loss(loss: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """Torch's mean of a loss of ours over a micro-batch; None if it is not written here."""
    from largebatch.losses import CrossEntropy, NextToken, SquaredError

    if isinstance(loss, SquaredError):
        return lambda outputs, targets: 0.5 * F.mse_loss(outputs, targets, reduction="sum") / len(targets)
    if not isinstance(loss, (CrossEntropy, NextToken)) or loss.weight is not None or getattr(loss, "shift", None):
        return None
    smoothing, ignored = loss.label_smoothing, -100 if loss.ignore_index is None else loss.ignore_index

    def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
        logits = getattr(outputs, "logits", outputs).float()
        if isinstance(loss, NextToken):
            logits, targets = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(logits, targets, ignore_index=ignored, label_smoothing=smoothing)

    return cross_entropy
