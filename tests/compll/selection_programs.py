"""Random programs that select: filters, sorts, samples, scatters, reads anywhere, one made from the other."""

from __future__ import annotations

import random


def program(seed: int) -> str:
    """Return a codec whose Encode selects at random and whose Decode scatters."""
    return _Maker(random.Random(seed)).text()


class _Maker:
    """Pools of names to make further statements from; n is the gradient's length."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.dense = ["gradient", "a", "b"]
        self.blocks: list[tuple[str, int]] = []
        self.scalars = ["0.5", "-1.25", "ratio"]
        self.indices: list[str] = []
        self.sparse: list[tuple[str, str]] = []  # values, and the index that they belong to
        self.made = 0

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def line(self, text: str) -> None:
        self.lines.append("    " + text)

    def read(self) -> str:
        """Return an element somewhere, never out of range where it is asked for."""
        v = self.draw.choice(self.dense)
        if v in ("a", "b"):
            return f"{v}[i]"
        if self.blocks and self.draw.random() < 0.2:
            name, size = self.draw.choice(self.blocks)
            return f"{name}[i / {size}]"
        return self.draw.choice(
            (
                *[f"{v}[i]"] * 4,
                f"{v}[n - 1 - i]",
                f"{v}[i * 7 % n]",
                f"(i + 1 < n ? {v}[i + 1] : 0)",
                f"(i > 2 && {v}[i - 3] > 0 ? {v}[i - 1] : {v}[i])",
                "table[i % 4]",
            )
        )

    def plain(self) -> str:
        """Return a vector that is no state: a state is read along, since its new value may take its place."""
        return self.draw.choice([v for v in self.dense if v not in ("a", "b")])

    def value(self) -> str:
        x, y, s = self.read(), self.read(), self.draw.choice(self.scalars)
        return self.draw.choice(
            (f"{x} + {y}", f"{x} * {s}", f"max({x}, {s})", f"abs({x}) - {y}", f"({x} > {s} ? {y} : {x})")
        )

    def statement(self) -> None:
        v, draw = self.draw.choice(self.dense), self.draw
        match draw.randrange(11):
            case 0 | 1:
                name = self.name("map")
                noise = " + random<float>(-1, 1)" if draw.random() < 0.2 else ""
                self.line(
                    f"float* {name} = map(range(n), [&](int i) -> float {{ return {self.value()}{noise}; }});"
                )
                self.dense.append(name)
            case 2:
                name = self.name("sum")
                self.line(f"float {name} = reduce({v}, {draw.choice(('add', 'greater', 'smaller'))});")
                self.scalars.append(name)
            case 3:
                name, size = self.name("block"), draw.choice((1, 16, 100, 1500))
                self.line(
                    f"float* {name} = reduce(chunk({v}, {size}), 0, {draw.choice(('add', 'greater'))});"
                )
                self.blocks.append((name, size))
            case 4:
                name = self.name("sorted")
                over = draw.choice((v, v, f"chunk({v}, {draw.choice((3, 90))})"))
                by = draw.choice(
                    ("smaller", "greater", "[&](float p, float q) -> bool { return abs(p) < abs(q); }")
                )
                self.line(f"float* {name} = sort({over}, {by});")
                if draw.random() < 0.5:
                    self.dense.append(name)
                else:
                    self.line(f"float {name}_at = {name}[n / {draw.choice((2, 3, 10))}];")
                    self.scalars.append(f"{name}_at")
            case 5 | 6:
                name = self.name("filter")
                limit = draw.choice(("", "", ", 20", ", n / 4", ", ratio * n"))
                holds = f"[&](int i) -> bool {{ return {self.value()} > 0.3; }}"
                self.line(f"int* {name} = filter(range(n), {holds}{limit});")
                self.indices.append(name)
            case 7:
                name = self.name("top")
                over = draw.choice((v, f"abs({v})", f"chunk({v}, {draw.choice((10, 130))})"))
                most = "3" if "chunk" in over else draw.choice(("5", "n / 6 + 1"))
                self.line(f"int* {name} = topk({over}, {most});")
                self.indices.append(name)
            case 8 if self.indices:
                name, index = self.name("values"), draw.choice(self.indices)
                self.line(f"float* {name} = gather({self.plain()}, {index});")
                self.sparse.append((name, index))
                if draw.random() < 0.4:
                    self.line(f"float {name}_sum = reduce({name}, add);")
                    self.scalars.append(f"{name}_sum")
            case 9 if self.indices:
                name = self.name("put")
                what, index = draw.choice(
                    [*self.sparse, (draw.choice(self.scalars), draw.choice(self.indices))]
                )
                self.line(f"float* {name} = scatter({draw.choice(('n', v))}, {index}, {what});")
                self.dense.append(name)
            case _:
                name = self.name("sample")
                self.line(f"float* {name} = sample({self.plain()}, {draw.choice(('7', 'n / 9 + 2'))});")
                one = draw.choice((f"reduce({name}, greater)", f"sort({name}, smaller)[0]"))
                self.line(f"float {name}_of = {one};")
                self.scalars.append(f"{name}_of")

    def text(self) -> str:
        for _ in range(self.draw.randint(4, 9)):
            self.statement()
        if not self.indices:
            self.line("int* all = filter(range(n), [&](int i) -> bool { return gradient[i] != 0; });")
            self.indices.append("all")
        index, whole = self.draw.choice(self.indices), self.draw.choice(self.dense)
        scalar, elem = self.draw.choice(self.scalars), self.draw.choice(("float", "int8", "uint4", "bool"))
        order = ["one", "index", "value", "whole"]
        self.draw.shuffle(order)
        put = self.draw.choice(
            ("scatter(n, index, value)", f"scatter({self.draw.choice(self.dense)}, index, 0)")
        )
        statements = "\n".join(self.lines)
        declared = {
            "one": "float one;",
            "index": "uint32* index;",
            "value": "float* value;",
            "whole": f"{elem}* whole;",
        }
        return f"""
void RandomEncode(float* gradient, uint8* compressed, state float* a, state float* b, float ratio = 0.25) {{
    int n = gradient.size;
    float* table = {{0.5, -2, 3, 0.125}};
{statements}
    float one = {scalar};
    uint32* index = {index};
    float* value = gather({self.plain()}, index);
    {elem}* whole = map(range(n), [&](int i) -> {elem} {{ return {whole}[i]; }});
    compressed = concat({", ".join(order)});
    a = {self.draw.choice(self.dense)} * 0.5;
    b = {put};
}}
void RandomDecode(uint8* compressed, float* gradient) {{
    {" ".join(declared.values())}
    extract(compressed, {", ".join(order)});
    float* placed = scatter(gradient.size, index, value);
    int last = gradient.size - 1;
    gradient = map(range(gradient.size), [&](int i) -> float {{ return placed[i] + one * whole[last - i]; }});
}}
"""
