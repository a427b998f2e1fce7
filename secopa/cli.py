"""The command line: `secopa plan` and `secopa profile`. Errors go to stderr; the exit code is then 2."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

import compll
from casync.plan import Entry, Plan
from compll.codec import BackendError, Codec, CompileError, ParameterError
from secopa import cost, planner, profile, report
from secopa.inputs import (
    SecopaError,
    parse_bandwidth,
    parse_latency,
    parse_params,
    parse_sizes,
    parse_topology,
    read_gradients,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_CODEC: Final = "terngrad"
DEFAULT_BANDWIDTH: Final = "1gbit"
DEFAULT_LATENCY: Final = "100us"
"""One message's fixed cost: kernel and switch, and the runtime's own handling of a task."""

app = typer.Typer(
    name="secopa",
    help="Decide for each gradient whether compressing pays, and into how many partitions to cut it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class CostModel(StrEnum):
    """Where the costs come from."""

    measured = "measured"
    hipress = "hipress"


CodecOption = Annotated[
    str | None,
    typer.Option("--codec", help=f"A shipped name or a .pse file. [default: {DEFAULT_CODEC}]"),
]
ParamOption = Annotated[
    list[str] | None, typer.Option("--param", help="A parameter of the codec, name=value; may be repeated.")
]
FeedbackOption = Annotated[
    bool, typer.Option("--error-feedback", help="The codec is compiled with error_feedback=True.")
]
LocalRanksOption = Annotated[
    int, typer.Option("--local-ranks", min=1, help="Ranks that share this machine's cores while training.")
]


@app.command("plan")
def plan_command(
    input_: Annotated[Path, typer.Option("--input", help="The gradients: `name,elements` a line.")],
    topology: Annotated[str, typer.Option("--topology", help="PS or RING.")],
    nnodes: Annotated[int, typer.Option("--nnodes", help="Nodes that synchronise with each other.")],
    bandwidth: Annotated[
        str | None,
        typer.Option("--bandwidth", help=f"A node's link, e.g. 100mbit. [default: {DEFAULT_BANDWIDTH}]"),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option("--latency", help=f"The fixed cost of a message. [default: {DEFAULT_LATENCY}]"),
    ] = None,
    codec: CodecOption = None,
    param: ParamOption = None,
    error_feedback: FeedbackOption = False,
    profile_file: Annotated[
        Path | None,
        typer.Option("--profile", help="Curves of `secopa profile`. [default: measured now and cached]"),
    ] = None,
    cost_model: Annotated[
        CostModel, typer.Option("--cost", help="measured: on this machine, any N. hipress: as published.")
    ] = CostModel.measured,
    output: Annotated[Path, typer.Option("--output", help="The plan to write.")] = Path("SeCoPaPlan.txt"),
    local_ranks: LocalRanksOption = 1,
    reasons: Annotated[bool, typer.Option("--reasons", help="Print why, gradient by gradient.")] = False,
) -> None:
    """Write a plan: which gradients to compress, and into how many partitions to cut each."""
    with _clear_errors():
        gradients = read_gradients(input_)
        _check_output(output, input_)
        conditions = {"topology": parse_topology(topology), "nnodes": str(nnodes)}
        if cost_model is CostModel.hipress:
            given = {"--bandwidth": bandwidth, "--latency": latency, "--codec": codec, "--param": param}
            _refuse_with_hipress({**given, "--profile": profile_file})
            model = cost.published(conditions["topology"], nnodes)
            link_text = "the published cluster (56 Gbit/s, V100), payloads of 1/16 whatever the codec"
        else:
            speed, delay = bandwidth or DEFAULT_BANDWIDTH, latency or DEFAULT_LATENCY
            link = cost.Link(parse_bandwidth(speed), parse_latency(delay))
            cost.check_nnodes(nnodes)
            compiled = _compile(codec, param, error_feedback)
            curves = _curves(compiled, profile_file, local_ranks)
            model = cost.measured(
                conditions["topology"],
                nnodes,
                link,
                curves,
                compiled.max_bytes,
                planner.bucket_elements(gradients),
            )
            taken = curves.conditions
            conditions |= {"bandwidth": speed, "latency": delay, "codec": taken.title}
            link_text = (
                f"a link of {speed}, {delay} a message; codec {taken.title} ({taken.backend}, "
                f"threads: {taken.threads}, {taken.cpu})"
            )
            if bandwidth is None:
                _note(f"no --bandwidth given, so this plans for {DEFAULT_BANDWIDTH}; state your link's")
            if not compiled.info.exact_size:
                _note(f"payloads of {taken.title} vary in size: planned with their upper limit")
        decisions = planner.plan(gradients, model)
        conditions["cost"] = model.name
        entries = tuple(Entry(d.gradient.name, d.pays, d.chosen.partitions) for d in decisions)
        Plan(entries, conditions).save(output)
    if reasons:
        Console().print(report.reasons(decisions))
    typer.echo(f"Planned for {model.topology} on {nnodes} nodes, {link_text}; cost model: {model.name}.")
    typer.echo(report.summary(decisions))
    typer.echo(f"Wrote {output}")


@app.command("profile")
def profile_command(
    codec: CodecOption = None,
    param: ParamOption = None,
    error_feedback: FeedbackOption = False,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Elements, three sizes or more. [default: 4096 to 4194304]")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="The profile to write.")] = Path(
        "secopa-profile.json"
    ),
    local_ranks: LocalRanksOption = 1,
) -> None:
    """Measure encode, decode, decode_add and merge on this machine, for `secopa plan --profile`."""
    with _clear_errors():
        elements = parse_sizes(sizes) if sizes else profile.SIZES
        _check_output(output)
        curves = _measure(_compile(codec, param, error_feedback), elements, local_ranks, seconds=0.3)
        curves.save(output)
    Console().print(report.curves(curves))
    typer.echo(f"Wrote {output}")


def main() -> None:
    """Entry point of the console script."""
    app()


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print what is the user's to mend, and exit with 2; any other exception is a bug of ours."""
    try:
        yield
    except CompileError as error:
        text = str(error)
    except OSError as error:
        text = f"error: {error.filename}: {error.strerror}; name a file that may be written"
    except (SecopaError, ParameterError, BackendError) as error:
        text = "\n".join(f"error: {line}" for line in str(error).splitlines())
    else:
        return
    typer.echo(text, err=True)
    raise typer.Exit(2)


