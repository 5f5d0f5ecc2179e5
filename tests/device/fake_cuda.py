"""A dispatch mode in which CUDA tensors are fake and CPU tensors real: it counts what a GPU would have to do.

A fake tensor has a shape and a device, and no numbers. What the host reads of the device comes back as zeros, or as
what it had sent there unchanged.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.device.run_record import Counts
from tests.device.shapes import SHAPES

# An event with so many kernels queued behind it is read late: the device has work for 0.2 ms after it, at about 5 us
# per launch, and does not run dry while the host goes on. The smallest step of a test has twice as many.
ENOUGH_BEHIND = 40
SHAPES_FROM_VALUES = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_TORCHS_OWN = ("/torch/", "/accelerate/", "/contextlib.py", "/tests/device/", "<string>")
LAUNCH_S = 5e-6
_BLOCK = 512  # bytes; the caching allocator's unit


class FakeGpu(TorchDispatchMode):
    """Counts waits, copies, collectives, kernels and memory of one rank.

    Attributes:
        counts: since the last `take`.
        live: bytes of CUDA tensors that are alive.
        problems: operations that CUDA would refuse or that are a race, each with its place.
        kernel_s: time that the device takes for each kernel and copy.
        one_thread: held during an operation.
        host_s: time on the host, which passes while it launches (`LAUNCH_S`) and while it waits for the device.
        said: objects that rank 0 broadcast; on other ranks, those that they are still to hear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.live, self.problems = Counts(), 0, list[str]()
        self.said: list[list[Any]] = []
        self.launched = 0  # kernels and copies, ever: a position in the stream
        self.kernel_s, self.host_s, self._done_s = 1e-5, 0.0, [0.0]
        self._fake, self.one_thread = FakeTensorMode(allow_non_fake_inputs=True), threading.RLock()
        self._pinned: dict[int, int] = {}  # first and last address of each block
        self.reached = 0  # the position up to which the host knows that the device is done
        self._alive: dict[int, Any] = {}
        self._sent: dict[int, Tensor] = {}  # values of the host in storages of the device
        self._written: dict[int, int] = {}  # pinned storage -> position of the copy that writes it
        self._being_read: dict[int, int] = {}  # pinned storage -> position of the copy that reads it

    def take(self) -> Counts:
        """The counts since the last call."""
        taken, self.counts = self.counts, Counts(peak=self.live)
        return taken

    def wait(self, kind: str, position: int | None = None) -> None:
        """The host waits until the device has come to `position`; None: to the end of what is queued."""
        position = self.launched if position is None else position
        if position <= self.reached:
            return
        behind, self.reached = self.launched - position, position
        self.host_s = max(self.host_s, self.done_s(position))
        counter = self.counts.waits if behind < ENOUGH_BEHIND else self.counts.late_reads
        counter[f"{kind} at {place()}"] += 1
        for pending in (self._written, self._being_read):
            for key in [key for key, at in pending.copy().items() if at <= position]:
                pending.pop(key, None)

    def on_device(self, tensor: Tensor) -> Tensor:
        """A CUDA tensor whose numbers the host can read; nothing of it is counted."""
        with self.one_thread, self._fake:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda:0")
        self._sent[fake.untyped_storage()._cdata] = tensor.contiguous()
        return fake

    def _launch(self) -> None:
        with self.one_thread:
            self.counts.launches += 1
            self.launched += 1
            self._done_s.append(max(self._done_s[-1], self.host_s) + self.kernel_s)
            self.host_s += LAUNCH_S

    def done_s(self, position: int) -> float:
        """When the device has done what was queued up to a position."""
        return self._done_s[position]

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory."""
        copy = tensor.detach().clone()
        self._note_pinned(copy)
        return copy

    def _note_pinned(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self._pinned[storage.data_ptr()] = storage.data_ptr() + storage.nbytes()
            weakref.finalize(storage, self._pinned.pop, storage.data_ptr(), None)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a CPU tensor lies in pinned memory."""
        if isinstance(tensor, FakeTensor):
            return False
        address = tensor.untyped_storage().data_ptr()
        return any(first <= address < last for first, last in self._pinned.copy().items())

    def _note(self, under_way: dict[int, int], pinned: Tensor) -> None:
        """A copy of pinned memory is queued. Memory that is let go is kept by torch until the copy has ended."""
        storage = pinned.untyped_storage()
        under_way[storage.data_ptr()] = self.launched
        weakref.finalize(storage, under_way.pop, storage.data_ptr(), None)

    def host_reads(self, tensor: Tensor) -> None:
        """The host reads a CPU tensor: not before the copy into it is known to have ended."""
        if self._written.get(tensor.untyped_storage().data_ptr(), -1) >= 0:
            self.problem(f"pinned memory is read before the copy into it is known to have ended, at {place()}")

    def problem(self, text: str) -> None:
        """Note what CUDA would refuse, or what it would do wrong."""
        if text not in self.problems:
            self.problems.append(text)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((*args, *kwargs.values())))
        device = kwargs.get("device")
        room, _, name = func._schema.name.rpartition("::")
        is_collective = room == "c10d"
        if is_collective:
            self._collective(name, tensors)
        if not any(isinstance(one, FakeTensor) for one in tensors) and not (
            device is not None and torch.device(device).type == "cuda"
        ):
            return self._on_host(func, name, tensors, args, kwargs)
        if is_collective:
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        if name == "record_stream":
            return None
        if (read := self._read_by_host(name, args, kwargs)) is not None:
            return read
        source = self._source_on_host(name, args, kwargs)
        self._count_index(name, args)
        out = self._faked(func, args, kwargs, has_values=not all(isinstance(one, FakeTensor) for one in tensors))
        if not _is_view(func) and room != "prim":
            self.counts.kernels[name] += 1
            self._launch()
        self._remember_memory(out)
        self._remember_sent(func, args, out, source)
        return out

    def _on_host(self, func: Any, name: str, tensors: Sequence[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation without CUDA tensors is done for real."""
        if name == "is_pinned":
            return self.is_pinned(tensors[0])
        if name in ("_pin_memory", "pin_memory"):
            return self.pin(tensors[0])
        is_pinned = kwargs.pop("pin_memory", None)
        if self._written or self._being_read:
            for one in tensors if not _is_view(func) else ():
                self.host_reads(one)
            for one in _mutated(func, args, kwargs):
                if self._being_read.get(one.untyped_storage().data_ptr(), -1) >= 0:
                    self.problem(f"pinned memory is written before the copy from it has surely ended, at {place()}")
        out = func(*args, **kwargs)
        if is_pinned:
            self._note_pinned(out)
        return out

    def _collective(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.counts.collectives.append(f"{name} {sum(one.nbytes for one in tensors)}")
        self._launch()
        if name != "barrier" and any(not isinstance(one, FakeTensor) for one in tensors):
            self.problem(f"{name} of a CPU tensor, at {place()}")

    def _read_by_host(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """What the host gets, if the operation brings numbers to it; None: it does not."""
        if name == "_local_scalar_dense":
            self._launch()  # a copy, even where the device has nothing else to do
            self.wait("item")
            return self.value(args[0]).item()
        if name in ("allclose", "equal"):
            self._launch()
            self.wait(name)
            return True  # numbers that are not there are equal
        if name == "_to_copy" and _type_of(kwargs.get("device")) == "cpu":
            into_pinned = bool(kwargs.get("non_blocking"))  # torch then takes pinned memory for the result
            dtype = kwargs.get("dtype") or args[0].dtype
            host = self.value(args[0]).to(dtype, copy=True)
            if into_pinned:
                self._note_pinned(host)
            return self._copied_to_host(host, asynchronous=into_pinned)
        if name in ("copy_", "_copy_from") and isinstance(args[1], FakeTensor) and not isinstance(args[0], FakeTensor):
            asynchronous = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")) and self.is_pinned(args[0])
            args[0].copy_(self.value(args[1]))
            return self._copied_to_host(args[0], asynchronous=asynchronous)
        return None

    def _copied_to_host(self, host: Tensor, *, asynchronous: bool) -> Tensor:
        self._launch()
        if asynchronous:
            self._note(self._written, host)
        else:
            self.wait("copy to the host")
        return host

    def value(self, fake: Tensor) -> Tensor:
        """What the host would read of a CUDA tensor."""
        known = self._sent.get(fake.untyped_storage()._cdata)
        if known is not None and known.dtype == fake.dtype:
            return known.as_strided(fake.size(), fake.stride(), fake.storage_offset())
        return torch.zeros(fake.shape, dtype=fake.dtype)

    def _source_on_host(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """The CPU tensor that an operation copies to the device, which is counted; None: it copies none."""
        if name == "_to_copy" and not isinstance(args[0], FakeTensor):
            source, asynchronous = args[0], bool(kwargs.get("non_blocking"))
        elif name == "copy_" and not isinstance(args[1], FakeTensor):
            source, asynchronous = args[1], bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            return None
        pinned = self.is_pinned(source)
        self.counts.copies[f"{'pinned' if pinned else 'pageable'} at {place()}"] += source.nbytes
        self._launch()
        if asynchronous and pinned:
            self._note(self._being_read, source)
        elif source.dim() or not asynchronous:  # the driver stages a few bytes of pageable memory itself
            self.wait("copy of pageable memory to the device" if not pinned else "blocking copy to the device")
        return source

    def _count_index(self, name: str, args: Any) -> None:
        if name in SHAPES_FROM_VALUES:
            self.wait(name)
        for one in args[1] if name in _INDEXING else ():
            if isinstance(one, Tensor) and not isinstance(one, FakeTensor):
                self.wait("copy of an index to the device")
            elif isinstance(one, Tensor) and one.dtype == torch.bool:
                self.wait("mask as index")

    def _faked(self, func: Any, args: Any, kwargs: dict[str, Any], *, has_values: bool) -> Any:
        """The operation on shapes alone; refused where CUDA refuses it: on tensors of several devices, for one."""
        shapes = SHAPES.get(func._schema.name)
        try:
            with self.one_thread, self._fake:
                if has_values:
                    args, kwargs = tree_map(_without_values, (args, kwargs))
                if shapes is None:
                    return func(*args, **kwargs)
                devices = {str(one.device) for one in _tensors((*args, *kwargs.values()))}
                if len(devices) > 1:
                    raise RuntimeError(f"{sorted(devices)} in one operation")
                return shapes(*args, **kwargs)
        except Exception as error:
            self.problem(f"{func._schema.name} at {place()}: {type(error).__name__}: {str(error)[:300]}")
            raise

    def _remember_memory(self, out: Any) -> None:
        for one in _tensors((out,)):
            if isinstance(one, FakeTensor) and one.device.type == "cuda":
                storage = one.untyped_storage()
                key = storage._cdata
                if key not in self._alive:
                    size = -(-storage.nbytes() // _BLOCK) * _BLOCK
                    self._alive[key] = weakref.finalize(storage, self._freed, key, size)
                    self.live += size
                    self.counts.peak = max(self.counts.peak, self.live)

    def _freed(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self._sent.pop(key, None)
        self.live -= size

    def _remember_sent(self, func: Any, args: Any, out: Any, source: Tensor | None) -> None:
        """Small values that the host sent come back as they were: DDP sends the order of its buckets and reads it."""
        flags = self._flags(func, args, out) if isinstance(out, FakeTensor) and out.dtype == torch.bool else None
        for one in _mutated(func, args, {}):
            self._sent.pop(one.untyped_storage()._cdata, None)
        if flags is not None:
            self._sent[out.untyped_storage()._cdata] = flags
        if func._schema.name == "aten::full_like" and out.numel() <= 1 << 16:
            self._sent[out.untyped_storage()._cdata] = torch.full(out.shape, args[1], dtype=out.dtype)
        if source is not None and isinstance(out, FakeTensor) and source.numel() <= 1 << 16:
            storage = out.untyped_storage()
            if storage.nbytes() == out.nbytes and out.shape == source.shape and out.is_contiguous():
                self._sent[storage._cdata] = source.detach().to(out.dtype, copy=True)

    def _flags(self, func: Any, args: Any, out: FakeTensor) -> Tensor | None:
        """Numbers that are not there are finite; flags of what the host sent, and of other flags, follow from them."""
        tensors = list(_tensors(args))
        # torch.isfinite(x) is (x == x) * (abs(x) != inf)
        is_number = func._schema.name == "aten::eq" and args[0] is args[1]
        if is_number or (func._schema.name == "aten::ne" and isinstance(args[1], float) and args[1] == math.inf):
            return torch.ones(out.shape, dtype=torch.bool)
        if tensors and all(one.untyped_storage()._cdata in self._sent for one in tensors):
            known: Tensor = func(*tree_map(lambda one: self.value(one) if isinstance(one, Tensor) else one, args))
            return known
        return None


GPU = FakeGpu()


def place() -> str:
    """Who asked: "training/step_sums.py:send:131", behind "<" the caller where the first one serves many."""
    frame, names = sys._getframe(1), list[str]()
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in _TORCHS_OWN) or "/tests/device/test_" in file:
            names.append(f"{file.rpartition('/largebatch/')[2]}:{frame.f_code.co_name}:{frame.f_lineno}")
            if not names[-1].startswith("distributed/"):
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(names) or "torch"


def _without_values(one: Any) -> Any:
    if isinstance(one, Tensor) and not isinstance(one, FakeTensor):
        return torch.empty_strided(one.size(), one.stride(), dtype=one.dtype)
    return one


def _type_of(device: Any) -> str | None:
    return None if device is None else torch.device(device).type


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in the arguments of an operation, and in lists among them."""
    for one in values:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _tensors(one)


@functools.cache
def _is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


@functools.cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of the arguments that an operation writes to."""
    numbered = enumerate(func._schema.arguments)
    return tuple((at, one.name) for at, one in numbered if one.alias_info is not None and one.alias_info.is_write)


def _mutated(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return _tensors(args[at] if at < len(args) else kwargs.get(name) for at, name in _written(func))
