"""Inputs of the compiler's fuzzer: input number k of a seed is always the same text.

Three sources: random sentences of the grammar, programs that a person might have written, and mutations of
every program that the repository has, by characters and by tokens.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz_programs import program
from lark import Lark
from lark.grammar import NonTerminal, Symbol
from lark.lexer import PatternStr

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 3000  # characters of a program that is mutated: time goes into many inputs, not into long ones

FUNCTIONS = """map reduce range filter topk sort sample gather scatter search chunk concat extract decode
abs min max floor ceil round sqrt exp log2 sign clamp isnan popcount stochastic_round add smaller greater
""".split()  # noqa: SIM905 - a table of words
WORDS = {  # what stands for a terminal that is a pattern
    "NAME": [
        "gradient",
        "compressed",
        "residual",
        "x",
        "y",
        "v",
        "i",
        "a",
        "b",
        "bits",
        "key",
        "size",
        "nan",
        "inf",
    ],
    "INT": [
        "0",
        "1",
        "2",
        "7",
        "8",
        "64",
        "255",
        "0xff",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
    ],
    "FLOAT": ["0.5", "1e-45", "3.5e38", "1.0f", ".25", "1e400"],
    "TYPE": [
        "float",
        "int",
        "bool",
        "uint8",
        "uint1",
        "uint32",
        "uint64",
        "int8",
        "half",
        "bfloat16",
        "void",
    ],
    "UINT": ["uint"],
    "TYPED_CALL": ["random", "cast", "bitcast"],
}
STRAYS = [*"$#@'\"\\\0é\x7f√\U0001f600", "\r\n", "\t", "/*", "*/", "//", "[[", "]]", "->", "#include"]
SIGNS = ["+", "-", "*", "/", "%", "&", "|", "^", "<", ">", "<=", ">=", "==", "!=", "&&", "||", "<<", ">>"]
TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|[A-Za-z_]\w*|\d[\w.]*|\s+|[<>=!&|]{2}|->|.", re.DOTALL)


# --- sentences of the grammar ----------------------------------------------------------------------


class Grammar:
    """The rules of grammar/pse.lark, and random sentences of them."""

    def __init__(self) -> None:
        """Read the grammar, and find for every symbol how deep its shallowest sentence nests."""
        text = (ROOT / "grammar" / "pse.lark").read_text("utf-8")
        lark = Lark(text, parser="lalr", maybe_placeholders=True)
        self.rules: dict[str, list[list[Symbol]]] = {}
        for rule in lark.rules:
            self.rules.setdefault(str(rule.origin.name), []).append(rule.expansion)
        self.words = {
            t.name: WORDS[t.name]
            if t.name in WORDS
            else [
                t.pattern.value if isinstance(t.pattern, PatternStr) else t.pattern.value.removesuffix("\\b")
            ]
            for t in lark.terminals
            if not t.name.startswith("__IGNORE")
        }
        self.depth = dict.fromkeys(self.rules, 10**9)
        while True:
            new = {name: min(1 + self._depth(e) for e in es) for name, es in self.rules.items()}
            if new == self.depth:
                break
            self.depth = new

    def _depth(self, expansion: list[Symbol]) -> int:
        return max((self.depth[str(s.name)] for s in expansion if isinstance(s, NonTerminal)), default=0)

    def sentence(self, r: random.Random, start: str, budget: int) -> str:
        """Return a sentence of the symbol `start` that nests about `budget` deep."""
        words: list[str] = []

        def derive(symbol: Symbol, left: int) -> None:
            name = str(symbol.name)
            if not isinstance(symbol, NonTerminal):
                words.append(r.choice(self.words[name]))
                return
            choices = self.rules[name]
            fitting = [e for e in choices if self._depth(e) < left] or [min(choices, key=self._depth)]
            for part in r.choice(fitting):
                derive(part, left - 1)

        derive(NonTerminal(start), budget)
        for at, word in enumerate(words[:-1]):  # a name that is called is most often one of a function
            if words[at + 1] == "(" and word in WORDS["NAME"] and r.random() < 0.9:
                words[at] = r.choice(FUNCTIONS)
        return " ".join(words)


@functools.cache
def grammar() -> Grammar:
    """Return the grammar, read once."""
    return Grammar()


def any_sentence(r: random.Random) -> str:
    """Return a sentence of the whole grammar: a file."""
    return grammar().sentence(r, "start", r.randint(6, 22))


def framed_sentences(r: random.Random) -> str:
    """Return a codec with random statements in it, so that more than its head is checked."""
    inside = [grammar().sentence(r, "statement", r.randint(4, 20)) for _ in range(r.randint(1, 3))]
    other = grammar().sentence(r, "statement", r.randint(4, 14)) if r.random() < 0.3 else ""
    return (
        "void FuzzEncode(float* gradient, uint8* compressed, state float* residual, "
        "shared uint64 key, uint8 bits = 3) {\n"
        "    float x = 0.5, y; float* v = gradient + residual; int a = bits, b = gradient.size;\n    "
        + "\n    ".join(inside)
        + "\n    compressed = concat(x, v);\n}\n"
        "void FuzzDecode(uint8* compressed, float* gradient) {\n"
        "    float x, y; float* v;\n    extract(compressed, x, v);\n    "
        + other
        + "\n    gradient = v * x;\n}\n"
    )


# --- mutations ---------------------------------------------------------------------------------------


@functools.cache
def corpus() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return every program of the repository: shipped ones and those of the language's page; invalid ones."""
    right, wrong = (
        [p.read_text("utf-8") for p in sorted((ROOT / d).rglob("*.pse"))] for d in ("compll", "tests")
    )
    page = (ROOT / "grammar" / "language.md").read_text("utf-8")
    right += re.findall(r"```pse\n(.*?)```", page, re.DOTALL)
    return tuple(t for t in right if len(t) <= LONGEST), tuple(t for t in wrong if len(t) <= LONGEST)