def _compile(name: str | None, params: list[str] | None, error_feedback: bool) -> Codec:
    values = parse_params(params or [])
    return compll.compile(name or DEFAULT_CODEC, "auto", error_feedback=error_feedback, **values)


def _curves(codec: Codec, path: Path | None, local_ranks: int) -> profile.Profile:
    """The profile in the file; without one the cached quick profile, measured first if there is none."""
    now = profile.conditions(codec, local_ranks)
    if path is not None:
        curves = profile.Profile.load(path)
        taken = curves.conditions
        if taken.fingerprint != now.fingerprint:
            raise SecopaError(
                f"{path}: measured for the codec {taken.title}, which is not this {now.title} "
                "(or another program or error feedback by that name); "
                f"measure it with: secopa profile --codec {now.codec} --output {path}"
            )
        if taken != now:
            _note(f"{path} was taken under other conditions: {profile.difference(taken, now)}")
        return curves
    cached = profile.cache_path(now)
    if cached.exists():
        try:
            curves = profile.Profile.load(cached)
            _note(f"using the curves measured earlier on this machine, {cached}")
            return curves
        except SecopaError as error:
            _note(f"measuring anew: {error}")
    curves = _measure(codec, profile.QUICK_SIZES, local_ranks, seconds=0.1)
    cached.parent.mkdir(parents=True, exist_ok=True)
    curves.save(cached)
    _note(f"measured {now.title} on this machine and cached the curves as {cached}")
    return curves


def _measure(codec: Codec, sizes: tuple[int, ...], local_ranks: int, seconds: float) -> profile.Profile:
    with Console(stderr=True).status("measuring") as status:
        return profile.measure(
            codec,
            sizes,
            local_ranks=local_ranks,
            seconds=seconds,
            progress=lambda what: status.update(f"measuring {what}"),
        )


def _refuse_with_hipress(options: dict[str, object]) -> None:
    for option, value in options.items():
        if value:
            raise SecopaError(
                f"{option}: the published model has its own link, ratio and curves; "
                "leave it out, or plan with --cost measured"
            )


def _check_output(output: Path, *inputs: Path) -> None:
    """Raise SecopaError before work is done that could not be written down."""
    if output.is_dir() or not output.parent.is_dir():
        raise SecopaError(f"--output {output}: not a file in an existing folder; create the folder first")
    if any(output.exists() and output.samefile(path) for path in inputs):
        raise SecopaError(f"--output {output}: would overwrite the input; name another file")


def _note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)
