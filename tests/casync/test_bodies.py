"""Bodies hold the payloads of a bucket as the frame's contract says, and refuse what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casync.bodies import BodyFormat
from compll.codec import PayloadError


def packed(form: BodyFormat, payloads: list[bytes | None]) -> bytes:
    buffer = np.full(form.capacity, 0xEE, np.uint8)
    views = []
    for slot, payload in zip(form.slots(buffer), payloads, strict=True):
        if payload is None:
            views.append(None)
        else:
            slot[: len(payload)] = np.frombuffer(payload, np.uint8)
            views.append(slot[: len(payload)])
    return form.pack(buffer, views).tobytes()


def split(form: BodyFormat, body: bytes, absent: bool) -> list[bytes | None]:
    return [None if v is None else v.tobytes() for v in form.split(np.frombuffer(body, np.uint8), absent)]


def test_one_segment_is_its_payload_alone() -> None:
    assert packed(BodyFormat((20,), exact=False), [b"abc"]) == b"abc"
    assert packed(BodyFormat((20,), exact=True), [None]) == b""


def test_exact_payloads_need_no_table() -> None:
    assert packed(BodyFormat((3, 2), exact=True), [b"abc", b"de"]) == b"abc" + bytes(13) + b"de"


def test_payloads_of_any_length_follow_a_table_at_multiples_of_16() -> None:
    body = packed(BodyFormat((40, 30), exact=False), [b"abc", b"de"])
    assert body == b"\3\0\0\0\2\0\0\0" + bytes(8) + b"abc" + bytes(13) + b"de"


def test_an_absent_segment_brings_the_table() -> None:
    form = BodyFormat((3, 2, 1), exact=True)
    body = packed(form, [b"abc", None, b"f"])
    assert body == b"\3\0\0\0\0\0\0\0\1\0\0\0" + bytes(4) + b"abc" + bytes(13) + b"f"
    assert split(form, body, absent=True) == [b"abc", None, b"f"]


@given(
    st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=50)), min_size=1, max_size=6), st.booleans()
)
def test_what_was_packed_comes_out(payloads: list[bytes | None], slack: bool) -> None:
    sizes = tuple(len(p or b"12345") + 20 * slack for p in payloads)
    form = BodyFormat(sizes, exact=not slack)
    assert split(form, packed(form, payloads), absent=None in payloads) == payloads


@given(st.binary(max_size=100), st.booleans(), st.booleans())
def test_any_bytes_are_split_or_refused(body: bytes, exact: bool, absent: bool) -> None:
    try:
        parts = split(BodyFormat((20, 7, 16), exact), body, absent)
    except PayloadError:
        return
    assert len(parts) == 3


@pytest.mark.parametrize("cut", [1, 15, 17, 20])
def test_a_truncated_body_is_refused(cut: int) -> None:
    form = BodyFormat((5, 5), exact=False)
    body = packed(form, [b"abcde", b"fghij"])
    with pytest.raises(PayloadError):
        split(form, body[:-cut], absent=False)
