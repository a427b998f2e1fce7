"""Train a character-level transformer on Python's own help texts, data-parallel.

    horovodrun --gloo -np 2 -H localhost:2 python examples/train_charlm.py --algorithm onebit --topology ring
    torchrun --nproc-per-node 2 examples/train_charlm.py --algorithm int8
    torchrun --nproc-per-node 2 examples/train_charlm.py --algorithm topk --exact-steps 100 --ddp

Gradients travel by `casync.DistributedOptimizer`, or, with --ddp, by the hook of PyTorch's
DistributedDataParallel. The text is that of `pydoc_data.topics`, which comes with Python. At the end all
ranks compare a hash of their parameters: they must hold the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional as F  # noqa: N812  (as everybody calls it)

import casync.torch as casync

CONTEXT = 64  # characters that the model sees
WIDTH, HEADS, LAYERS = 96, 4, 2
GLOBAL_BATCH = 32
LEARNING_RATE = 3e-3
CLIP = 1.0


@dataclass(frozen=True)
class Corpus:
    """A text as int64 codes of its characters: the last tenth is for validation."""

    letters: str
    training: torch.Tensor
    validation: torch.Tensor


@dataclass(frozen=True)
class Results:
    """One run. `loss` has one entry a step, the mean over all ranks; bits are of a held-out character."""

    algorithm: str
    topology: str
    ranks: int
    steps: int
    parameters: int
    loss: list[float]
    bits_per_character: float
    bytes_sent: int
    ratio: float
    seconds: float
    parameter_hash: str


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.attention(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.feed(self.norm2(x))


class CharacterModel(nn.Module):
    """Predict each next character of a text."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the logits [batch, length, letters] of codes [batch, length]."""
        x = self.letter(codes) + self.place(torch.arange(codes.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def load_corpus() -> Corpus:
    """Return the help texts, one after the other."""
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = "".join(sorted(set(text)))
    code = {letter: number for number, letter in enumerate(letters)}
    codes = torch.tensor([code[letter] for letter in text])
    cut = len(codes) * 9 // 10
    return Corpus(letters, codes[:cut], codes[cut:])


def batch(codes: torch.Tensor, step: int, seed: int, rank: int, size: int) -> torch.Tensor:
    """Return this rank's rows [GLOBAL_BATCH / size, CONTEXT + 1] of a step's global batch."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    starts = torch.randint(len(codes) - CONTEXT, (GLOBAL_BATCH,), generator=generator)
    share = GLOBAL_BATCH // size
    return torch.stack([codes[i : i + CONTEXT + 1] for i in starts[rank * share : (rank + 1) * share]])


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss, in nats, of predicting each row's characters from those before."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def bits_per_character(model: nn.Module, codes: torch.Tensor) -> float:
    """Return the bits that a character of a held-out text costs."""
    rows = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    losses = [loss_of(model, part).item() * len(part) for part in rows.split(256)]
    return sum(losses) / len(rows) / math.log(2)


@torch.no_grad()
def write(model: nn.Module, letters: str, length: int) -> str:
    """Return a text that the model makes up."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.tensor([[letters.index("\n")]])
    for _ in range(length):
        odds = F.softmax(model(codes[:, -CONTEXT:])[0, -1] / 0.7, 0)
        codes = torch.cat([codes, torch.multinomial(odds, 1, generator=generator)[None]], 1)
    return "".join(letters[i] for i in codes[0])


def rate(step: int, steps: int) -> float:
    """Return the part of the learning rate that a step has: a short rise, then half a cosine."""
    rise = max(1, steps // 20)
    return min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Setup:
    """The model to call, the optimizer to step, and where casync counts."""

    model: nn.Module
    optimizer: Any
    counts: Any  # has stats()
    ddp: bool


def set_up(model: nn.Module, choice: dict[str, Any], ddp: bool) -> Setup:
    """Give the gradients of a model to casync."""
    casync.broadcast_parameters(model.state_dict())
    adam = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    if not ddp:
        optimizer = casync.DistributedOptimizer(adam, model.named_parameters(), **choice)
        return Setup(model, optimizer, optimizer, ddp)
    torch.distributed.init_process_group("gloo")
    wrapped = nn.parallel.DistributedDataParallel(model)
    state = casync.State(named_parameters=model.named_parameters(), **choice)
    wrapped.register_comm_hook(state, casync.hook)
    return Setup(wrapped, adam, state, ddp)


def train(setup: Setup, corpus: Corpus, steps: int, seed: int) -> list[float]:
    """Train; return this rank's loss, step by step."""
    losses = []
    for step in range(steps):
        for group in setup.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(step, steps)
        rows = batch(corpus.training, step, seed, casync.rank(), casync.size())
        setup.optimizer.zero_grad()
        loss = loss_of(setup.model, rows)
        loss.backward()
        if not setup.ddp:
            setup.optimizer.synchronize()  # clipping needs the result of all ranks
        nn.utils.clip_grad_norm_(setup.model.parameters(), CLIP)
        setup.optimizer.step()
        losses.append(loss.item())
        if casync.rank() == 0 and (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1}/{steps}  loss {losses[-1]:.3f}", flush=True)
    return losses


def hash_parameters(model: nn.Module) -> str:
    """Return a hash of every bit of the parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def main(
    algorithm: Annotated[
        str,
        typer.Option(help="A shipped algorithm (`compll algorithms` lists them), a .pse file, or none."),
    ] = "onebit",
    topology: Annotated[str, typer.Option(help="How casync's ranks talk: ps, ring, ...")] = "ps",
    plan: Annotated[Path | None, typer.Option(help="A plan that `secopa plan` wrote.", exists=True)] = None,
    exact_steps: Annotated[int, typer.Option(min=0, help="Compress from this step on.")] = 0,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    seed: Annotated[int, typer.Option(help="Of the first parameters, the batches and the codec.")] = 0,
    ddp: Annotated[bool, typer.Option("--ddp", help="By the hook of DDP: needs torchrun.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Print so many characters that the model writes.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the results there, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A folder for the ranks' Chrome traces.")] = None,
) -> None:
    """Train on Python's help texts; all ranks end with the same bits."""
    casync.init(seed=seed, trace=str(trace) if trace else None)
    if GLOBAL_BATCH % casync.size():
        raise typer.BadParameter(f"{casync.size()} ranks cannot share {GLOBAL_BATCH} rows; use 2, 4, 8, ...")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // casync.local_size()))
    torch.manual_seed(seed)
    corpus = load_corpus()
    model = CharacterModel(len(corpus.letters))
    codec = None if algorithm == "none" else casync.Schedule({exact_steps: algorithm})
    rules = [("letter.*", None), ("place.*", None)]  # a batch touches few rows of an embedding
    setup = set_up(model, {"codec": codec, "rules": rules, "topology": topology, "plan": plan}, ddp)
    began = time.perf_counter()
    losses = train(setup, corpus, steps, seed)
    seconds = time.perf_counter() - began

    mine = json.dumps([hash_parameters(model), losses]).encode()
    reports = [json.loads(value) for value in casync.session().control.gather("train_charlm", mine)]
    stats = setup.counts.stats()
    first, ranks = casync.rank() == 0, casync.size()
    casync.shutdown()
    if ddp:
        torch.distributed.destroy_process_group()
    strays = [rank for rank, (theirs, _) in enumerate(reports) if theirs != reports[0][0]]
    if strays:
        raise SystemExit(f"parameters of rank {strays} differ from rank 0's after {steps} steps")
    if not first:
        return
    results = Results(
        algorithm=algorithm,
        topology=topology,
        ranks=ranks,
        steps=steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=[sum(values) / ranks for values in zip(*(theirs for _, theirs in reports), strict=True)],
        bits_per_character=bits_per_character(model, corpus.validation),
        bytes_sent=stats.bytes_sent,
        ratio=stats.ratio,
        seconds=seconds,
        parameter_hash=reports[0][0],
    )
    print(
        f"{algorithm} ({topology}, {ranks} ranks): {results.bits_per_character:.3f} bits a character, "
        f"{stats.bytes_sent // steps:,} bytes sent a step and rank ({stats.ratio:.1f} times fewer than "
        f"float32), {seconds:.1f} s; parameters are bit-identical on all ranks "
        f"({results.parameter_hash[:12]})"
    )
    if sample:
        print(write(model, corpus.letters, sample))
    if output:
        output.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
