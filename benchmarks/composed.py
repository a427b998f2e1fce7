"""Compressors as users compose them from NumPy and PyTorch, and how much longer they take than the kernels.

`benchmarks/kernels.py` runs this in processes with different settings of the allocator; it prints JSON:
    python benchmarks/composed.py --elements 1048576 --threads 1 --seconds 0.3
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from selection import selection

from compll.tools import bench, timing

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK, RATIO, CUT = 256, 0.01, 2.5758293  # |g| > CUT for one of a hundred normal elements
CODECS = ("terngrad", "onebit", "int8", "topk", "threshold 1 %")


@dataclass(frozen=True)
class Row:
    """Median seconds of a composition, and how many times longer than the kernel it took, by rounds."""

    codec: str
    operation: str
    n: int
    threads: int
    library: str
    seconds: float
    slower: float


class NumPy:
    """Encode and decode of each codec, on arrays."""

    name = "NumPy"

    def __init__(self, grad: Any) -> None:
        self.grad, self.n = self.array(grad), len(grad)
        self.residual = 0 * self.grad
        self.total = 0 * self.grad
        self.rng = np.random.default_rng(0)

    def array(self, grad: Any) -> Any:
        return grad.copy()

    def terngrad_encode(self, x: Any) -> Any:
        low, high = x.min(), x.max()
        gap = (high - low) / np.float32(3)
        noise = self.rng.random(x.size, dtype=np.float32)
        q = np.minimum((x - low) / gap + noise, 3).astype(np.uint8).reshape(-1, 4)
        return low, gap, q[:, 0] | q[:, 1] << 2 | q[:, 2] << 4 | q[:, 3] << 6

    def terngrad_decode(self, made: Any) -> Any:
        low, gap, packed = made
        q = np.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], axis=1).reshape(-1)
        return q * gap + low

    def onebit_encode(self, x: Any) -> Any:
        x = x + self.residual
        positive = x >= 0
        up, down = x[positive].mean(), x[~positive].mean()
        self.residual = x - np.where(positive, up, down)
        return up, down, np.packbits(positive, bitorder="little")

    def onebit_decode(self, made: Any) -> Any:
        up, down, packed = made
        return np.where(np.unpackbits(packed, bitorder="little"), up, down)

    def int8_encode(self, x: Any) -> Any:
        blocks = x.reshape(-1, BLOCK)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        return scale, np.round(blocks / scale).astype(np.int8)

    def int8_decode(self, made: Any) -> Any:
        scale, q = made
        return (q * scale).reshape(-1)

    def topk_encode(self, x: Any) -> Any:
        k = int(np.ceil(RATIO * self.n))
        index = np.argpartition(np.abs(x), self.n - k)[self.n - k :]
        return index.astype(np.uint32), x[index]

    def threshold_encode(self, x: Any) -> Any:
        index = np.flatnonzero(np.abs(x) > CUT)
        return index.astype(np.uint32), x[index]

    def topk_decode(self, made: Any) -> Any:
        index, value = made
        out = np.zeros(self.n, np.float32)
        out[index] = value
        return out

    threshold_decode = topk_decode


class PyTorch(NumPy):
    """The same on tensors."""

    name = "PyTorch"
    bits = torch.arange(8, dtype=torch.uint8)

    def array(self, grad: Any) -> Any:
        return torch.from_numpy(grad).clone()

    def terngrad_encode(self, x: Any) -> Any:
        low, high = x.aminmax()
        gap = (high - low) / 3
        q = ((x - low) / gap + torch.rand_like(x)).clamp(max=3).to(torch.uint8).view(-1, 4)
        return low, gap, q[:, 0] | q[:, 1] << 2 | q[:, 2] << 4 | q[:, 3] << 6

    def terngrad_decode(self, made: Any) -> Any:
        low, gap, packed = made
        q = torch.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], dim=1).view(-1)
        return q * gap + low

    def onebit_encode(self, x: Any) -> Any:
        x = x + self.residual
        positive = x >= 0
        up, down = x[positive].mean(), x[~positive].mean()
        self.residual = x - torch.where(positive, up, down)
        packed = (positive.view(-1, 8).to(torch.uint8) << self.bits).sum(dim=1, dtype=torch.uint8)
        return up, down, packed

    def onebit_decode(self, made: Any) -> Any:
        up, down, packed = made
        return torch.where((packed[:, None] >> self.bits & 1).bool().view(-1), up, down)

    def int8_encode(self, x: Any) -> Any:
        blocks = x.view(-1, BLOCK)
        scale = blocks.abs().amax(dim=1, keepdim=True) / 127
        return scale, (blocks / scale).round().to(torch.int8)

    def int8_decode(self, made: Any) -> Any:
        scale, q = made
        return (q * scale).view(-1)

    def topk_encode(self, x: Any) -> Any:
        index = x.abs().topk(int(np.ceil(RATIO * self.n)), sorted=False).indices
        return index, x[index]

    def threshold_encode(self, x: Any) -> Any:
        index = (x.abs() > CUT).nonzero().squeeze(1)
        return index, x[index]

    def topk_decode(self, made: Any) -> Any:
        index, value = made
        out = torch.zeros(self.n)
        out[index] = value
        return out

    threshold_decode = topk_decode


def calls(library: NumPy, codec: str) -> dict[str, Callable[[], object]]:
    """Return a call of each operation, made of encode and decode as users make it."""
    name = codec.partition(" ")[0]
    encode, decode = getattr(library, f"{name}_encode"), getattr(library, f"{name}_decode")
    made = encode(library.grad)

    def decode_add() -> None:
        library.total += 0.5 * decode(made)

    def feedback() -> None:
        x = library.grad + library.residual
        library.residual = x - decode(encode(x))

    return {
        "encode": lambda: encode(library.grad),
        "decode": lambda: decode(made),
        "decode_add": decode_add,
        "hop": lambda: encode(0.5 * (library.grad + decode(made))),
        "feedback": feedback,
    }


def kernels(codec: str, n: int, threads: int) -> dict[str, Callable[[], object]]:
    """Return the kernels' calls, "feedback" among them where the codec has none of its own."""
    source = codec if " " not in codec else selection(codec)
    made = bench.make(source, "cpp")
    found = bench.calls(made.codec, n, threads, made.operations)[0]
    if not made.codec.info.feedback:
        added = bench.make(source, "cpp", error_feedback=True)
        found["feedback"] = bench.calls(added.codec, n, threads, ["encode"])[0]["encode"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=int, default=2**20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each operation")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, grad = given.elements, bench.gradient(given.elements)
    rows = []
    for codec in CODECS:
        libraries = [PyTorch(grad), *([NumPy(grad)] if given.threads == 1 else [])]
        composed = {library.name: calls(library, codec) for library in libraries}
        for operation, kernel in kernels(codec, n, given.threads).items():
            functions = {name: made[operation] for name, made in composed.items()}
            taken = timing.rounds({"kernel": kernel, **functions}, given.seconds, least=3)
            for name in functions:
                slower = taken.ratio(name, "kernel")
                rows.append(Row(codec, operation, n, given.threads, name, taken.median(name), slower))
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