def any_program(r: random.Random) -> str:
    """Return a program of the repository; most often one that is right, so that mutants get far."""
    right, wrong = corpus()
    return r.choice(right if r.random() < 0.7 else wrong)


@functools.cache
def tokens(text: str) -> tuple[str, ...]:
    """Cut a text into tokens; what stands between them is a token too."""
    return tuple(TOKEN.findall(text))


def by_characters(r: random.Random, text: str) -> str:
    """Change a text in some places, without regard to what stands there."""
    for _ in range(r.choice((1, 1, 2, 4))):
        at, length = r.randrange(len(text) + 1), r.choice((0, 1, 1, 3, 20))
        start = r.randrange(len(text) + 1)
        text = r.choice(
            (
                text[:at] + text[at + max(length, 1) :],
                text[:at] + r.choice(STRAYS) + text[at + length :],
                text[:at] + chr(r.randrange(32, 127)) + text[at + 1 :],
                text[:at] + text[start : start + r.randrange(40)] + text[at:],
                text[:at] if r.random() < 0.3 else text[at:],
            )
        )
    return text


def by_tokens(r: random.Random, text: str) -> str:
    """Change some tokens of a program: what comes out is often a sentence still, of a wrong program."""
    words = [*tokens(text)] or [";"]
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        solid = [k for k, w in enumerate(words) if not w.isspace()] or [0]
        at, other = r.choice(solid), r.choice(solid)
        match r.randrange(8):
            case 0:
                words[at] = ""
            case 1:
                words[at], words[other] = words[other], words[at]
            case 2:
                words[at] = r.choice(tokens(any_program(r)))
            case 3:
                words[at] = f" {r.choice(r.choice([*grammar().words.values(), FUNCTIONS]))} "
            case _:
                words[at] = alike(r, words, at)
        words = [w for w in words if w] or [";"]
    return "".join(words)


def alike(r: random.Random, words: list[str], at: int) -> str:
    """Return another token of the kind that stands there, such as a type or a number."""
    word = words[at]
    for group in (WORDS["TYPE"], FUNCTIONS, SIGNS):
        if word in group:
            return r.choice(group)
    if word[0].isdigit():
        return r.choice(WORDS["INT"] + WORDS["FLOAT"])
    return r.choice([w for w in words if w[0].isalpha() == word[0].isalpha() and not w.isspace()] or [word])


def by_lines(r: random.Random, text: str) -> str:
    """Remove, repeat, exchange or borrow whole lines, which most often are statements."""
    lines = text.split("\n")
    for _ in range(r.choice((1, 1, 2))):
        at, other = r.randrange(len(lines)), r.randrange(len(lines))
        match r.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines.insert(at, r.choice(any_program(r).split("\n")))
        lines = lines or [""]
    return "\n".join(lines)


# --- inputs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One text, and how it was made."""

    kind: str
    text: str


def _mutated(change: Callable[[random.Random, str], str]) -> Callable[[random.Random], str]:
    return lambda r: change(r, any_program(r))


MAKERS: dict[str, tuple[int, Callable[[random.Random], str]]] = {  # kind -> its weight, how it is made
    "sentence of the grammar": (30, any_sentence),
    "sentences in a codec": (10, framed_sentences),
    "mutated by characters": (20, _mutated(by_characters)),
    "mutated by tokens": (22, _mutated(by_tokens)),
    "mutated by lines": (8, _mutated(by_lines)),
    "plausible program": (5, program),
    "plausible program, mutated": (5, lambda r: by_tokens(r, program(r))),
}


def make(seed: int, number: int) -> Input:
    """Return input `number` of a seed."""
    r = random.Random(f"{seed} {number}")
    kind = r.choices([*MAKERS], [weight for weight, _ in MAKERS.values()])[0]
    return Input(kind, MAKERS[kind][1](r))
