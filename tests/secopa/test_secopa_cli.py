"""The command line, as users call it; every error exits with 2 and says how to mend it."""

import subprocess
import sys

import pytest
from secopa_profiles import profile_of
from typer.testing import CliRunner

import compll
from casync.plan import Plan
from secopa import profile
from secopa.cli import app

GRADIENTS = "conv.weight,432\nconv.bias,16\ndense.weight,1000000\nout.weight,2560\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with an input, a profile of the real TernGrad with given curves, its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPLL_BACKEND", "interp")
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "input.txt").write_text(GRADIENTS)
    curves = [(0.5, 0.6, 2.0)] * 3
    taken = profile.conditions(compll.compile("terngrad"))
    profile_of(*curves, (0.01, 0.02, 0.5), conditions=taken).save(tmp_path / "profile.json")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plan(*extra, topology="PS", nnodes=2, gradients="input.txt"):
    return run("plan", "--input", gradients, "--topology", topology, "--nnodes", nnodes, *extra)


MEASURED = ("--profile", "profile.json", "--bandwidth", "100mbit")


@pytest.mark.parametrize("topology", ["PS", "RING"])
def test_a_plan_is_written_and_read_back_by_the_runtime(folder, topology):
    result = plan(*MEASURED, topology=topology)
    assert result.exit_code == 0, result.output
    text = (folder / "SeCoPaPlan.txt").read_text()
    assert "dense.weight,y,2\n" in text
    assert "conv.bias,n,2\n" in text
    assert f"# topology: {topology}\n" in text
    assert "# nnodes: 2\n" in text
    assert "# bandwidth: 100mbit\n" in text
    Plan.load(folder / "SeCoPaPlan.txt").save(folder / "again.txt")
    assert (folder / "again.txt").read_text() == text


def test_the_output_says_for_what_it_plans_and_what_is_gained(folder):
    result = plan(*MEASURED, "--latency", "50us", "--output", "my.txt")
    for part in (
        "Planned for PS on 2 nodes, a link of 100mbit, 50us a message; codec terngrad(",
        "cost model: measured.",
        "Compressed: 1 of 4 gradients",
        "ms a step without compression,",
        "Wrote my.txt",
    ):
        assert part in result.stdout
    assert (folder / "my.txt").exists()


