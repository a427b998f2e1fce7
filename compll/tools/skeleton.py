"""Programs to begin with: `compll new` writes one, with comments that say what may be changed."""

from __future__ import annotations

import re
from pathlib import Path

from compll.errors import ParameterError

HEADER = """\
// {file}: say in a line what it sends.
// Say where it comes from: authors, title, where and when it was published.
//     and its formula, such as   q_i = round(g_i / scale)
// `compll run {file}.pse` tries it on every backend; grammar/language.md says what a program means.
"""

PLAIN = """
// Encode gets n = gradient.size floats and gives bytes.  A parameter has a default, and may have a range.
void {name}Encode(float* gradient, uint8* compressed, [[range(1, 65536)]] int block = 256) {
    // One value for each block: the greatest size in it, by the steps that 8 bits have on one side.
    float* scale = max(reduce(chunk(abs(gradient), block), 0, greater) / 127, 1e-45);
    // One value for each element i.  What does not fit the type is cut to its limits: nothing overflows.
    int8* level = map(range(gradient.size), [&](int i) -> int8 {
        return round(gradient[i] / scale[i / block]);
    });
    compressed = concat(scale, level);
}

// Decode takes the same fields apart, in the order of concat, and gives n floats.
void {name}Decode(uint8* compressed, float* gradient, [[range(1, 65536)]] int block = 256) {
    float* scale;
    int8* level;
    extract(compressed, scale, level);
    gradient = map(range(gradient.size), [&](int i) -> float { return level[i] * scale[i / block]; });
}
"""

STATE = """
// A state has n floats, 0 before the first step.  This one is what the payloads so far have left out.
void {name}Encode(float* gradient, uint8* compressed, state float* residual) {
    float* x = gradient + residual;
    // A reduction over all elements: the mean size.
    float scale = reduce(abs(x), 0, add) / max(x.size, 1);
    uint1* positive = x >= 0;
    compressed = concat(scale, positive);
    // decode(compressed) is what Decode below makes of the payload: what it misses is kept for the next step.
    residual = x - decode(compressed);
}

// Decode takes the same fields apart, in the order of concat, and gives n floats.
void {name}Decode(uint8* compressed, float* gradient) {
    float scale;
    uint1* positive;
    extract(compressed, scale, positive);
    gradient = positive ? scale : -scale;
}
"""

SPARSE = """
// [[drops]] says that a NaN or an infinity may be lost; without it every one has to be seen after decode.
[[drops]]
void {name}Encode(float* gradient, uint8* compressed, [[range(1e-6, 1)]] float ratio = 0.01) {
    // The elements that are at least half as great as the greatest one that is finite ...
    float* size = map(gradient, [&](float g) -> float { return abs(g) < inf ? abs(g) : 0; });
    float threshold = reduce(size, 0, greater) / 2;
    lambda_func sent = [&](int i) -> bool { return size[i] >= threshold && size[i] > 0; };
    // ... the first ones of them, at most as many as `ratio` allows: the limit bounds the payload.
    uint32* index = filter(range(gradient.size), sent, ceil(ratio * gradient.size));
    compressed = concat(index, gather(gradient, index));
}

// What was not sent is 0.  Compile it with error_feedback=True to send that later.
void {name}Decode(uint8* compressed, float* gradient) {
    uint32* index;
    float* value;
    extract(compressed, index, value);
    gradient = scatter(gradient.size, index, value);
}
"""

RANDOM = """
// [[unbiased]] promises that the mean of many decodings is the gradient; `compll run` tests it.
[[unbiased]]
void {name}Encode(float* gradient, uint8* compressed, [[range(1, 8)]] uint8 bits = 4) {
    float low = reduce(gradient, smaller);
    float gap = (reduce(gradient, greater) - low) / ((1 << bits) - 1);
    // stochastic_round gives one of the two integers beside x, the nearer one more often.
    uint<bits>* level = stochastic_round((gradient - low) / gap);
    compressed = concat(low, gap, level);
}

// Decode takes the same fields apart, in the order of concat, and gives n floats.
void {name}Decode(uint8* compressed, float* gradient, [[range(1, 8)]] uint8 bits = 4) {
    float low, gap;
    uint<bits>* level;
    extract(compressed, low, gap, level);
    gradient = level * gap + low;
}
"""

KINDS = {"plain": PLAIN, "state": STATE, "sparse": SPARSE, "random": RANDOM}


def text(name: str, kind: str = "plain") -> str:
    """Return a program of one of `KINDS` for a codec of a name.

    Raises:
        ParameterError: a codec cannot have that name.

    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ParameterError(f"'{name}' is no name for a codec: write letters, digits and _, such as MyCodec")
    title = name[0].upper() + name[1:]
    return (HEADER + KINDS[kind]).replace("{name}", title).replace("{file}", title.lower())


def write(name: str, kind: str = "plain", *, folder: Path) -> Path:
    """Write a program to `folder`, which is made; return its path.

    Raises:
        ParameterError: a codec cannot have that name, or the file is there already.

    """
    content = text(name, kind)
    path = folder / f"{name.lower()}.pse"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise ParameterError(f"'{path}' is there already: take another name, or remove it first") from None
    return path
