"""One rank's schedule, indexed for execution: what a task needs, and what its end makes ready."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from casync.primitives import Decode, Encode, Merge, Recv, Reduce, Send, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.plan import Partition


class Program:
    """Built once, never changed.

    needs: how many things each task waits for: other tasks, its frame, its gradient.
    behind: the tasks that wait for each task. gradient_tasks: those that read the gradient, by partition.
    recvs: (peer, message) -> the receive. reduces: the all-reduces, in order. awaited: both, in order.
    readers: how many other tasks read each encode's payload.
    gradients_needed: how many gradients each partition is made of. partitions_of: by gradient.
    """

    def __init__(self, tasks: Sequence[Task], partitions: Sequence[Partition]) -> None:
        self.tasks = tuple(tasks)
        self.needs = [len(task.after) + _awaits(task) for task in tasks]
        self.behind: list[list[int]] = [[] for _ in tasks]
        self.gradient_tasks: list[list[int]] = [[] for _ in partitions]
        self.recvs: dict[tuple[int, int], int] = {}
        readers: Counter[int] = Counter()
        for task in tasks:
            for other in task.after:
                self.behind[other].append(task.id)
            if isinstance(task, Recv):
                self.recvs[task.peer, task.message] = task.id
            elif isinstance(task, Send | Merge | Decode) and task.payload is not None:
                readers[task.payload] += 1
            if not isinstance(task, Recv) and _awaits(task):
                self.gradient_tasks[task.partition].append(task.id)
        self.readers = readers
        self.reduces = [task.id for task in tasks if isinstance(task, Reduce)]
        self.awaited = [task.id for task in tasks if isinstance(task, Recv | Reduce)]
        names = [{segment.gradient for segment in p.segments} for p in partitions]
        self.gradients_needed = [len(found) for found in names]
        self.partitions_of: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(names):
            for name in sorted(found):
                self.partitions_of[name].append(number)


def _awaits(task: Task) -> bool:
    """Whether something besides tasks must come first: a frame, or the gradient."""
    match task:
        case Recv() | Reduce() | Merge(payload=None) | Encode(of_sum=False):
            return True
        case _:
            return False
