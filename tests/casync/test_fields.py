"""The values of summable payloads are found, added in float32 and rounded once, whatever their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import compll
from casync.fields import PayloadFields, narrow
from casync.memory import Host
from compll.codec import Item, PayloadError

if TYPE_CHECKING:
    from pathlib import Path

SPLIT = """
void SplitEncode(float* gradient, uint8* compressed) {
    half* coarse = gradient;
    float* rest = gradient - coarse;
    bfloat16* twice = gradient * 2;
    compressed = concat(coarse, rest, twice);
}
void SplitDecode(uint8* compressed, float* gradient) {
    half* coarse; float* rest; bfloat16* twice;
    extract(compressed, coarse, rest, twice);
    gradient = coarse * 0.5 + rest * 0.5 + twice * 0.25;
}
"""


def run(codec: Any, op: Any, items: Any) -> Any:
    return Host().run(codec, op, items, 1)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("codec") / "split.pse"
    path.write_text(SPLIT)
    return compll.compile(path, backend="interp")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("fp16", (("half", 0, 1000),)),
        ("bf16", (("bfloat16", 0, 1000),)),
        ("randomk", (("float", 0, 10),)),
        ("topk", (("uint32", 0, 10), ("float", 48, 10))),
        ("onebit", (("float", 0, None), ("float", 4, None), ("uint<1>", 16, 1000))),
        ("threshold", (("uint32", 16, 1000), ("float", 4016, 1000))),
    ],
)
def test_a_codec_tells_where_its_fields_lie(
    name: str, fields: tuple[tuple[str, int, int | None], ...]
) -> None:
    assert compll.compile(name, backend="interp").fields(1000) == fields


def test_the_sum_of_payloads_is_a_payload_of_the_sum(split: Any) -> None:
    n, ranks = 37, 3
    assert split.info.summable
    assert narrow(split)
    fields = PayloadFields(split, n)
    assert fields.elements == 3 * n
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal(n).astype(np.float32) for _ in range(ranks)]
    total = np.full(fields.elements, np.nan, np.float32)
    for rank, gradient in enumerate(gradients):
        fields.add(split.encode(gradient), total, rank == 0, run)
    coarse = [g.astype(np.float16).astype(np.float32) for g in gradients]
    assert np.array_equal(total[:n], (coarse[0] + coarse[1]) + coarse[2])
    out = np.full(split.max_bytes(n), 255, np.uint8)
    result = fields.write(Item(grad=total, out=out), run)
    assert result.finite
    assert not out[2 * n : 80].any()  # between the fields of halves and of floats
    assert np.array_equal(out[: 2 * n].view(np.float16), total[:n].astype(np.float16))
    assert np.allclose(split.decode(result.value, n), sum(gradients), rtol=0.01, atol=0.01)
    total[5] = np.inf
    assert not fields.write(Item(grad=total, out=out), run).finite


def test_a_payload_of_another_length_is_refused(split: Any) -> None:
    fields = PayloadFields(split, 37)
    with pytest.raises(PayloadError, match="a payload of split for 37 elements has 314 bytes, this one 313"):
        fields.add(np.zeros(313, np.uint8), np.zeros(111, np.float32), True, run)