@pytest.mark.usefixtures("folder")
def test_reasons_are_given_for_each_gradient(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = plan(*MEASURED, "--reasons")
    assert "saves" in result.stdout
    assert result.stdout.count("cost more than the bytes they save") == 3


def test_a_plan_in_which_nothing_pays_says_so(folder):
    result = plan("--profile", "profile.json", "--bandwidth", "1tbit")
    assert result.exit_code == 0
    assert "Nothing pays" in result.stdout
    assert "Nearest: dense.weight" in result.stdout
    assert "Train without compression" in result.stdout
    assert "dense.weight,n,2\n" in (folder / "SeCoPaPlan.txt").read_text()


def test_a_small_model_is_costed_as_the_one_bucket_that_it_fills(folder):
    (folder / "small.txt").write_text("a,1000\nb,3000\n")
    result = plan(*MEASURED, gradients="small.txt", topology="RING")
    # Two messages of 4000 elements and a header over 100 Mbit/s, 100 us each, and one merge of 0.01 ms.
    expected = 2 * (0.1 + 8 * (32 + 16_000) / 1e5) + 0.01
    assert f"{expected:.4g} ms a step without compression" in result.stdout


@pytest.mark.usefixtures("folder")
def test_one_node_sends_nothing():
    assert "a single node sends nothing" in plan(*MEASURED, nnodes=1).stdout


@pytest.mark.usefixtures("folder")
def test_a_link_that_was_not_stated_is_told():
    result = plan("--profile", "profile.json")
    assert "no --bandwidth given, so this plans for 1gbit" in result.stderr
    assert "a link of 1gbit, 100us a message" in result.stdout


def test_the_published_model_needs_no_codec_and_no_profile(folder):
    result = plan("--cost", "hipress", nnodes=4)
    assert result.exit_code == 0, result.output
    assert "56 Gbit/s" in result.stdout
    text = (folder / "SeCoPaPlan.txt").read_text()
    assert "# cost: hipress\n" in text
    assert "conv.weight,n,4\n" in text


def test_without_a_profile_it_measures_once_and_caches(folder, monkeypatch):
    monkeypatch.setattr(profile, "QUICK_SIZES", (64, 128, 256))
    first = plan("--bandwidth", "100mbit")
    assert first.exit_code == 0, first.output
    assert "measured terngrad(" in first.stderr
    written = (folder / "SeCoPaPlan.txt").read_text()
    second = plan("--bandwidth", "100mbit")
    assert "using the curves measured earlier" in second.stderr
    assert (folder / "SeCoPaPlan.txt").read_text() == written
    [cached] = (folder / "cache" / "profiles").iterdir()
    cached.write_text("{")
    assert "measuring anew" in plan("--bandwidth", "100mbit").stderr


@pytest.mark.usefixtures("folder")
def test_a_profile_is_written_and_planned_with():
    result = run("profile", "--sizes", "64,128,256", "--output", "mine.json")
    assert result.exit_code == 0, result.output
    assert "encode ms" in result.stdout
    assert plan("--profile", "mine.json", "--bandwidth", "100mbit").exit_code == 0


def test_a_profile_of_another_machine_is_used_and_told(folder):
    text = (folder / "profile.json").read_text()
    (folder / "profile.json").write_text(text.replace('"local_ranks": 1', '"local_ranks": 4'))
    result = plan(*MEASURED)
    assert result.exit_code == 0
    assert "taken under other conditions: local_ranks 4 there, 1 here" in result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("other", [["--codec", "onebit"], ["--param", "bitwidth=4"], ["--error-feedback"]])
def test_a_profile_of_another_codec_is_refused(other):
    result = plan(*MEASURED, *other)
    assert result.exit_code == 2
    assert "profile.json: measured for the codec terngrad(" in result.stderr
    assert "measure it with: secopa profile --codec" in result.stderr


BAD = [
    ({"topology": "RIGN"}, "--topology RIGN: unknown topology; there are PS and RING: did you mean RING?"),
    ({"nnodes": 0}, "--nnodes 0: a job has 1 node or more"),
    ({"nnodes": -2}, "--nnodes -2: a job has 1 node or more"),
    ({"nnodes": "two"}, "Invalid value for '--nnodes'"),
    ({"gradients": "none.txt"}, "none.txt: there is no such file"),
    ({"gradients": "empty.txt"}, "empty.txt:1: holds no gradients"),
    ({"gradients": "bad.txt"}, "error: bad.txt:2: `b` is not `name,elements`"),
    ({"gradients": "bad.txt"}, "error: bad.txt:3: the name `a` stands in line 1 already"),
    ({"gradients": "bad.txt"}, "error: bad.txt:4: `c` has -3 elements"),
    (("--bandwidth", "fast"), "--bandwidth fast: not a number with a unit"),
    (("--bandwidth", "0mbit"), "--bandwidth 0mbit: must be more than zero"),
    (("--latency", "5"), "--latency 5: not a number with a unit"),
    (("--profile", "none.json"), "none.json: there is no such file; measure it with: secopa profile"),
    (("--codec", "terngard"), "terngard"),
    (("--param", "bitwidth=99"), "bitwidth"),
    (("--param", "bitwidth"), "--param bitwidth: not name=value"),
    (("--cost", "magic"), "'magic' is not one of"),
    (("--cost", "hipress"), "--nnodes 2: the published constants (--cost hipress) exist for 4, 8 and 16"),
    (("--cost", "hipress", "--bandwidth", "1gbit"), "--bandwidth: the published model has its own link"),
    (("--cost", "hipress", "--codec", "onebit"), "--codec: the published model has its own link"),
    (("--output", "nowhere/plan.txt"), "--output nowhere/plan.txt: not a file in an existing folder"),
    (("--output", "input.txt"), "--output input.txt: would overwrite the input"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_exits_with_2_and_says_how_to_mend_it(folder, monkeypatch, change, message):
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "empty.txt").write_text("")
    (folder / "bad.txt").write_text("a,1\nb\na,2\nc,-3\n")
    result = plan(**change) if isinstance(change, dict) else plan(*change)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "SeCoPaPlan.txt").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("sizes", ["1,2", "a,b,c"])
def test_bad_sizes_exit_with_2(sizes):
    result = run("profile", "--sizes", sizes)
    assert result.exit_code == 2
    assert f"--sizes {sizes}: not three or more different numbers" in result.stderr


@pytest.mark.usefixtures("folder")
def test_the_module_runs_as_a_program():
    command = [
        sys.executable,
        "-m",
        "secopa",
        "plan",
        "--input",
        "none.txt",
        "--topology",
        "PS",
        "--nnodes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.txt: there is no such file")
