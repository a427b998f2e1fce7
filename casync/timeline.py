"""The traces of all ranks together: one file to look at, and where the time of a step goes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table

from casync.trace import BACKWARD, BEFORE, COMPUTE, LANES, RECEIVE, SEND, WAIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    Event: TypeAlias = dict[str, Any]

NETWORK = "network"


class TraceError(ValueError):
    """A folder without a trace that can be read; says what is wrong and how to mend it."""


@dataclass(frozen=True)
class RankTrace:
    """One rank's file. lanes: the names of its synchronizers, the same on all ranks that share one."""

    rank: int
    ranks: int
    cut: bool
    lanes: tuple[str, ...]
    events: tuple[Event, ...]

    def lane(self, event: Event) -> str:
        """The name of the synchronizer that an event is of."""
        number: int = event["tid"] // len(LANES)
        return self.lanes[number]


def read(folder: Path) -> list[RankTrace]:
    """The files of all ranks that have written one, by rank; TraceError if there is none, or a broken one."""
    traces = []
    for path in folder.glob("rank-*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            about = content["otherData"]
            events = tuple(content["traceEvents"])
            lanes = tuple(about["lanes"])
            traces.append(RankTrace(about["rank"], about["ranks"], about["cut off"], lanes, events))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TraceError(
                f"{path}: not a trace of casync ({error}); delete it and trace the run again"
            ) from None
    if not traces:
        raise TraceError(
            f"{folder}: no rank-*.json there; run the job with CASYNC_TRACE={folder} on every rank, or with "
            f'casync.init(trace="{folder}")'
        )
    return sorted(traces, key=lambda trace: trace.rank)


def merged(traces: Sequence[RankTrace]) -> dict[str, Any]:
    """One trace of all ranks; a message that both its ends have recorded is an interval at its receiver."""
    events = [event for trace in traces for event in trace.events]
    return {"traceEvents": [*events, *_flights(traces)], "displayTimeUnit": "ms"}


def _flights(traces: Iterable[RankTrace]) -> Iterator[Event]:
    sent: dict[tuple[str | int, ...], Event] = {}
    received: dict[tuple[str | int, ...], Event] = {}
    for trace in traces:
        for event in trace.events:
            if event.get("cat") in (SEND, RECEIVE):
                args, here = event["args"], trace.rank
                source, target = (here, args["peer"]) if event["cat"] == SEND else (args["peer"], here)
                key = (trace.lane(event), source, target, args["step"], args["message"])
                (sent if event["cat"] == SEND else received)[key] = event
    for number, message in enumerate(sorted(sent.keys() & received.keys())):
        left, came = sent[message], received[message]
        both = {
            "name": f"{left['args']['gradient']} from rank {left['pid']}",
            "cat": NETWORK,
            "id": number,
            "pid": came["pid"],
            "tid": came["tid"],
            "args": {"step": left["args"]["step"], "bytes": left["args"]["bytes"]},
        }
        yield both | {"ph": "b", "ts": left["ts"]}
        yield both | {"ph": "e", "ts": max(left["ts"], came["ts"])}


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one optimizer's steps, its `lane`, goes on one rank; milliseconds a step, on average.

    The training thread: before the first gradient, backward pass, wait; of the wait, how long the compute
    thread worked. The compute thread: encode (hops too), decode, merge; the rest it was idle.
    critical: the gradient that was decoded last, and in how many of the steps.
    """

    rank: int
    lane: str
    steps: int
    step: float
    before: float
    backward: float
    wait: float
    wait_computing: float
    encode: float
    merge: float
    decode: float
    critical: str
    critical_steps: int

    @property
    def name(self) -> str:
        """The rank, and the lane if it is not the job's first."""
        return f"{self.rank} ({self.lane})" if self.lane else str(self.rank)

    @property
    def idle(self) -> float:
        """How long the compute thread had nothing to do."""
        return self.step - self.encode - self.merge - self.decode


def breakdowns(trace: RankTrace) -> Iterator[Breakdown]:
    """One for each optimizer that has a whole step. The first step is left out if there are more."""
    lanes: dict[str, defaultdict[int, list[Event]]] = {lane: defaultdict(list) for lane in trace.lanes}
    for event in trace.events:
        if event["ph"] == "X":
            lanes[trace.lane(event)][event["args"]["step"]].append(event)
    for lane, steps in lanes.items():
        whole = [steps[number] for number in sorted(steps) if _is_whole(steps[number])]
        if whole:
            yield _breakdown(trace.rank, lane, whole[1:] or whole)


def _is_whole(events: Sequence[Event]) -> bool:
    kinds = Counter(event["cat"] for event in events)
    unfinished = any(event["args"].get("unfinished") for event in events)
    return not unfinished and kinds[BEFORE] == kinds[BACKWARD] == kinds[WAIT] == 1


def _breakdown(rank: int, lane: str, steps: Sequence[Sequence[Event]]) -> Breakdown:
    spent: Counter[str] = Counter()
    last: Counter[str] = Counter()
    for events in steps:
        (wait,) = (event for event in events if event["cat"] == WAIT)
        computed = [event for event in events if event["tid"] % len(LANES) == COMPUTE]
        for event in events:
            spent[event["cat"]] += event["dur"]
        for event in computed:
            since = max(event["ts"], wait["ts"])
            spent["in wait"] += max(0.0, min(_end(event), _end(wait)) - since)
        decodes = [event for event in computed if event["cat"] == "decode"]
        if decodes:
            last[max(decodes, key=_end)["args"]["gradient"]] += 1
    each = {kind: 1e-3 * us / len(steps) for kind, us in spent.items()}

    def ms(*kinds: str) -> float:
        return sum(each.get(kind, 0.0) for kind in kinds)

    critical, times = last.most_common(1)[0] if last else ("", 0)
    return Breakdown(
        rank,
        lane,
        len(steps),
        ms(BEFORE, BACKWARD, WAIT),
        ms(BEFORE),
        ms(BACKWARD),
        ms(WAIT),
        ms("in wait"),
        ms("encode", "hop"),
        ms("merge"),
        ms("decode"),
        critical,
        times,
    )


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def table(found: Sequence[Breakdown]) -> Table:
    """The breakdowns for people."""
    shown = Table(
        title="where the time of a step goes, in ms",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    names = (BEFORE.replace(" ", "\n"), BACKWARD, WAIT, "of it\nothers")
    for name in ("rank", "step", *names, "encode", "merge", "decode", "idle"):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in found:
        others = each.wait - each.wait_computing
        training = (each.step, each.before, each.backward, each.wait, others)
        computing = (each.encode, each.merge, each.decode, each.idle)
        shown.add_row(each.name, *(f"{value:.2f}" for value in (*training, *computing)))
    return shown


def critical(found: Sequence[Breakdown]) -> list[str]:
    """Lines that tell what the ranks waited for last."""
    return [
        f"rank {each.name}: {each.critical} was there last, in {each.critical_steps} of {each.steps} steps"
        for each in found
    ]
