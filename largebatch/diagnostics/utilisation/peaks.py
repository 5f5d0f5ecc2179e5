"""Peak rates of devices, for model FLOPs utilisation."""

from __future__ import annotations

import re

# TFLOP/s in bfloat16 and float16 without sparsity, by words of the name that the driver gives; the first that matches
# counts. Source: the makers' data sheets (NVIDIA A10, A30, A40, A100, L4, L40S, H100, H200, HGX B200, GB200; AMD
# Instinct MI250X, MI300X, MI325X), halved where they state sparse rates. An MI250X shows its two dies as two devices.
_HALF_PRECISION_TFLOPS = (
    (r"\bGB200\b", 2500.0),
    (r"\bB200\b", 2250.0),
    (r"\bH200\b.*\bNVL\b", 835.5),
    (r"\bG?H200\b", 989.4),
    (r"\bH100\b.*\bNVL\b", 835.5),
    (r"\bH100\b.*\bPCIe\b", 756.5),
    (r"\bH100\b", 989.4),
    (r"\bA100\b", 312.0),
    (r"\bA40\b", 149.7),
    (r"\bA30\b", 165.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.05),
    (r"\bL4\b", 121.0),
    (r"\bMI3(00|25)X\b", 1307.4),
    (r"\bMI250X\b", 191.5),
)


def peak_tflops(device: str, compute: str) -> float | None:
    """Peak TFLOP/s of a device for dense products in bf16 or fp16; None for others: a number is never made up.

    A part of a device (MIG) has no rate here, either.

    Args:
        device: its name, as the driver calls it.
        compute: number format of the run.

    >>> peak_tflops("NVIDIA A100-SXM4-80GB", "bf16"), peak_tflops("NVIDIA H100 PCIe", "bf16")
    (312.0, 756.5)
    >>> peak_tflops("CPU", "bf16"), peak_tflops("NVIDIA A100-SXM4-80GB", "fp32"), peak_tflops("NVIDIA H20", "bf16")
    (None, None, None)
    """
    if compute not in ("bf16", "fp16") or re.search(r"\bMIG\b", device):
        return None
    return next((rate for pattern, rate in _HALF_PRECISION_TFLOPS if re.search(pattern, device)), None)
