"""Where a model's gradients lie: tensors as casync's arrays and back, without a copy."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from casync.gpu import Gpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """A device. memory: casync's view of it; None: host memory."""

    device: torch.device
    memory: Gpu | None = None

    def array(self, tensor: torch.Tensor) -> Vector:
        """The memory of a flat tensor; on a GPU a CuPy array, by DLPack."""
        return tensor.numpy() if self.memory is None else self.memory.view(tensor)

    def tensor(self, values: Vector) -> torch.Tensor:
        """The memory of an array of `array`'s kind."""
        if self.memory is None:
            return torch.from_numpy(values)
        made: torch.Tensor = torch.from_dlpack(values)  # type: ignore[attr-defined]
        return made

    def begins_at(self, values: Any) -> int:
        """Where an array of `array`'s kind begins, as a tensor's `data_ptr` says it."""
        return int(values.ctypes.data if self.memory is None else values.data.ptr)

    def in_order(self) -> contextlib.AbstractContextManager[object]:
        """What is handed over in here comes after all that torch's current stream has been given."""
        if self.memory is None:
            return contextlib.nullcontext()
        return self.memory.on_stream(torch.cuda.current_stream(self.device).cuda_stream)


CPU = Place(torch.device("cpu"))


def device_of(tensor: torch.Tensor) -> torch.device:
    """The device that a tensor lies on."""
    return tensor.device


def place_of(parameters: Mapping[str, torch.Tensor]) -> Place:
    """The place of all these parameters' gradients.

    Raises RuntimeError if they are on several devices, or on one that is neither a CPU nor a GPU of NVIDIA's;
    GpuError without what a GPU needs.
    """
    found: dict[torch.device, str] = {}
    for name, p in parameters.items():
        found.setdefault(device_of(p), name)
    if len(found) > 1:
        said = ", ".join(f"{name} on {device}" for device, name in found.items())
        raise RuntimeError(f"the parameters are on several devices, {said}: one optimizer's lie on one")
    (device,) = found
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        name = found[device]
        raise RuntimeError(f"{name} is on {device}: casync synchronizes gradients on CPUs and NVIDIA's GPUs")
    return Place(device, Gpu(torch.cuda.current_device() if device.index is None else device.index))
