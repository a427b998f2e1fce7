"""Train a small convolutional network on scikit-learn's handwritten digits, data-parallel.

    horovodrun --gloo -np 2 -H localhost:2 \\
        python examples/train_digits.py --algorithm terngrad --topology ring

Every rank takes its share of the same global batch, so that runs differ only in how gradients travel. At the
end all ranks compare a hash of their parameters: they must hold the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOBAL_BATCH = 64
LEARNING_RATE = 0.05
MOMENTUM = 0.9


class Topology(StrEnum):
    """How casync's ranks talk to each other."""

    ps = "ps"
    ring = "ring"
    hierarchical = "hierarchical"
    allgather = "allgather"
    direct = "direct"
    auto = "auto"


class Link(Protocol):
    """What the training loop needs of the library that moves gradients."""

    rank: int
    size: int
    local_size: int
    bytes_are: str  # where the number of bytes comes from

    def distribute(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Give all ranks rank 0's parameters, and return an optimizer that averages gradients over ranks."""

    def bytes_sent(self, steps: int) -> int:
        """Return the bytes of gradients that this rank has sent in its first `steps` steps, which is now."""

    def gather(self, value: bytes) -> list[bytes]:
        """Return every rank's value, in rank order."""

    def shutdown(self) -> None:
        """Say goodbye."""


class CasyncLink:
    """Gradients by casync: compressed as the plan says, the rest through the exact ring."""

    bytes_are = "counted by casync: headers and bodies of all frames"

    def __init__(
        self, algorithm: str, topology: Topology, plan: Path | None, seed: int, trace: Path | None
    ) -> None:
        import casync.torch as casync

        casync.init(seed=seed, trace=str(trace) if trace else None)
        self.casync = casync
        self.rank, self.size, self.local_size = casync.rank(), casync.size(), casync.local_size()
        self.codec = None if algorithm == "none" else algorithm
        self.topology, self.plan = topology, plan

    def distribute(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        self.casync.broadcast_parameters(model.state_dict(), root_rank=0)
        self.optimizer = self.casync.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            codec=self.codec,
            topology=str(self.topology),
            plan=self.plan,
        )
        return self.optimizer

    def bytes_sent(self, steps: int) -> int:  # noqa: ARG002 (casync counts for itself)
        return self.optimizer.stats().bytes_sent

    def gather(self, value: bytes) -> list[bytes]:
        return self.casync.session().control.gather("train_digits", value)

    def shutdown(self) -> None:
        self.casync.shutdown()


class HorovodLink:
    """Gradients by Horovod's own all-reduce: the baseline."""

    bytes_are = "by formula: a ring all-reduce sends 2 (N - 1) / N of the gradients' 4 bytes an element"

    def __init__(self) -> None:
        import horovod.torch as hvd

        hvd.init()
        self.hvd = hvd
        self.rank, self.size, self.local_size = hvd.rank(), hvd.size(), hvd.local_size()

    def distribute(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        self.hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        self.elements = sum(parameter.numel() for parameter in model.parameters())
        return self.hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    def bytes_sent(self, steps: int) -> int:
        return steps * 2 * (self.size - 1) * 4 * self.elements // self.size

    def gather(self, value: bytes) -> list[bytes]:
        return self.hvd.allgather_object(value)

    def shutdown(self) -> None:
        self.hvd.shutdown()


@dataclass(frozen=True)
class Split:
    """Images float32[n, 1, 8, 8] in 0..1 and labels int64[n]."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Evaluation:
    """How good the network is after `step` steps, on images that it was not trained on."""

    step: int
    test_accuracy: float
    test_loss: float


@dataclass(frozen=True)
class Results:
    """One run. `loss` and `bytes_sent` (of rank 0, cumulative) have one entry a step."""

    algorithm: str
    topology: str
    plan: str | None
    ranks: int
    seed: int
    epochs: int
    parameters: int
    loss: list[float]
    bytes_sent: list[int]
    bytes_are: str
    evaluations: list[Evaluation]
    test_accuracy: float
    final_loss: float  # over all training images
    seconds: float
    parameter_hash: str


def build_model() -> torch.nn.Module:
    """Return the network: 138,698 parameters, 131,072 of them in one dense layer."""
    nn = torch.nn
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 16, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(16, 32, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "dense": nn.Linear(32 * 4 * 4, 256),
        "relu3": nn.ReLU(),
        "output": nn.Linear(256, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def load_splits() -> tuple[Split, Split]:
    """Return training and test images: three quarters and one quarter, every digit in proportion."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype("float32").reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, parts)
    return Split(train_images, train_labels), Split(test_images, test_labels)


Show = Callable[[int, int, float, list[Evaluation]], None]  # step, steps in all, loss, evaluations so far


def batches(count: int, epoch: int, seed: int, rank: int, size: int) -> Iterator[torch.Tensor]:
    """Yield this rank's part of each global batch of an epoch: the order is the same on all ranks."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=generator)
    share = GLOBAL_BATCH // size
    for begin in range(0, count - GLOBAL_BATCH + 1, GLOBAL_BATCH):
        yield order[begin + rank * share : begin + (rank + 1) * share]


@torch.no_grad()
def evaluate(model: torch.nn.Module, split: Split) -> tuple[float, float]:
    """Return accuracy in percent and mean loss."""
    outputs = model(split.images)
    loss = torch.nn.functional.cross_entropy(outputs, split.labels).item()
    return 100 * (outputs.argmax(1) == split.labels).float().mean().item(), loss


def hash_parameters(model: torch.nn.Module) -> str:
    """Return a hash of every bit of the parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def train(
    link: Link, model: torch.nn.Module, epochs: int, seed: int, show: Show
) -> tuple[list[float], list[int], list[Evaluation], float]:
    """Train; return this rank's loss and the bytes that it sent, step by step, evaluations, and seconds."""
    training, test = load_splits()
    optimizer = link.distribute(model, torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM))
    steps_an_epoch = len(training.labels) // GLOBAL_BATCH
    total = epochs * steps_an_epoch
    losses: list[float] = []
    sent: list[int] = []
    evaluations: list[Evaluation] = []
    began = time.perf_counter()
    for epoch in range(epochs):
        for batch in batches(len(training.labels), epoch, seed, link.rank, link.size):
            rate = LEARNING_RATE * (1 - len(losses) / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(training.images[batch]), training.labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            sent.append(link.bytes_sent(len(losses)))
            if link.rank == 0:
                if len(losses) % steps_an_epoch == 0:
                    evaluations.append(Evaluation(len(losses), *evaluate(model, test)))
                show(len(losses), total, losses[-1], evaluations)
    return losses, sent, evaluations, time.perf_counter() - began


@contextmanager
def progress(visible: bool, epochs: int) -> Iterator[Show]:
    """Show steps as a bar on a terminal, and as a line an epoch where a launcher takes the output."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns)
    bar.disable = not (visible and bar.console.is_terminal)
    with bar:
        task = bar.add_task("training", total=None)

        def show(step: int, total: int, loss: float, evaluations: list[Evaluation]) -> None:
            text = f"loss {loss:.4f}"
            if evaluations:
                text += f"  test accuracy {evaluations[-1].test_accuracy:.1f} %"
            bar.update(task, completed=step, total=total, description=text)
            if bar.disable and step % (total // epochs) == 0:
                print(f"step {step}/{total}  {text}", flush=True)

        yield show


def check_algorithm(algorithm: str) -> None:
    """End with the compiler's message, before any rank waits for another, if there is no such compressor."""
    if algorithm in ("none", "horovod"):
        return
    import compll

    try:
        compll.compile(algorithm)
    except (compll.CompileError, compll.ParameterError, compll.BackendError) as error:
        raise SystemExit(f"--algorithm {algorithm}:\n{error}") from None


def connect(algorithm: str, topology: Topology, plan: Path | None, seed: int, trace: Path | None) -> Link:
    """Start the library that the algorithm names."""
    return HorovodLink() if algorithm == "horovod" else CasyncLink(algorithm, topology, plan, seed, trace)


def main(
    algorithm: Annotated[
        str,
        typer.Option(
            help="A shipped algorithm (`compll algorithms` lists them), a .pse file, none (exact ring), "
            "or horovod (its own all-reduce)."
        ),
    ] = "terngrad",
    topology: Annotated[
        Topology, typer.Option(help="How casync's ranks talk to each other.")
    ] = Topology.ring,
    comprplan: Annotated[
        Path | None, typer.Option(help="A plan that `secopa plan` wrote.", exists=True)
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 25,
    seed: Annotated[int, typer.Option(help="Of the first parameters, the batches and the codec.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the results there, as JSON.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A folder for casync's Chrome traces.")] = None,
    write_gradients: Annotated[
        Path | None,
        typer.Option(help="Write the model's gradients there for `secopa plan --input`, and end."),
    ] = None,
) -> None:
    """Train on handwritten digits; all ranks end with the same bits."""
    torch.manual_seed(seed)
    model = build_model()
    if write_gradients:
        import casync.torch as casync

        casync.write_gradients(model, write_gradients)
        return
    check_algorithm(algorithm)
    link = connect(algorithm, topology, comprplan, seed, trace)
    if GLOBAL_BATCH % link.size:
        raise typer.BadParameter(
            f"{link.size} ranks cannot share a batch of {GLOBAL_BATCH} evenly; use 2, 4 or 8"
        )
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // link.local_size))
    with progress(link.rank == 0, epochs) as show:
        losses, sent, evaluations, seconds = train(link, model, epochs, seed, show)

    fingerprint = hash_parameters(model)
    reports = [json.loads(value) for value in link.gather(json.dumps([fingerprint, losses]).encode())]
    link.shutdown()
    strays = [rank for rank, (theirs, _) in enumerate(reports) if theirs != reports[0][0]]
    if strays:
        raise SystemExit(f"parameters of rank {strays} differ from rank 0's after {len(losses)} steps")
    if link.rank:
        return
    mean_losses = [sum(values) / link.size for values in zip(*(theirs for _, theirs in reports), strict=True)]
    results = Results(
        algorithm=algorithm,
        topology="ring" if algorithm == "horovod" else str(topology),
        plan=comprplan and comprplan.name,
        ranks=link.size,
        seed=seed,
        epochs=epochs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=mean_losses,
        bytes_sent=sent,
        bytes_are=link.bytes_are,
        evaluations=evaluations,
        test_accuracy=evaluations[-1].test_accuracy,
        final_loss=evaluate(model, load_splits()[0])[1],
        seconds=seconds,
        parameter_hash=fingerprint,
    )
    print(
        f"{algorithm} ({results.topology}, {link.size} ranks): test accuracy {results.test_accuracy:.2f} %, "
        f"loss {results.final_loss:.4f}, {sent[-1] // len(sent):,} bytes sent a step and rank, "
        f"{seconds:.1f} s; parameters are bit-identical on all ranks ({fingerprint[:12]})"
    )
    if output:
        output.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
