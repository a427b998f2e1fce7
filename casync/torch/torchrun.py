"""Where torchrun's processes meet: at the key-value store that `torch.distributed` itself uses."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from casync import knobs
from casync.launch import Board, Launch, LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")

_sessions: defaultdict[tuple[int, int], Iterator[int]] = defaultdict(itertools.count)
"""How many sessions this process has had, by port and rank: a second one must not read the first's keys."""

_stores: list[Any] = []
"""The stores that this process hosts, which last as long as it does: other ranks may read them late."""


class _Keys:
    """casync's keys in a store of `torch.distributed`."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def put(self, key: str, value: str) -> None:
        try:
            self._store.set(self._prefix + key, value)
        except RuntimeError as error:
            raise OSError(str(error)) from None

    def get(self, key: str) -> str | None:
        try:
            there = self._store.check([self._prefix + key])
            return str(self._store.get(self._prefix + key).decode()) if there else None
        except RuntimeError as error:
            raise OSError(str(error)) from None


def find(environ: Mapping[str, str] | None = None) -> Launch | None:
    """This process's place among torchrun's; None where another launcher, or none, has started it.

    Raises LaunchError if the store does not answer, or the environment is not whole.
    """
    env = os.environ if environ is None else environ
    others = any(knob.is_set(env) for knob in (knobs.RANK, knobs.SIZE, knobs.ADDR))
    if others or env.get("HOROVOD_RANK") or not env.get("RANK") or not env.get("WORLD_SIZE"):
        return None
    wrong = [name for name in _NUMBERS if not env.get(name, "").isdecimal()]
    wrong += [] if env.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise LaunchError(
            f"{' and '.join(wrong)} not set to what torchrun sets, while RANK and WORLD_SIZE are there: "
            "start with `torchrun --nproc-per-node N script.py`, or unset RANK to run a single rank"
        )
    host, (rank, size, port) = env["MASTER_ADDR"], (int(env[name]) for name in _NUMBERS)
    if size == 1:
        return Launch()
    hosts = rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # as env:// of torch.distributed
    patience = timedelta(seconds=knobs.START_TIMEOUT.get(env))
    try:
        store = TCPStore(
            host, port, is_master=hosts, timeout=patience, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        raise LaunchError(
            f"the store of torchrun at {host}:{port} does not answer ({error}): is torchrun still running, "
            "and does this machine reach MASTER_ADDR?"
        ) from None
    if hosts:
        _stores.append(store)
    attempt, session = env.get("TORCHELASTIC_RESTART_COUNT", "0"), next(_sessions[port, rank])
    keys = _Keys(store, f"casync/{attempt}.{session}.")
    return Launch(
        rank,
        size,
        _number(env, "LOCAL_RANK"),
        _number(env, "LOCAL_WORLD_SIZE"),
        Board(host, port, keys),
        knobs.IFACE.get(env),
    )


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isdecimal() else None
