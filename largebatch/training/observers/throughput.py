"""Throughput: samples and tokens per second, and model FLOPs utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.records.trackers import Row


@dataclass(frozen=True)
class Throughput:
    """What throughput is counted in, besides samples; None where it is not known, which is then left out.

    Attributes:
        tokens_per_sample: of every sample.
        flops_per_sample: operations of the model's forward and backward pass, see `model_flops`.
        peak_flops: of one device per second, in the number format of the run.

    >>> Throughput(tokens_per_sample=1024, flops_per_sample=8e11, peak_flops=3.2e14).values(10.0, num_devices=2)
    {'tokens_per_s': 10240.0, 'tokens_per_s_per_device': 5120.0, 'mfu': 0.0125}
    """

    tokens_per_sample: int | None = None
    flops_per_sample: float | None = None
    peak_flops: float | None = None

    def values(self, samples_per_s: float, *, num_devices: int) -> Row:
        """The same rate in other units.

        Args:
            samples_per_s: of all devices together.
            num_devices: of the run.
        """
        found: Row = {}
        if self.tokens_per_sample is not None:
            found["tokens_per_s"] = samples_per_s * self.tokens_per_sample
            found["tokens_per_s_per_device"] = samples_per_s * self.tokens_per_sample / num_devices
        if self.flops_per_sample is not None and self.peak_flops is not None:
            found["mfu"] = samples_per_s * self.flops_per_sample / (num_devices * self.peak_flops)
        return found
