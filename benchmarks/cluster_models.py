"""What is trained: a model whose passes take the processor, and models whose passes are replayed.

A replayed model has the real model's parameters, by name and shape; its backward pass waits until each
gradient's time instead of computing it, as a rank does whose accelerator computes. Times: the iteration of
one accelerator, a third of it forward, the rest divided among the layers by their multiplications. Filling
a gradient's memory takes the processor some time.

A part of a replayed model (`thinned`) is the same iteration, shorter: 1/part of the time, of the bytes and of
the small gradients, with the same share of the bytes ready at the same share of the time. Part times its
iteration time estimates the whole model's; a method's fixed cost of a large gradient or of an iteration is
counted part times, and buckets of a fixed size overlap less with the backward pass.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

BATCH = 32
WIDTHS = (3072, 4096, 1536, 512, 10)
SMALL = 1 << 16
"""Elements: a smaller gradient is whole in a thinned list, or not there."""


@dataclass(frozen=True)
class Layer:
    """Parameters whose gradients are ready together. work: multiplications, in any unit."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    work: float


@dataclass(frozen=True)
class Replay:
    """A model by its layers, from input to output; seconds: of an iteration on one accelerator."""

    name: str
    layers: tuple[Layer, ...]
    seconds: float
    source: str


def mlp() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    """A perceptron of 19.7 M parameters, and its loss on one batch of random data."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    data, target = torch.randn(BATCH, WIDTHS[0]), torch.randint(WIDTHS[-1], (BATCH,))
    return model, lambda m: nn.functional.cross_entropy(m(data), target)


class _Ready(torch.autograd.Function):
    """Backward waits until the gradients of a layer are ready, and returns them."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, clock: Clock, at: float, *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.clock, ctx.at, ctx.parameters = clock, at, parameters
        return x + 0

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        ctx.clock.sleep_until(ctx.at)
        return (grad, None, None, *(ctx.clock.gradient(p) for p in ctx.parameters))


class Clock:
    """The time since an iteration began, and gradients of random values."""

    def __init__(self) -> None:
        self.begin = 0.0
        self._values = torch.randn(1 << 20)

    def sleep_until(self, at: float) -> None:
        """Wait until so many seconds after the begin."""
        rest = self.begin + at - time.perf_counter()
        if rest > 0:
            time.sleep(rest)

    def gradient(self, p: torch.Tensor) -> torch.Tensor:
        """A gradient of its own memory, as a backward pass returns it."""
        whole, rest = divmod(p.numel(), self._values.numel())
        return torch.cat([*itertools.repeat(self._values, whole), self._values[:rest]]).view(p.shape)


class Replayed(nn.Module):
    """A model of `Replay`; its output is a scalar that depends on all parameters."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.clock = Clock()
        self.forward_seconds = replay.seconds / 3
        self.layers: list[tuple[float, list[nn.Parameter]]] = []
        total = sum(layer.work for layer in replay.layers)
        left = replay.seconds
        for layer in replay.layers:  # the last layer's gradients come first
            parameters = [nn.Parameter(torch.zeros(shape)) for _, shape in layer.shapes]
            for (name, _), p in zip(layer.shapes, parameters, strict=True):
                self.register_parameter(f"{layer.name}_{name}".replace(".", "_"), p)
            self.layers.append((left, parameters))
            left -= layer.work / total * (replay.seconds - self.forward_seconds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Wait as long as the forward pass takes."""
        self.clock.begin = time.perf_counter()
        self.clock.sleep_until(self.forward_seconds)
        for at, parameters in self.layers:
            x = _Ready.apply(x, self.clock, at, *parameters)
        return x


