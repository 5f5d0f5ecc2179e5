"""Host memory that a checkpoint is copied into while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]

_BLOCK_BYTES = 2**28  # torch rounds pinned memory up to powers of two: blocks of this size waste little
_ALIGNMENT = 64


class Staging:
    """Keeps its memory from one copy to the next: only the first one pays for pages, and for pinning them.

    Memory is pinned where tensors lie on a GPU. Copies of them are queued on its stream and the host does not wait:
    kernels that are launched later, such as the next step's, run behind the copies and may change the originals.
    """

    def __init__(self) -> None:
        self._form: object = None
        self._copies: Groups = {}

    def copy(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Groups, Callable[[], None]]:
        """Copies of the tensors as they are now, which the next call overwrites, and a function that waits for them.

        The function may be called in another thread.
        """
        on_gpu = any(one.is_cuda for named in tensors.values() for one in named.values())
        form = (
            on_gpu,
            [(group, name, one.shape, one.dtype) for group in tensors for name, one in tensors[group].items()],
        )
        if form != self._form:
            self._form, self._copies = None, {}  # the old memory first: there may be no room for both
            self._copies = _places(tensors, pinned=on_gpu)
            self._form = form
        for group, named in tensors.items():
            for name, one in named.items():
                self._copies[group][name].copy_(one.detach(), non_blocking=one.is_cuda)
        copies = {group: dict(named) for group, named in self._copies.items()}
        return copies, torch.cuda.current_stream().record_event().synchronize if on_gpu else lambda: None


def _places(tensors: Mapping[str, Mapping[str, Tensor]], *, pinned: bool) -> Groups:
    """A contiguous tensor on the host for each of `tensors`, in few blocks of memory."""
    sizes = [one.nbytes for named in tensors.values() for one in named.values()]
    places = chain.from_iterable(_blocks(sizes, pinned))
    return {
        group: {name: _shaped(next(places), one) for name, one in named.items()} for group, named in tensors.items()
    }


def _shaped(place: Tensor, like: Tensor) -> Tensor:
    return place.view(like.dtype).view(like.shape) if like.numel() else torch.empty(like.shape, dtype=like.dtype)


def _blocks(sizes: list[int], pinned: bool) -> Iterator[list[Tensor]]:
    """Tensors of so many bytes, in lists of those that share a block."""
    rest = list(sizes)[::-1]
    while rest:
        starts, chosen, end = list[int](), list[int](), 0
        while rest and (not chosen or end + rest[-1] <= _BLOCK_BYTES):
            starts.append(end)
            chosen.append(rest.pop())
            end += -(-chosen[-1] // _ALIGNMENT) * _ALIGNMENT
        block = torch.empty(end, dtype=torch.uint8, pin_memory=pinned).numpy()
        # Through numpy each becomes a storage of its own: in one storage they would be saved as tied tensors.
        yield [torch.from_numpy(block[start : start + size]) for start, size in zip(starts, chosen, strict=True)]
