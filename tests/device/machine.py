"""Makes this process believe that it is a rank of a job on machines with 8 GPUs each."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import types
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.device.fake_cuda import GPU

GPUS_PER_NODE = 8
_OPTIMIZERS: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class Event:
    """An event remembers how much had been queued when it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.position: int | None = None

    def record(self, stream: Any = None) -> None:
        """In the one stream that there is."""
        self.position = GPU.launched

    def synchronize(self) -> None:
        """An event that was never recorded is complete."""
        if self.position is not None:
            GPU.wait("event.synchronize", self.position)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds; CUDA refuses events that are not complete."""
        assert self.position is not None
        assert other.position is not None
        if max(self.position, other.position) > GPU.reached:
            raise RuntimeError("CUDA error: device not ready: an event is not known to be complete")
        return 1000 * (GPU.done_s(other.position) - GPU.done_s(self.position))

    def query(self) -> bool:
        """Asks without waiting."""
        if self.position is not None and GPU.done_s(self.position) <= GPU.host_s:
            GPU.reached = max(GPU.reached, self.position)
        return self.position is None or self.position <= GPU.reached

    def wait(self, stream: Any = None) -> None:
        """A stream waits, the host does not."""


class Stream:
    """A stream; what is queued on several of them has one order here."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """The device waits, the host does not."""

    wait_event = wait_stream

    def record_event(self, event: Event | None = None) -> Event:
        """A new event, recorded."""
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        """The host waits for everything."""
        GPU.wait("stream.synchronize")

    def query(self) -> bool:
        """Asks without waiting."""
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _OnDevice:
    """`torch.cuda.device`: a rank uses one."""

    def __init__(self, *_: Any) -> None:
        pass

    __enter__ = __exit__ = lambda *_: None


_PROPERTIES = types.SimpleNamespace(
    name="fake H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, uuid="0",
    pci_domain_id=0, pci_bus_id=0, pci_device_id=0,
)  # fmt: skip


def _own_gpu() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def install() -> None:
    """Replace what torch asks a driver for. Of the whole process, and for good."""
    generators = tuple(torch.Generator() for _ in range(GPUS_PER_NODE))
    answers: dict[str, Any] = {
        "default_generators": generators,
        "is_available": lambda: True, "is_initialized": lambda: True, "init": _nothing, "_lazy_init": _nothing,
        "device_count": lambda: GPUS_PER_NODE, "current_device": _own_gpu, "set_device": _nothing,
        "device": _OnDevice, "get_device_properties": lambda *_: _PROPERTIES,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "fake H100", "is_bf16_supported": lambda *_, **__: True,
        "_is_in_bad_fork": lambda: False, "is_current_stream_capturing": lambda: False, "empty_cache": _nothing,
        "Event": Event, "Stream": Stream, "current_stream": Stream, "default_stream": Stream,
        "stream": lambda stream: stream or contextlib.nullcontext(), "synchronize": _synchronize,
        "max_memory_allocated": lambda *_: GPU.counts.peak, "memory_allocated": lambda *_: GPU.live,
        "max_memory_reserved": lambda *_: GPU.counts.peak, "memory_reserved": lambda *_: GPU.live,
        "mem_get_info": lambda *_: ((80 << 30) - GPU.live, 80 << 30), "reset_peak_memory_stats": _nothing,
        "get_rng_state_all": lambda: [one.get_state() for one in generators], "set_rng_state_all": _nothing,
        "get_rng_state": lambda *_: generators[0].get_state(), "set_rng_state": _nothing,
        "manual_seed": _nothing, "manual_seed_all": _nothing,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.accelerator.is_available = lambda: True
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # torch.tensor(..., device="cuda") is then a copy that the mode sees
    torch.autograd.set_multithreading_enabled(False)
    threading.Thread.start = _start_in_mode  # type: ignore[method-assign]
    FakeTensor.device = property(_device_at_rest)  # type: ignore[assignment,method-assign]
    _replace_methods_of_tensors()
    torch.nn.Module.to = _module_to  # type: ignore[assignment,method-assign]
    torch.optim.Optimizer.__init__ = _remembered(torch.optim.Optimizer.__init__)  # type: ignore[method-assign]
    ddp: Any = torch.nn.parallel.distributed
    ddp._verify_param_shape_across_processes = _nothing
    ddp._sync_module_states = _nothing
    dist.all_reduce = _with_future(dist.all_reduce)
    dist.broadcast_object_list = _broadcast_objects
    dist.init_process_group = _fake_group
    _all_ranks_have_mine()


def _all_ranks_have_mine() -> None:
    """Collectives change nothing here. What is gathered is what all other ranks would send if they had my values."""
    from largebatch.diagnostics.gap.gap import EvalSums
    from largebatch.distributed import gather
    from largebatch.distributed.runtime import Runtime

    room: Any = gather
    ints, floats, texts, plain_sum = gather.gather_ints, gather.gather_floats, gather.gather_texts, Runtime.sum

    def gather_ints(runtime: Any, values: torch.Tensor) -> torch.Tensor:
        table = ints(runtime, values)
        own = GPU.value(values) if isinstance(values, FakeTensor) else values
        return GPU.on_device(own.repeat(runtime.world_size, 1)) if isinstance(table, FakeTensor) else table

    def gather_floats(runtime: Any, values: Any) -> list[list[float]]:
        floats(runtime, values)
        return [[float(one) for one in values] for _ in range(runtime.world_size)]

    def gather_texts(runtime: Any, text: str) -> list[str]:
        texts(runtime, text)
        return [text] * runtime.world_size

    def summed(runtime: Any, values: Any) -> list[float]:
        plain_sum(runtime, values)
        # Sums over samples are floats and not 0, for a data set has samples; counts of requests may be 0.
        return [float(one) * runtime.world_size or float(isinstance(one, float)) for one in values]

    room.gather_ints, room.gather_floats, room.gather_texts = gather_ints, gather_floats, gather_texts
    Runtime.sum = summed  # type: ignore[method-assign]
    EvalSums._some = lambda _, total: total or 1.0  # type: ignore[method-assign]  # of labels that nobody can count


def launched_as(rank: int, world_size: int) -> None:
    """The environment of a launcher. Nobody is there to meet, so no rank waits for the others."""
    from largebatch.distributed import process_group
    from largebatch.distributed.heartbeat import Heartbeat

    Heartbeat.start = _nothing  # type: ignore[method-assign]
    process_group.rendezvous = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment]
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank % GPUS_PER_NODE),
            "LOCAL_WORLD_SIZE": str(min(world_size, GPUS_PER_NODE)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
        }  # fmt: skip


_init_process_group = dist.init_process_group


def _fake_group(*_: Any, **__: Any) -> None:
    """A group in which every collective ends at once and leaves the tensors as they are."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())


