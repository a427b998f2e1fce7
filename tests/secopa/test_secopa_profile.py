"""Profiles: curves are read as documented, files come back as written, the real codec can be measured."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secopa_profiles import CONDITIONS, SIZES, profile_of, profiles

import compll
from compll import knobs
from secopa.inputs import SecopaError
from secopa.profile import Curve, Profile, cache_path, conditions, difference, measure


def test_a_curve_is_linear_between_points_flat_below_and_proportional_beyond():
    curve = Curve(((1000, 1.0), (3000, 2.0), (4000, 8.0)))
    assert curve(1) == 1.0
    assert curve(2000) == 1.5
    assert curve(3500) == 5.0
    assert curve(8000) == 16.0


def test_a_dip_in_the_medians_is_levelled():
    curve = Curve(((1000, 1.0), (2000, 0.5), (3000, 3.0)))
    assert curve(2000) == 1.0
    assert curve(2500) == 2.0


@given(profiles, st.floats(1, 1e8), st.floats(1, 10))
def test_more_elements_never_cost_less(profile, x, factor):
    assert profile.encode(x) <= profile.encode(x * factor) * (1 + 1e-12)


@pytest.mark.parametrize(
    "points",
    [(), ((0, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 1.0), (1, 2.0)), ((1, -1.0),), ((1, float("nan")),)],
)
def test_a_curve_of_nonsense_is_refused(points):
    with pytest.raises(SecopaError, match="a curve"):
        Curve(points)


@given(profiles)
def test_a_file_comes_back_as_written(tmp_path_factory, profile):
    path = tmp_path_factory.getbasetemp() / "profile.json"
    profile.save(path)
    assert Profile.load(path) == profile


def broken(change):
    """The data of a good file, changed."""
    data = {
        "format": 1,
        "conditions": dataclasses.asdict(CONDITIONS),
        "curves_elements_ms": {key: [[4096, 1.0]] for key in ("encode", "decode", "decode_add", "merge")},
    }
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{\n oops", "not JSON in line 2"),
        ("[]", "not a profile"),
        ("{}", "not a profile: KeyError 'format'"),
        (broken(lambda d: d.update(format=9)), "its format is 9"),
        (broken(lambda d: d.pop("conditions")), "not a profile: KeyError 'conditions'"),
        (broken(lambda d: d["conditions"].update(cores="two")), "condition cores is not int"),
        (broken(lambda d: d["conditions"].pop("cpu")), "KeyError 'cpu'"),
        (broken(lambda d: d["conditions"].update(extra=1)), "TypeError"),
        (broken(lambda d: d["curves_elements_ms"].pop("merge")), "KeyError 'merge'"),
        (broken(lambda d: d["curves_elements_ms"].update(merge=[[1, 2, 3]])), "ValueError"),
        (broken(lambda d: d["curves_elements_ms"].update(merge=[[1, -2.0]])), "a curve's times"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_remedy(tmp_path, text, what):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(SecopaError) as caught:
        Profile.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert what in str(caught.value)
    assert f"measure it with: secopa profile --output {path}" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SecopaError, match="there is no such file"):
        Profile.load(tmp_path / "none.json")


def test_the_cache_holds_one_file_for_each_set_of_conditions(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path))
    others = [
        dataclasses.replace(CONDITIONS, **{field.name: change})
        for field in dataclasses.fields(CONDITIONS)
        for change in ["x" if field.type == "str" else 77]
    ]
    paths = {cache_path(taken) for taken in [CONDITIONS, *others]}
    assert len(paths) == 1 + len(others)
    assert all(tmp_path in path.parents for path in paths)


def test_differences_are_named():
    other = dataclasses.replace(CONDITIONS, cores=8, backend="cpp")
    assert difference(other, CONDITIONS) == "backend cpp there, interp here; cores 8 there, 2 here"


@pytest.mark.parametrize("local_ranks", [1, 2])
@pytest.mark.parametrize("name", ["terngrad", "onebit"])
def test_a_codec_is_measured_under_its_conditions(name, local_ranks):
    codec = compll.compile(name, backend="interp")
    profile = measure(codec, (64, 4096, 20_000), local_ranks=local_ranks, seconds=0.0)
    assert profile.conditions == conditions(codec, local_ranks)
    assert profile.conditions.backend == "interp"
    assert profile.conditions.fingerprint == codec.info.fingerprint
    for curve in (profile.encode, profile.decode, profile.decode_add, profile.merge):
        assert [elements for elements, _ in curve.points] == [64, 4096, 20_000]
        assert all(ms > 0 for _, ms in curve.points)


def test_measuring_tells_its_progress():
    told = []
    measure(compll.compile("terngrad", backend="interp"), (64, 128, 256), seconds=0.0, progress=told.append)
    assert told[0] == "encode 64 elements"
    assert len(told) == 3 * 4


def test_local_ranks_share_the_threads(monkeypatch):
    monkeypatch.setattr(knobs, "threads", lambda: 4)
    codec = compll.compile("terngrad", backend="interp")
    assert [conditions(codec, ranks).threads for ranks in (1, 2, 8)] == [4, 2, 1]


def test_the_file_is_readable_by_people(tmp_path):
    path = tmp_path / "profile.json"
    profile_of((1, 2, 3), (1, 2, 3), (1, 2, 3), (0.5, 1, 2)).save(path)
    lines = path.read_text().splitlines()
    assert '    "merge": [[4096, 0.5], [65536, 1], [1048576, 2]]' in lines
    assert len(SIZES) == 3
