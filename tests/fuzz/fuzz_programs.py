"""Whole programs that a person might have written, from a seed: most of them are right, some a little wrong.

A program grows statement by statement.  What it has declared so far are the leaves of the next expression,
so that reductions, selections, tables, branches and functions meet in every order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fuzz_expressions import expression

KINDS = ("float", "int", "int8", "int32", "uint8", "uint16", "uint32", "uint64", "bool", "half", "bfloat16")
WIDTHS = ("uint1", "uint2", "uint4", "uint<3>", "uint<bits>", "uint<bits + 1>")
COMBINES = (
    "a + b",
    "max(a, b)",
    "min(abs(a), b)",
    "a > b ? a : b",
    "a * b + ratio",
    "a - b",
    "sqrt(a * a + b * b)",
)
BLOCKS = ("block", "block", "64", "1", "7", "2048")


def arithmetic(kind: str) -> str:
    """Return the type in which elements of `kind` are computed with."""
    if kind in ("float", "half", "bfloat16"):
        return "float"
    return kind if kind in ("uint32", "uint64") else "int"


def written(kind: str, text: str) -> str:
    """Return an expression of the arithmetic type of `kind` for a variable of that name."""
    return f"int({text})" if kind == "bool" else text


@dataclass
class Writer:
    """What has been written of one Encode, and what its names are."""

    r: random.Random
    lines: list[str] = field(default_factory=list)
    elements: dict[str, list[str]] = field(default_factory=dict)  # arithmetic type -> readable at i
    scalars: dict[str, list[str]] = field(default_factory=dict)  # arithmetic type -> readable anywhere
    fields: list[tuple[str, str]] = field(default_factory=list)  # type, name of what can be sent
    pairs: list[tuple[str, str]] = field(default_factory=list)  # names of positions and of values there
    vectors: list[str] = field(default_factory=list)  # names of float vectors of gradient.size elements
    count: int = 0

    def name(self, prefix: str) -> str:
        """Return a name that is not taken."""
        self.count += 1
        return f"{prefix}{self.count}"

    def at(self, kind: str, depth: int) -> str:
        """Return an expression of the position i."""
        leaves = {k: self.elements[k] + self.scalars[k] for k in self.elements}
        return expression(self.r, kind, depth, leaves)

    def once(self, kind: str, depth: int) -> str:
        """Return an expression that stands outside of maps."""
        text = expression(self.r, kind, depth, self.scalars)
        return text.replace("stochastic_round(", "floor(")

    def vector(self) -> str:
        """Return a vector of gradient.size floats."""
        v, w = self.r.choice(self.vectors), self.r.choice(self.vectors)
        return self.r.choice((v, v, f"abs({v})", f"{v} * {v}", f"{v} - {w}", f"({v} > {w} ? {v} : {w})"))

    def keep(self, kind: str, name: str) -> None:
        """Take a scalar into the leaves and the fields."""
        self.scalars[arithmetic(kind)].append(written(kind, name))
        self.fields.append((kind, name))

    # --- statements -------------------------------------------------------------------------------

    def mapped(self) -> None:
        """Declare a vector that is made element by element."""
        kind, name = self.r.choice(KINDS + WIDTHS), self.name("v")
        if self.r.random() < 0.3:
            body = self.vector()
        else:
            value = self.at(arithmetic(kind), self.r.randrange(3))
            body = f"map(range(gradient.size), [&](int i) -> {kind} {{ return {value}; }})"
        self.lines.append(f"{kind}* {name} = {body};")
        self.elements[arithmetic(kind)].append(written(kind, f"{name}[i]"))
        self.fields.append((f"{kind}*", name))
        if kind == "float":
            self.vectors.append(name)

    def reduced(self) -> None:
        """Declare a scalar that a vector is reduced to."""
        name, over = self.name("s"), self.vector()
        if self.r.random() < 0.5:
            init = self.r.choice(("", "", "0, ", "1e-3, "))
            self.lines.append(
                f"float {name} = reduce({over}, {init}{self.r.choice(('add', 'smaller', 'greater'))});"
            )
        else:
            body = self.r.choice(COMBINES)
            self.lines.append(
                f"float {name} = reduce({over}, 0, [&](float a, float b) -> float {{ return {body}; }});"
            )
        self.keep("float", name)

    def counted(self) -> None:
        """Declare a count of elements."""
        name = self.name("c")
        self.lines.append(f"int {name} = reduce({self.vector()} > {self.once('float', 1)}, add);")
        self.keep("int", name)

    def blocked(self) -> None:
        """Declare one value a block."""
        name, block = self.name("t"), self.r.choice(BLOCKS)
        combine = self.r.choice(
            ("add", "greater", "0, greater", "0, [&](float a, float b) -> float { return a + b; }")
        )
        self.lines.append(f"float* {name} = reduce(chunk({self.vector()}, {block}), {combine});")
        self.elements["float"].append(f"{name}[i / {block}]")
        self.fields.append(("float*", name))

    def threshold(self) -> None:
        """Declare a threshold, taken from a sorted sample."""
        over, s, name = self.vector(), self.name("q"), self.name("s")
        if self.r.random() < 0.6:
            size = self.r.choice(("16", "gradient.size / 4", "max(gradient.size / 100, 16)"))
            over = f"sample({over}, {size})"
        order = self.r.choice(
            ("smaller", "greater", "[&](float a, float b) -> bool { return abs(a) < abs(b); }")
        )
        self.lines.append(f"float* {s} = sort({over}, {order});")
        self.lines.append(f"float {name} = {s}[int({self.r.choice(('0.5', '0.9'))} * ({s}.size - 1))];")
        self.keep("float", name)

    def selected(self) -> None:
        """Declare positions, and the values there."""
        at, value, v = self.name("p"), self.name("w"), self.r.choice(self.vectors)
        limit = self.r.choice(("", ", gradient.size / 4", ", 8"))
        holds = f"[&](int i) -> bool {{ return {self.at('float', 1)} > 0; }}"
        source = self.r.choice(
            (
                f"filter(range(gradient.size), {holds}{limit})",
                f"topk({self.vector()}, {self.r.choice(('8', 'ceil(gradient.size * 0.1)'))})",
                f"topk(chunk({self.vector()}, 32), 4)",
                "sample(range(gradient.size), 9)",
            )
        )
        self.lines += [f"uint32* {at} = {source};", f"float* {value} = gather({v}, {at});"]
        self.fields += [("uint32*", at), ("float*", value)]
        self.pairs.append((at, value))

    def looked_up(self) -> None:
        """Declare a table, and read it by search."""
        table = self.name("table")
        entries = sorted(self.r.randrange(-20, 20) / 4 for _ in range(self.r.randrange(1, 6)))
        self.lines.append(f"float* {table} = {{{', '.join(map(str, entries))}}};")
        self.elements["int"].append(f"search({table}, gradient[i])")
        self.elements["float"].append(f"{table}[{self.r.randrange(len(entries))}]")

    def computed(self) -> None:
        """Declare a scalar, perhaps of a named lambda."""
        kind = self.r.choice(KINDS)
        name, value = self.name("s"), self.once(arithmetic(kind), self.r.randrange(3))
        if self.r.random() < 0.3:
            f = self.name("f")
            self.lines.append(f"lambda_func {f} = [&](float x) -> {kind} {{ return x + {name}0; }};")
            self.lines.insert(-1, f"float {name}0 = {self.once('float', 1)};")
            value = f"{f}({self.once('float', 1)})"
        self.lines.append(f"{kind} {name} = {value};")
        self.keep(kind, name)

    def branched(self) -> None:
        """Declare a scalar and assign it under an `if`."""
        name = self.name("s")
        condition = self.r.choice(("bits > 2", "true", f"{self.once('float', 1)} < {self.once('float', 1)}"))
        self.lines += [
            f"float {name} = {self.once('float', 1)};",
            f"if ({condition}) {{ {name} = {self.once('float', 1)}; }}",
        ]
        if self.r.random() < 0.5:
            self.lines.append(f"else if ({name} > 0) {{ {name} = -{name}; }} else {name} = 1;")
        self.keep("float", name)

    def statement(self) -> None:
        """Write one statement, or two that belong together."""
        makers = (self.mapped, self.mapped, self.reduced, self.reduced, self.counted, self.blocked)
        self.r.choice(
            (*makers, self.threshold, self.selected, self.looked_up, self.computed, self.branched)
        )()


def writer(r: random.Random) -> Writer:
    """Begin an Encode."""
    w = Writer(r, vectors=["gradient"])
    w.scalars = {
        "float": ["ratio", "0.25", "-3.0", "1e-40", "inf"],
        "int": ["whole", "7", "-1", "gradient.size", "bits", "block"],
        "uint32": ["cast<uint32>(whole)", "cast<uint32>(4000000000)"],
        "uint64": ["cast<uint64>(ratio)", "cast<uint64>(18000000000000000000)"],
    }
    w.elements = {
        "float": ["gradient[i]", "memory[i]", "random<float>(-1, 2)"],
        "int": ["i", "random<int>(-9, 100)"],
        "uint32": ["cast<uint32>(i)", "bitcast<uint32>(memory[i])"],
        "uint64": ["cast<uint64>(gradient[i])"],
    }
    return w


FORMALS = ", [[range(1, 6)]] uint8 bits = 3, int block = 64, float ratio = 0.75, int whole = -3"


def program(r: random.Random) -> str:
    """Return a program of a few statements, with the Decode that belongs to it."""
    w = writer(r)
    for _ in range(r.randint(1, 6)):
        w.statement()
    sent = r.sample(w.fields, min(len(w.fields), r.randint(1, 4)))
    if w.pairs and r.random() < 0.8:
        at, value = r.choice(w.pairs)
        sent = [*(f for f in sent if f[1] not in (at, value)), ("uint32*", at), ("float*", value)]
    sent = sent or [("float*", "gradient")]
    names = [name if name != "gradient" else "g" for _, name in sent]
    decoded = [f"{kind} {name};" for (kind, _), name in zip(sent, names, strict=True)]
    decoded.append(f"extract(compressed, {', '.join(names)});")
    decoded.append(f"gradient = {output(r, w, list(zip([k for k, _ in sent], names, strict=True)))};")
    kept = r.choice(
        (
            "gradient - decode(compressed)",
            "gradient + memory - decode(compressed)",
            f"map(range(gradient.size), [&](int i) -> float {{ return {w.at('float', 2)}; }})",
            "memory * ratio",
        )
    )
    body = [*w.lines, f"compressed = concat({', '.join(name for _, name in sent)});", f"memory = {kept};"]
    return (
        f"void FuzzEncode(float* gradient, uint8* compressed, state float* memory{FORMALS}) {{\n    "
        + "\n    ".join(body)
        + f"\n}}\nvoid FuzzDecode(uint8* compressed, float* gradient{FORMALS}) {{\n    "
        + "\n    ".join(decoded)
        + "\n}\n"
    )


def output(r: random.Random, w: Writer, sent: list[tuple[str, str]]) -> str:
    """Return what a Decode makes of its fields: a scatter, or a map over those of gradient.size elements."""
    names = {name for _, name in sent}
    for at, value in w.pairs:
        if {at, value} <= names:
            return f"scatter(gradient.size, {at}, {value})"
    elements = [f"{name}[i]" for kind, name in sent if kind.endswith("*") and name[0] in "vg"]
    scalars = [name for kind, name in sent if not kind.endswith("*")]
    terms = r.sample(elements, min(2, len(elements))) + r.sample(scalars, min(1, len(scalars)))
    value = " + ".join(f"float({t})" for t in terms) or "0.5"
    return f"map(range(gradient.size), [&](int i) -> float {{ return {value}; }})"
