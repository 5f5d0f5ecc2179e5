"""The number format of a run, and whether its bits must repeat: known before there is a model."""

from __future__ import annotations

from largebatch.gradient.choices import Ability
from largebatch.run.config.combinations import choices_of
from largebatch.run.config.precision import PrecisionConfig
from largebatch.run.config.schema import TrainConfig
from largebatch.run.precision.device import Decision, Device

# Peak rate of matrix products in bf16 over that in fp32 without TF32, by compute capability (NVIDIA's data sheets of
# A100, A40, L40S, H100, B200): what a run can gain at most.
_BF16_OVER_FP32 = {(8, 0): 16, (8, 6): 4, (8, 9): 4, (9, 0): 15, (10, 0): 28}


def settled(config: TrainConfig, device: Device, *, everywhere: bool = True) -> TrainConfig:
    """The config with a number format in place of `auto`, and with the determinism that follows from it."""
    values = {
        "compute": number_format(device, config.precision, everywhere=everywhere).value,
        "deterministic": determinism(device, config).value,
    }
    return config.model_copy(update={"precision": config.precision.model_copy(update=values)})


def number_format(device: Device, precision: PrecisionConfig, *, everywhere: bool = True) -> Decision:
    """The format of forward and backward passes; with `auto` bf16 where the hardware of every rank computes in it.

    Args:
        device: of this rank.
        precision: as it was given.
        everywhere: whether the devices of all ranks compute in bfloat16, as far as it is known.
    """
    compute = precision.compute
    if compute == "auto":
        return _automatic_format(device, everywhere)
    reason = "precision.compute"
    if compute == "fp32" and device.has_bf16 and not precision.tf32 and device.capability in _BF16_OVER_FP32:
        gain = _BF16_OVER_FP32[device.capability]
        reason += f"; without TF32. On {device.name} precision=bf16 computes matrix products up to {gain} times as fast"
    return Decision(compute, reason)


def _automatic_format(device: Device, everywhere: bool) -> Decision:
    if not device.is_gpu:
        return Decision("fp32", "precision=auto: no GPU here; a GPU that has bfloat16 would compute in bf16")
    if not device.has_bf16:
        return Decision("fp32", f"precision=auto: {device.name} has no bfloat16; precision=fp16 uses its tensor cores")
    if not everywhere:
        return Decision("fp32", "precision=auto: the GPU of another rank has no bfloat16")
    return Decision("bf16", f"precision=auto: {device.name} has bfloat16")


def determinism(device: Device, config: TrainConfig) -> Decision:
    """Whether operations must give the same bits each time; by default where a GPU computes what others rely on."""
    asked, promises = config.precision.deterministic, promises_of_bits(config)
    if not device.is_gpu:  # on a CPU torch's kernels repeat their bits
        return Decision(asked or None, "precision.deterministic" if asked else "kernels of a CPU repeat their bits")
    if asked is not None:
        return Decision(asked, "precision.deterministic")
    if promises:
        return Decision(True, f"{promises[0]} compares bits, and kernels of a GPU repeat them only so")
    return Decision(None, "nothing here compares bits; precision.deterministic=true makes a resumed run bit for bit")


def promises_of_bits(config: TrainConfig) -> list[str]:
    """The settings of a config that compare bits, or promise equal ones."""
    return [one.name for one in choices_of(config, None) if Ability.SAME_BITS in one.needs]
