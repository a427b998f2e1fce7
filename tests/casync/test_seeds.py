"""Seeds have known answers: a change of one bit here would change every random payload."""

from __future__ import annotations

from hashlib import blake2b

from casync.primitives import Role
from casync.seeds import gradient_word, mix, private_seed, shared_seed, splitmix64


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs for seed 1234567, whose state grows by the golden ratio each step."""
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in range(5)]
    assert [splitmix64(s % 2**64) for s in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_mix_folds_words_from_zero() -> None:
    assert mix() == 0
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(5) == splitmix64(5)
    assert mix(5, 7) == splitmix64(splitmix64(5) ^ 7)
    assert mix(1, 2) != mix(2, 1)


def test_a_gradient_is_the_first_8_bytes_of_its_name_s_blake2b() -> None:
    assert gradient_word("conv1.weight") == int.from_bytes(blake2b(b"conv1.weight").digest()[:8], "little")
    # RFC 7693, appendix A: BLAKE2b-512("abc") begins ba80a53f981c4d0d
    assert gradient_word("abc") == 0x0D4D1C983FA580BA


def test_the_shared_seed_is_known_and_differs_in_every_word() -> None:
    base = shared_seed(1, 2, "abc", 3)
    assert base == mix(1, 2, 0x0D4D1C983FA580BA, 3)
    others = {shared_seed(0, 2, "abc", 3), shared_seed(1, 3, "abc", 3), shared_seed(1, 2, "abd", 3)}
    assert len(others | {base, shared_seed(1, 2, "abc", 4)}) == 5


def test_private_seeds_differ_by_rank_role_and_hop() -> None:
    seeds = {private_seed(9, rank, role, hop) for rank in range(9) for role in Role for hop in range(9)}
    assert len(seeds) == 9 * 3 * 9
    assert private_seed(9, 1, Role.HOP, 4) == mix(9, 1, 2, 4)
