"""Frames: the 32-byte header that goes before each body, and the checksum.

Layout, little-endian:

    bytes  0..3   magic "CSYN"
    bytes  4..5   uint16 version
    bytes  6..7   uint16 flags: 1 absent, 2 not finite, 4 checksum
    bytes  8..15  uint64 step
    bytes 16..19  uint32 task
    bytes 20..23  uint32 CRC32C of the body, or 0 without the checksum flag
    bytes 24..31  uint64 bytes of the body

Header and body are what casync counts as bytes sent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import crc32c

MAGIC = b"CSYN"
VERSION = 1
HEADER_BYTES = 32

ABSENT = 1
NOT_FINITE = 2
CHECKSUM = 4
_KNOWN_FLAGS = ABSENT | NOT_FINITE | CHECKSUM

_LAYOUT = struct.Struct("<4sHHQIIQ")


class FrameError(ValueError):
    """A header or body that is not what a rank of this version sends: the message says what was found."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says about its body. Ranges: step and nbytes uint64, task and crc uint32, flags 0..7."""

    step: int
    task: int
    flags: int
    crc: int
    nbytes: int


def pack(header: Header) -> bytes:
    """Return the 32 bytes of `header`; raise FrameError when a field is out of its range."""
    if header.flags & ~_KNOWN_FLAGS:
        raise FrameError(f"flags {header.flags:#x} are not among {_KNOWN_FLAGS:#x}")
    try:
        return _LAYOUT.pack(MAGIC, VERSION, header.flags, header.step, header.task, header.crc, header.nbytes)
    except struct.error as error:
        raise FrameError(f"{header} does not fit its fields: {error}") from None


def unpack(data: bytes | memoryview) -> Header:
    """Return the header in `data`; raise FrameError on another length, magic, version or flag."""
    if len(data) != HEADER_BYTES:
        raise FrameError(f"a header has {HEADER_BYTES} bytes, this one {len(data)}")
    magic, version, flags, step, task, crc, nbytes = _LAYOUT.unpack(data)
    if magic != MAGIC:
        raise FrameError(f"a frame begins with {MAGIC!r}, this one with {magic!r}")
    if version != VERSION:
        raise FrameError(
            f"frame version {version}, but this rank speaks version {VERSION}: "
            "install the same release on all ranks"
        )
    if flags & ~_KNOWN_FLAGS:
        raise FrameError(f"flags {flags:#x} are not among {_KNOWN_FLAGS:#x}")
    return Header(step, task, flags, crc, nbytes)


def checksum(body: bytes | memoryview) -> int:
    """Return the CRC32C (Castagnoli, RFC 3720) of `body` as a uint32."""
    return crc32c.crc32c(body)


def verify(header: Header, body: bytes | memoryview) -> None:
    """Raise FrameError when `body` is not the one that `header` announces (length; CRC32C if flagged)."""
    nbytes = body.nbytes if isinstance(body, memoryview) else len(body)
    if nbytes != header.nbytes:
        raise FrameError(f"the header announces {header.nbytes} bytes, the body has {nbytes}")
    if header.flags & CHECKSUM and (found := checksum(body)) != header.crc:
        raise FrameError(f"the header announces CRC32C {header.crc:#010x}, the body has {found:#010x}")
