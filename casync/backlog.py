"""The tasks of a rank that are ready, in the order in which they are to run."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from casync.primitives import Decode

if TYPE_CHECKING:
    from casync.primitives import Task
    from casync.step import Step


class Backlog:
    """What other ranks wait for runs first come, first served; decodes, for which none waits, behind it.

    But nothing runs before what is ready of an earlier step.
    """

    def __init__(self) -> None:
        self._awaited: deque[tuple[Step, Task]] = deque()
        self._decodes: deque[tuple[Step, Task]] = deque()

    def __bool__(self) -> bool:
        """Whether a task is ready."""
        return bool(self._awaited or self._decodes)

    def add(self, step: Step, task: Task) -> None:
        """Add a task that is ready."""
        (self._decodes if isinstance(task, Decode) else self._awaited).append((step, task))

    def take(self) -> tuple[Step, Task]:
        """Take the task that is to run next; IndexError if there is none."""
        if self._awaited and self._decodes:
            later = self._awaited[0][0].number > self._decodes[0][0].number
            return (self._decodes if later else self._awaited).popleft()
        return (self._awaited or self._decodes).popleft()
