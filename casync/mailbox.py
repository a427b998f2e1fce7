"""A mailbox: other threads put items, the thread that owns it sleeps in poll until there are some."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with a file descriptor to poll. Putting costs a system call only when the owner sleeps.

    The owner's loop: `poll(timeout if box.sleep() else 0)`, then `box.awake()`, then `box.take()` until None.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._asleep = False
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the sleeping owner gets mail."""
        return self._read.fileno()

    def put(self, item: T) -> None:
        """Add an item and wake the owner. Thread-safe; never blocks; without effect after `close`."""
        self._items.append(item)
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(OSError):  # full: the owner wakes anyway; closed: nobody is left to wake
                self._write.send(b"\0")

    def sleep(self) -> bool:
        """Return whether the owner may sleep: no mail now, and later mail wakes it."""
        self._asleep = True  # before the look, so that no item comes unseen between the two
        return not self._items

    def awake(self) -> None:
        """Say that the owner is awake: mail needs no system call until the next `sleep`."""
        self._asleep = False
        with contextlib.suppress(OSError):
            self._read.recv(4096)

    def take(self) -> T | None:
        """Return the oldest item, None when there is none."""
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Close both ends; the owner calls it when its loop has ended."""
        self._read.close()
        self._write.close()