def thinned(replay: Replay, part: int) -> Replay:
    """1/part of the time and of each large gradient's rows; of the small gradients every part-th, whole."""
    small = itertools.count(part // 2)
    layers = []
    for layer in replay.layers:
        shapes = []
        for name, shape in layer.shapes:
            if math.prod(shape) >= SMALL:
                shapes.append((name, (max(1, shape[0] // part), *shape[1:])))
            elif next(small) % part == 0:
                shapes.append((name, shape))
        layers.append(replace(layer, shapes=tuple(shapes)))
    return replace(replay, layers=tuple(layers), seconds=replay.seconds / part)


def _dense(name: str, inputs: int, outputs: int, positions: int = 1) -> Layer:
    return Layer(name, (("weight", (outputs, inputs)), ("bias", (outputs,))), inputs * outputs * positions)


def vgg19() -> Replay:
    """VGG19 for ImageNet (Simonyan and Zisserman 2015, table 1, configuration E): 38 gradients, 548 MiB."""
    layers, channels, size = [], 3, 224
    for block, (width, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), 1):
        for number in range(1, count + 1):
            shapes = (("weight", (width, channels, 3, 3)), ("bias", (width,)))
            layers.append(Layer(f"conv{block}_{number}", shapes, 9.0 * channels * width * size * size))
            channels = width
        size //= 2
    layers += [_dense("fc6", 512 * 7 * 7, 4096), _dense("fc7", 4096, 4096), _dense("fc8", 4096, 1000)]
    return Replay("VGG19", tuple(layers), BATCH / 206.5, "26,438 images/s of 128 V100 if scaled linearly")


def resnet50() -> Replay:
    """ResNet50 for ImageNet (He and others 2016, table 1): 161 gradients, 97 MiB."""
    layers = []

    def conv(name: str, inputs: int, outputs: int, kernel: int, size: int) -> None:
        shape = (outputs, inputs, kernel, kernel)
        layers.append(Layer(name, (("weight", shape),), float(math.prod(shape)) * size * size))
        layers.append(
            Layer(f"{name}_bn", (("weight", (outputs,)), ("bias", (outputs,))), outputs * size * size)
        )

    conv("conv1", 3, 64, 7, 112)
    inputs = 64
    for stage, (width, blocks, size) in enumerate(((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)), 2):
        for block in range(blocks):
            name = f"conv{stage}_{block + 1}"
            conv(f"{name}_1", inputs, width, 1, size)
            conv(f"{name}_2", width, width, 3, size)
            conv(f"{name}_3", width, 4 * width, 1, size)
            if block == 0:
                conv(f"{name}_shortcut", inputs, 4 * width, 1, size)
            inputs = 4 * width
    layers.append(_dense("fc", 2048, 1000))
    return Replay("ResNet50", tuple(layers), BATCH / 327.7, "41,946 images/s of 128 V100 if scaled linearly")


def bert_base() -> Replay:
    """Bert-base, uncased (Devlin and others 2019): 12 layers of 768, with pooler; 199 gradients, 418 MiB."""
    width, tokens, vocabulary = 768, 128, 30_522

    def norm(name: str) -> Layer:
        return Layer(name, (("weight", (width,)), ("bias", (width,))), float(width * tokens))

    embeddings = (("word", (vocabulary, width)), ("position", (512, width)), ("type", (2, width)))
    layers = [Layer("embeddings", embeddings, float(width * tokens)), norm("embeddings_norm")]
    for number in range(12):
        name = f"layer{number}"
        layers += [
            _dense(f"{name}_{part}", width, width, tokens) for part in ("query", "key", "value", "output")
        ]
        layers += [norm(f"{name}_norm1")]
        layers += [
            _dense(f"{name}_up", width, 4 * width, tokens),
            _dense(f"{name}_down", 4 * width, width, tokens),
        ]
        layers += [norm(f"{name}_norm2")]
    layers.append(_dense("pooler", width, width))
    # 456 ms an iteration, computation alone
    return Replay("Bert-base", tuple(layers), 0.456, "456 ms of computation on a 1080 Ti")


REPLAYED = {"vgg19": vgg19, "resnet50": resnet50, "bert-base": bert_base}
MODELS = ("mlp", *REPLAYED)
PARTS = {"vgg19": (8,), "resnet50": (1, 8), "bert-base": (8,)}
"""The parts of a list on which methods are measured that send 16 or 32 bits a value; both: to compare."""


def build(name: str, part: int = 1) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    """A model by name, or 1/part of a replayed one, and its loss."""
    if name == "mlp":
        return mlp()
    x = torch.zeros((), requires_grad=True)
    return Replayed(thinned(REPLAYED[name](), part)), lambda m: m(x)


def elements(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and number of elements of each gradient."""
    for name, p in model.named_parameters():
        yield name, p.numel()
