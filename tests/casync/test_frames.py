from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casync import frames
from casync.frames import FrameError, Header

headers = st.builds(
    Header,
    step=st.integers(0, 2**64 - 1),
    task=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 7),
    crc=st.integers(0, 2**32 - 1),
    nbytes=st.integers(0, 2**64 - 1),
)


@given(headers)
def test_a_header_is_32_bytes_and_reads_back(header: Header) -> None:
    data = frames.pack(header)
    assert len(data) == frames.HEADER_BYTES == 32
    assert frames.unpack(data) == header
    assert frames.unpack(memoryview(data)) == header


def test_a_header_lies_as_the_contract_draws_it() -> None:
    data = frames.pack(Header(step=0x1122334455667788, task=7, flags=frames.ABSENT, crc=9, nbytes=513))
    assert data == (
        b"CSYN\x01\x00\x01\x00"
        b"\x88\x77\x66\x55\x44\x33\x22\x11"
        b"\x07\x00\x00\x00\x09\x00\x00\x00"
        b"\x01\x02\x00\x00\x00\x00\x00\x00"
    )


@pytest.mark.parametrize(
    ("at", "value", "named"),
    [(0, b"HTTP", "HTTP"), (4, struct.pack("<H", 2), "version 2"), (6, struct.pack("<H", 8), "0x8")],
)
def test_another_magic_version_or_flag_is_refused_by_name(at: int, value: bytes, named: str) -> None:
    data = bytearray(frames.pack(Header(1, 2, 0, 0, 0)))
    data[at : at + len(value)] = value
    with pytest.raises(FrameError, match=named):
        frames.unpack(bytes(data))


@given(st.binary(max_size=64).filter(lambda data: len(data) != 32))
def test_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match=str(len(data))):
        frames.unpack(data)


@given(st.binary(min_size=32, max_size=32))
def test_random_bytes_are_refused_or_read_back_the_same(data: bytes) -> None:
    try:
        header = frames.unpack(data)
    except FrameError:
        return
    assert frames.pack(header) == data


@pytest.mark.parametrize(
    "header",
    [Header(-1, 0, 0, 0, 0), Header(0, 2**32, 0, 0, 0), Header(0, 0, 8, 0, 0), Header(2**64, 0, 0, 0, 0)],
)
def test_a_field_out_of_range_cannot_be_packed(header: Header) -> None:
    with pytest.raises(FrameError):
        frames.pack(header)


def test_the_checksum_is_castagnoli() -> None:
    assert (
        frames.checksum(b"123456789") == 0xE3069283
    )  # RFC 3720, appendix B.4 polynomial; the usual check value


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_flipped_bit_or_lost_byte_is_noticed(body: bytes, data: st.DataObject) -> None:
    header = Header(0, 0, frames.CHECKSUM, frames.checksum(body), len(body))
    frames.verify(header, body)
    wrong = bytearray(body)
    wrong[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError, match="CRC32C"):
        frames.verify(header, bytes(wrong))
    with pytest.raises(FrameError, match="announces"):
        frames.verify(header, memoryview(body[:-1]))
