"""Examples of every command: `--help` shows them, `docs/tools.md` lists them, and tests run them."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "check": (
        ("compll check mine.pse", "all errors of a program at once"),
        ("compll check TernGradEncode.pse TernGradDecode.pse", "a codec in two files"),
        ("compll check mine.pse --json", "errors with their places, for an editor"),
    ),
    "fmt": (
        ("compll fmt mine.pse", "write it anew, in the one layout"),
        ("compll fmt --check mine.pse", "change nothing; exit code 1 if it would"),
    ),
    "show": (
        ("compll show onebit", "the passes over memory that the compiler makes of it"),
        ("compll show terngrad -p bitwidth=4 --emit cpp", "the C++ for another width"),
    ),
    "run": (
        ("compll run mine.pse", "every backend here, edge cases, damaged payloads, properties"),
        ("compll run terngrad --backend cpp -n 1000000 -p bitwidth=4", "one backend, a longer gradient"),
        ("compll run mine.pse --backend cpp --plot mine.png", "and a picture of what arrives"),
        ("compll run mine.pse --backend cpp --json", "the same for a script"),
    ),
    "bench": (
        ("compll bench onebit terngrad --n 2^20", "two codecs, every operation"),
        (
            "compll bench mine.pse --n 2^20 --threads 1,2 --operation encode,decode",
            "your own, by one and two threads",
        ),
    ),
    "build": (
        ("compll build mine.pse -o out", "the C++ library, with its source and header"),
        ("compll build TernGradEncode.pse -b", "as the original generator was called"),
    ),
    "generate": (("compll generate --check", "is the checked-in output of the compiler fresh?"),),
    "algorithms": (
        ("compll algorithms", "what ships"),
        ("compll algorithms --json", "everything about it, for a script"),
    ),
    "env": (("compll env", "compiler, backends, threads and cache"),),
    "new": (
        ("compll new Mine", "a quantizer, commented, in mine.pse"),
        ("compll new Picky --sparse", "one that sends the greatest elements"),
    ),
}

EXIT_CODES = (
    (0, "what was asked for is done, and every check passed"),
    (1, "a program is wrong, a check failed, or something cannot be done here; the message says what"),
    (2, "the command line itself is wrong"),
)


def epilog(command: str) -> str:
    """Return the examples of a command as the last part of its help."""
    lines = (f"{line}   {what}" for line, what in EXAMPLES[command])
    return "\n\n".join(("Examples:", *lines))


def exit_codes() -> str:
    """Return what exit codes mean, as the last part of the help of all."""
    return "\n\n".join(("Exit codes:", *(f"{code}   {what}" for code, what in EXIT_CODES)))
