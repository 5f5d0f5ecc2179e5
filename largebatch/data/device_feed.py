"""Micro-batches on their way to a GPU: pinned, copied on a stream of their own, completed on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from largebatch.data.augmentation import Augmentation
from largebatch.data.items import Inputs, change_images
from largebatch.data.micro_batch import MicroBatchData


@dataclass(frozen=True)
class Pinned:
    """A micro-batch in page-locked memory of the host, whose copy to the device waits for nobody.

    Attributes:
        batch: inputs as they are stored, and targets.
        draws: of the augmentation; None without one.
        mixed: what is mixed, see `Mixing.table`; None: nothing.
    """

    batch: MicroBatchData
    draws: Tensor | None
    mixed: Tensor | None = None


@dataclass(frozen=True)
class Sent:
    """A micro-batch whose copy to the device is under way.

    Attributes:
        batch: inputs as they are stored, and targets, on the device.
        draws: of the augmentation, on the device; None without one.
        mixed: likewise.
        copied: when the copies are complete.
    """

    batch: MicroBatchData
    draws: Tensor | None
    mixed: Tensor | None
    copied: torch.cuda.Event

    @property
    def tensors(self) -> list[Tensor]:
        """All that is copied."""
        inputs = self.batch.inputs
        parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        return [*parts, self.batch.targets, *(one for one in (self.draws, self.mixed) if one is not None)]


class DeviceFeed:
    """Copies micro-batches to a GPU beside its computation, and makes the model's inputs of them there.

    `pin` makes copies that need no host, in any thread. `send` queues the copies to the device on a stream of their own
    and returns at once, in any thread. `receive` lets the current stream wait for them, not the host, and queues
    normalisation and augmentation behind. Bytes travel as they are stored: 1 per pixel instead of 4.

    Args:
        device: a GPU.
        complete: makes inputs of stored ones, see `stored_form`; None: they are complete.
        augment: applied to complete images, with draws that are made on the host.
    """

    def __init__(
        self, device: torch.device, *, complete: Callable[[Tensor], Tensor] | None, augment: Augmentation | None
    ) -> None:
        self.device = device
        self._complete, self._augment = complete, augment
        self._stream = torch.cuda.Stream(device)

    def pin(self, batch: MicroBatchData, *, draws: Tensor | None = None, mixed: Tensor | None = None) -> Pinned:
        """A micro-batch on the host, with its draws, in page-locked memory."""
        inputs, targets = each(batch.inputs, Tensor.pin_memory), batch.targets.pin_memory()
        drawn = [None if one is None else one.pin_memory() for one in (draws, mixed)]
        return Pinned(replace(batch, inputs=inputs, targets=targets), *drawn)

    def send(self, pinned: Pinned) -> Sent:
        """Start the copies of a micro-batch."""
        batch = pinned.batch
        with torch.cuda.stream(self._stream):
            draws, mixed = (None if one is None else self._copied(one) for one in (pinned.draws, pinned.mixed))
            inputs, targets = each(batch.inputs, self._copied), self._copied(batch.targets)
            return Sent(replace(batch, inputs=inputs, targets=targets), draws, mixed, self._stream.record_event())

    def receive(self, sent: Sent) -> MicroBatchData:
        """The micro-batch, ready for what the current stream does from here on."""
        here = torch.cuda.current_stream(self.device)
        here.wait_event(sent.copied)
        for tensor in sent.tensors:
            tensor.record_stream(here)  # its memory is not given away before this stream is done with it
        inputs, draws, mixed, augment = sent.batch.inputs, sent.draws, sent.mixed, self._augment
        if self._complete is not None:
            inputs = change_images(inputs, self._complete)
        if augment is not None and draws is not None:
            inputs = change_images(inputs, lambda images: augment.apply(images, draws))
        if augment is not None and mixed is not None:
            inputs = augment.mix(inputs, mixed)
        return replace(sent.batch, inputs=inputs)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class Waiting(MicroBatchData):
    """A micro-batch that stays on the host, as it is stored; each time that its inputs are read they are sent anew.

    For steps that begin with all of their micro-batches: the device has room for one, and the host can look at targets
    without waiting for the device.
    """

    _pinned: Pinned
    _feed: DeviceFeed

    def __init__(self, pinned: Pinned, feed: DeviceFeed) -> None:
        without_targets = replace(pinned.batch, targets=pinned.batch.targets[:0])
        vars(self).update(vars(pinned.batch), _pinned=replace(pinned, batch=without_targets), _feed=feed)

    @property
    def inputs(self) -> Inputs:
        """On the device, complete and augmented."""
        return self._feed.receive(self._feed.send(self._pinned)).inputs


def each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`function` of a tensor, or of each tensor of a dict."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)
