"""What is trained to see whether compression costs quality: the examples' models, with their settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import train_charlm as charlm
import train_digits as digits

EPOCHS = 25
CHARACTER_STEPS = 400


@dataclass(frozen=True)
class Task:
    """A model to be trained by several ranks, each with its share of the same global batches.

    optimizer: of parameters; `momentum` is False where the codec brings its own. loss: of the rank's rows in
    a step. rate: the learning rate at a step. quality: of the model on what no rank was trained on.
    exact: patterns of gradients that stay uncompressed. evaluate_every: steps.
    """

    model: nn.Module
    optimizer: Callable[[Iterator[nn.Parameter], bool], torch.optim.Optimizer]
    loss: Callable[[int], torch.Tensor]
    rate: Callable[[int], float]
    quality: Callable[[], float]
    steps: int
    evaluate_every: int
    exact: tuple[str, ...] = ()
    clip: float | None = None


def digits_task(seed: int, rank: int, size: int) -> Task:
    """Handwritten digits; quality is the accuracy in percent on a quarter of the images."""
    model = digits.build_model()
    training, test = digits.load_splits()
    an_epoch = len(training.labels) // digits.GLOBAL_BATCH
    steps = EPOCHS * an_epoch
    rows = [
        part
        for epoch in range(EPOCHS)
        for part in digits.batches(len(training.labels), epoch, seed, rank, size)
    ]

    def loss(step: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(training.images[rows[step]]), training.labels[rows[step]])

    return Task(
        model,
        lambda parameters, momentum: torch.optim.SGD(
            parameters, digits.LEARNING_RATE, digits.MOMENTUM if momentum else 0
        ),
        loss,
        lambda step: digits.LEARNING_RATE * (1 - step / steps),
        lambda: digits.evaluate(model, test)[0],
        steps,
        an_epoch,
    )


def charlm_task(seed: int, rank: int, size: int) -> Task:
    """The character transformer; quality is bits a character of held-out text."""
    corpus = charlm.load_corpus()
    model = charlm.CharacterModel(len(corpus.letters))
    held_out = corpus.validation[:20_000]

    def loss(step: int) -> torch.Tensor:
        return charlm.loss_of(model, charlm.batch(corpus.training, step, seed, rank, size))

    return Task(
        model,
        lambda parameters, _: torch.optim.AdamW(parameters, charlm.LEARNING_RATE),
        loss,
        lambda step: charlm.LEARNING_RATE * charlm.rate(step, CHARACTER_STEPS),
        lambda: charlm.bits_per_character(model, held_out),
        CHARACTER_STEPS,
        CHARACTER_STEPS // 20,
        exact=("letter.*", "place.*"),
        clip=charlm.CLIP,
    )


TASKS = {"digits": digits_task, "charlm": charlm_task}
QUALITY = {"digits": "accuracy, %", "charlm": "bits a character"}
HIGHER_IS_BETTER = {"digits": True, "charlm": False}
