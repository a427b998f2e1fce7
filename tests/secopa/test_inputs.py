"""What users write is read as meant, or refused with where, what and how to mend it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secopa.inputs import (
    Gradient,
    SecopaError,
    parse_bandwidth,
    parse_latency,
    parse_params,
    parse_sizes,
    parse_topology,
    read_gradients,
)


def write(folder, content):
    path = folder / "input.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_gradients_are_read_in_order(tmp_path):
    path = write(tmp_path, "# model\r\nconv.weight, 432\r\n\r\n fc.bias ,10")
    assert read_gradients(path) == (Gradient("conv.weight", 432), Gradient("fc.bias", 10))


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("a,1\nb\n", 2, "`b` is not `name,elements`"),
        ("a,1,y\n", 1, "`a,1,y` is not `name,elements`"),
        (",5\n", 1, "is not `name,elements`"),
        ("a,many\n", 1, "`many` is not a number of elements"),
        ("a,1e6\n", 1, "`1e6` is not a number of elements"),
        ("a,1_000\n", 1, "`1_000` is not a number of elements"),
        ("a,\n", 1, "`` is not a number of elements"),
        ("a,2.5\n", 1, "`2.5` is not a number of elements"),
        ("a,0\n", 1, "`a` has 0 elements; a gradient has 1 or more"),
        ("a,1\nb,-7\n", 2, "`b` has -7 elements; a gradient has 1 or more"),
        ("a,999999999999999999\n", 1, "a gradient has at most 2^48"),
        ("a," + "9" * 5000, 1, "a gradient has at most 2^48"),
        ("# x\na,1\nb,2\na,3\n", 4, "the name `a` stands in line 2 already"),
        ("", 1, "holds no gradients"),
        ("# only a comment\n\n", 1, "holds no gradients"),
        (b"a,1\nb\xff,2\n", 2, "not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_remedy(tmp_path, content, line, what):
    path = write(tmp_path, content)
    with pytest.raises(SecopaError) as caught:
        read_gradients(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert what in str(caught.value)
    assert ";" in str(caught.value), "the remedy follows a semicolon"


def test_all_bad_lines_are_told_at_once(tmp_path):
    path = write(tmp_path, "a\nb,2\nc,0\nb,3\n")
    with pytest.raises(SecopaError) as caught:
        read_gradients(path)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "3", "4"]


def test_a_missing_file_says_how_to_write_it(tmp_path):
    with pytest.raises(SecopaError, match=r"no such file; write it with casync\.torch\.write_gradients"):
        read_gradients(tmp_path / "input.txt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(SecopaError, match="cannot be read"):
        read_gradients(tmp_path)


@given(st.binary(max_size=200))
def test_no_file_brings_anything_but_gradients_or_a_clear_error(tmp_path_factory, content):
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        gradients = read_gradients(path)
    except SecopaError:
        return
    assert gradients
    assert all(g.elements >= 1 for g in gradients)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("100mbit", 1e8), ("2.5 Gbit", 2.5e9), ("800kbit", 8e5), ("9600bit", 9600), ("1TBIT", 1e12)],
)
def test_bandwidths_are_read_in_decimal_units(text, bits):
    assert parse_bandwidth(text) == bits


@pytest.mark.parametrize(
    "text", ["", "100", "mbit", "-1gbit", "1mb", "100MB/s", "nan gbit", "1e3mbit", "0gbit"]
)
def test_a_bad_bandwidth_is_refused_with_an_example(text):
    with pytest.raises(SecopaError, match=r"--bandwidth .*write e.g. --bandwidth 100mbit"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("100us", 1e-4), ("1.5ms", 1.5e-3), ("0s", 0.0), ("50ns", 5e-8)]
)
def test_latencies_are_read(text, seconds):
    assert parse_latency(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["100", "1m", "-1us"])
def test_a_bad_latency_is_refused_with_an_example(text):
    with pytest.raises(SecopaError, match=r"--latency .*write e.g. --latency 100us"):
        parse_latency(text)


def test_topologies_are_read_in_any_case():
    assert parse_topology("ring") == "RING"
    assert parse_topology("PS") == "PS"


@pytest.mark.parametrize(
    ("text", "hint"),
    [("RNG", "did you mean RING?"), ("p", "did you mean PS?"), ("tree", "choose one of them")],
)
def test_an_unknown_topology_names_the_known_ones(text, hint):
    with pytest.raises(SecopaError) as caught:
        parse_topology(text)
    assert "there are PS and RING" in str(caught.value)
    assert hint in str(caught.value)


def test_parameters_are_read_with_their_types():
    read = parse_params(["bitwidth=4", "ratio=0.01", "exact=true"])
    assert read == {"bitwidth": 4, "ratio": 0.01, "exact": True}


@pytest.mark.parametrize(
    "texts", [["bitwidth"], ["=4"], ["bitwidth="], ["a b=1"], ["mode=fast"], ["x=1"] * 2]
)
def test_a_bad_parameter_is_refused(texts):
    with pytest.raises(SecopaError, match=r"--param"):
        parse_params(texts)


def test_sizes_are_read_ascending():
    assert parse_sizes("65536, 4096,1048576") == (4096, 65536, 1048576)


@pytest.mark.parametrize("text", ["", "4096,8192", "1,1,2", "0,1,2", "1,2,x", "1,2,-3"])
def test_bad_sizes_are_refused_with_an_example(text):
    with pytest.raises(SecopaError, match=r"--sizes .*three or more"):
        parse_sizes(text)