def _broadcast_objects(objects: list[Any], src: int = 0, *_: Any, **__: Any) -> None:
    """Other ranks hear what rank 0 has said. Under NCCL it is pickled to the device and back: two waits."""
    GPU.counts.collectives.append("broadcast of objects 0")
    for _ in range(2):
        GPU.wait("broadcast of objects")
    if dist.get_rank() == src:
        GPU.said.append(copy.deepcopy(objects))
    else:
        objects[:] = GPU.said.pop(0)


def _synchronize(*_: Any) -> None:
    GPU.wait("cuda.synchronize")


def _start_in_mode(thread: threading.Thread) -> None:
    """Modes of torch are those of a thread: a new one takes that of the thread that starts it."""
    if GPU in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        run: Any = thread.run

        def in_mode() -> None:
            torch.autograd.set_multithreading_enabled(False)
            with GPU:
                run()

        thread.run = in_mode  # type: ignore[method-assign]
    _plain_start(thread)


_plain_start = threading.Thread.start
_plain_device: Any = FakeTensor.device


def _device_at_rest(tensor: FakeTensor) -> torch.device:
    """Not while another thread is in an operation: all fake tensors are on the device `meta` then."""
    with GPU.one_thread:
        device: torch.device = _plain_device.fget(tensor)
    return device


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _replace_methods_of_tensors() -> None:
    tolist, numpy = torch.Tensor.tolist, torch.Tensor.numpy

    def read_tolist(tensor: torch.Tensor) -> Any:
        if isinstance(tensor, FakeTensor):
            return tensor.cpu().tolist()  # its own asks for one element after the other; CUDA copies all at once
        GPU.host_reads(tensor)
        return tolist(tensor)

    def read_numpy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        GPU.host_reads(tensor)
        return numpy(tensor, *args, **kwargs)

    methods: Any = torch.Tensor
    methods.tolist, methods.numpy = read_tolist, read_numpy
    methods.pin_memory = lambda tensor, device=None: GPU.pin(tensor)
    methods.is_pinned = lambda tensor, device=None: GPU.is_pinned(tensor)
    methods.record_stream = _nothing
    fake: Any = FakeTensor
    fake.tolist = read_tolist


def _remembered(init: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        _OPTIMIZERS.add(self)
        init(self, *args, **kwargs)

    return __init__


_plain_to = nn.Module.to


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A fake tensor cannot be put into a real parameter, as `to` puts CUDA tensors: new parameters take their place."""
    device = kwargs.get("device", args[0] if args else None)
    if device is None or isinstance(device, (torch.dtype, torch.Tensor)) or torch.device(device).type != "cuda":
        return _plain_to(module, *args, **kwargs)
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, one in part._parameters.items():
            if one is not None:
                if id(one) not in moved:
                    moved[id(one)] = nn.Parameter(one.detach().to(device), requires_grad=one.requires_grad)
                part._parameters[name] = moved[id(one)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    for optimizer in _OPTIMIZERS:
        for group in optimizer.param_groups:
            group["params"] = [moved.get(id(one), one) for one in group["params"]]
    return module


class _Done:
    """A work of a process group whose future has the tensors, as that of NCCL has."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> Any:
        future: Any = torch.futures.Future()
        future.set_result([self._tensor])
        return future


def _with_future(all_reduce: Any) -> Any:
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        work = all_reduce(tensor, *args, **kwargs)
        return None if work is None else _Done(tensor)

    return call
