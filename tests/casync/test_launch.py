from __future__ import annotations

import pytest

from casync import knobs, launch
from casync.launch import Launch, LaunchError, Rank0, Store, World

HOROVOD = {
    "HOROVOD_RANK": "1",
    "HOROVOD_SIZE": "2",
    "HOROVOD_LOCAL_RANK": "1",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
    "HOROVOD_GLOO_RENDEZVOUS_PORT": "4321",
    "HOROVOD_GLOO_IFACE": "lo",
}
CASYNC = {"CASYNC_RANK": "2", "CASYNC_SIZE": "3", "CASYNC_ADDR": "node7:4000"}


def test_without_a_launcher_a_process_is_rank_0_of_1() -> None:
    assert launch.find({}) == Launch(0, 1)


def test_horovodrun_is_found() -> None:
    assert launch.find(HOROVOD) == Launch(1, 2, 1, 2, Store("127.0.0.1", 4321), "lo")


def test_own_variables_are_found_and_come_before_horovods() -> None:
    assert launch.find(HOROVOD | CASYNC) == Launch(2, 3, None, None, Rank0("node7", 4000), "")


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert launch.find(CASYNC | {"CASYNC_ADDR": "[fd00::1]:80"}).meeting == Rank0("fd00::1", 80)


def test_the_interface_can_be_named_whatever_the_launcher_says() -> None:
    assert launch.find(HOROVOD | {"CASYNC_IFACE": "eth7"}).interface == "eth7"


def test_a_single_rank_needs_no_address() -> None:
    assert launch.find({"CASYNC_RANK": "0", "CASYNC_SIZE": "1"}) == Launch(0, 1)


@pytest.mark.parametrize("missing", sorted(CASYNC))
def test_a_missing_variable_is_named_with_the_mend(missing: str) -> None:
    env = {name: value for name, value in CASYNC.items() if name != missing}
    with pytest.raises(LaunchError, match=f"^{missing} not set.*horovodrun --gloo"):
        launch.find(env)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "torchrun"),
    ],
)
def test_a_launcher_that_cannot_be_joined_yet_is_named_with_what_works(
    env: dict[str, str], named: str
) -> None:
    with pytest.raises(LaunchError, match=rf"{named}.*horovodrun --gloo.*CASYNC_ADDR"):
        launch.find(env)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, Launch(0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, Launch(3, 4, meeting=World())),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Launch(3, 4, 1, 2, World()),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Launch(1, 2, meeting=World())),
    ],
)
def test_mpi_is_found(env: dict[str, str], place: Launch) -> None:
    assert launch.find(env) == place
    assert launch.find(env | HOROVOD) == launch.find(HOROVOD)


def test_a_number_that_mpirun_did_not_set_is_named() -> None:
    with pytest.raises(LaunchError, match="OMPI_COMM_WORLD_SIZE='', but mpirun sets it to a number"):
        launch.find({"OMPI_COMM_WORLD_RANK": "0"})


def test_horovod_without_its_rendezvous_is_named() -> None:
    env = {name: value for name, value in HOROVOD.items() if "ADDR" not in name}
    with pytest.raises(LaunchError, match="HOROVOD_GLOO_RENDEZVOUS_ADDR"):
        launch.find(env)
    with pytest.raises(LaunchError, match="HOROVOD_SIZE='two'"):
        launch.find(HOROVOD | {"HOROVOD_SIZE": "two"})


def test_a_rank_beyond_the_size_is_refused() -> None:
    with pytest.raises(LaunchError, match="rank 3 of 3"):
        launch.find(CASYNC | {"CASYNC_RANK": "3"})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("CASYNC_RANK", "-1"),
        ("CASYNC_RANK", "one"),
        ("CASYNC_SIZE", "0"),
        ("CASYNC_ADDR", "nowhere"),
        ("CASYNC_ADDR", "host:99999"),
        ("CASYNC_ADDR", "::1:80"),
        ("CASYNC_ADDR", "[::1:80"),
        ("CASYNC_ADDR", "[node7]:80"),
        ("CASYNC_ADDR", "[::1]"),
        ("CASYNC_ENCRYPT", "yes"),
        ("CASYNC_LOCAL_SIZE", "0"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_what_is_allowed(name: str, wrong: str) -> None:
    allowed = next(knob.allowed for knob in knobs.knobs() if knob.name == name)
    with pytest.raises(knobs.KnobError) as refused:
        launch.find(CASYNC | {name: wrong})
        knobs.ENCRYPT.get({name: wrong})
    assert f"{name}={wrong!r}" in str(refused.value)
    assert allowed in str(refused.value)


@pytest.mark.parametrize("wrong", ["2.9", "-1", "inf", "nan", "soon"])
def test_a_timeout_is_at_least_three_seconds(wrong: str) -> None:
    with pytest.raises(knobs.KnobError, match=r"CASYNC_TIMEOUT=.*3 or more"):
        knobs.TIMEOUT.get({"CASYNC_TIMEOUT": wrong})
    assert knobs.TIMEOUT.get({}) == 60
    assert knobs.TIMEOUT.get({"CASYNC_TIMEOUT": "3"}) == 3


def test_every_knob_is_named_once_and_documented() -> None:
    names = [knob.name for knob in knobs.knobs()]
    assert len(set(names)) == len(names)
    assert all(knob.name.startswith("CASYNC_") and knob.meaning and knob.allowed for knob in knobs.knobs())
