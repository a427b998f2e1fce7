"""A picture of each shipped algorithm: what arrives of a gradient in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compll.codec import Codec, algorithms
from compll.codec import compile as compile_codec
from compll.errors import ParameterError

ELEMENTS = 4096
STRETCH = slice(1152, 1200)  # the elements of the left half

# Of 4,096 elements the defaults would send too few to see, or none; thresholds suit the gradient's size, 0.1.
SHOWN: dict[str, dict[str, Any]] = {
    "dgc": {"ratio": 0.05},
    "graddrop": {"drop": 0.95},
    "randomk": {"ratio": 0.05},
    "sidco": {"ratio": 0.05},
    "tbq": {"threshold": 0.1},
    "threshold": {"threshold": 0.2},
    "topk": {"ratio": 0.05},
}
ORIGINAL, DECODED = "#9a9a9a", "#d9541a"


def draw(folder: Path) -> list[Path]:
    """Draw every shipped algorithm into `folder`, as PNG, and return the files.

    Raises:
        ParameterError: Matplotlib is not there.

    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ParameterError("pictures need Matplotlib: pip install 'compll[demo]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in algorithms():
        codec = compile_codec(name, "interp", **SHOWN.get(name, {}))
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        _fill(figure, codec)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=80, metadata={"Software": None})
    return paths


def gradient() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a gradient with the heavy tails that those of networks have, and a size of 0.1."""
    return np.random.default_rng(5).laplace(0, 0.1, ELEMENTS).astype(np.float32)


def _fill(figure: Any, codec: Codec) -> None:
    g = gradient()
    payload = codec.encode(g, seed=1, state=codec.new_state(ELEMENTS) or None)
    out = codec.decode(payload, ELEMENTS, shared_seed=1)
    given = ", ".join(f"{k}={p.value:g}" for k, p in codec.info.params.items())
    size = f"{8 * len(payload) / ELEMENTS:.3g} bits an element"
    figure.suptitle("   ".join(filter(None, (codec.info.name, given, size))), x=0.01, ha="left", size=10)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    at = np.arange(ELEMENTS)[STRETCH]
    left.vlines(at, 0, g[STRETCH], color=ORIGINAL, linewidth=4, label="original")
    left.plot(at, out[STRETCH], "o", color=DECODED, markersize=4, label="decoded")
    left.axhline(0, color="black", linewidth=0.5)
    left.set_xlabel("element")
    figure.legend(loc="upper right", ncols=2, frameon=False, fontsize=8)
    edge = 1.05 * float(np.abs(g).max())
    right.plot([-edge, edge], [-edge, edge], color=ORIGINAL, linewidth=1)
    right.plot(g, out, ".", color=DECODED, markersize=2)
    right.set_xlabel("original")
    right.set_ylabel("decoded")
