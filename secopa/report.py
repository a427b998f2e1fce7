"""What the planner tells its user: text from decisions, nothing decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secopa.planner import Decision
    from secopa.profile import Profile


def summary(decisions: Sequence[Decision]) -> str:
    """Return how many gradients are compressed and what that is expected to gain."""
    chosen = [decision for decision in decisions if decision.pays]
    elements = sum(decision.gradient.elements for decision in decisions)
    share = sum(decision.gradient.elements for decision in chosen) / elements
    plain = sum(decision.plain.ms for decision in decisions)
    planned = sum(decision.chosen.ms for decision in decisions)
    lines = [
        f"Compressed: {len(chosen)} of {len(decisions)} gradients, {share:.1%} of {elements:,} elements "
        f"({4 * elements / 1e6:.4g} MB)."
    ]
    if not chosen:
        lines.append(_nothing_pays(decisions, plain))
    else:
        lines.append(
            f"Expected: {plain:.4g} ms a step without compression, {planned:.4g} ms with this plan "
            f"({plain / planned:.2f} times as fast)."
        )
    lines.append("That is synchronisation alone, one gradient after the other, without overlap.")
    return "\n".join(lines)


def _nothing_pays(decisions: Sequence[Decision], plain: float) -> str:
    if plain == 0:
        return "Nothing pays: a single node sends nothing."
    nearest = min(decisions, key=lambda decision: decision.compressed.ms / decision.plain.ms)
    return (
        f"Nothing pays: {plain:.4g} ms a step without compression, and compressing any gradient costs more.\n"
        f"Nearest: {nearest.gradient.name} ({nearest.gradient.elements:,} elements): {nearest.reason}.\n"
        "Train without compression; a slower link, larger gradients or a faster codec would change that."
    )


def reasons(decisions: Sequence[Decision]) -> Table:
    """Return one row a gradient: what was decided, and why."""
    table = Table("gradient", "elements", "compress", "partitions", "why")
    for decision in decisions:
        table.add_row(
            decision.gradient.name,
            f"{decision.gradient.elements:,}",
            "y" if decision.pays else "n",
            str(decision.chosen.partitions),
            decision.reason,
        )
    return table


def curves(profile: Profile) -> Table:
    """Return the measured milliseconds, one row a size."""
    taken = profile.conditions
    names = ("encode", "decode", "decode_add", "merge")
    table = Table(
        "elements",
        *(f"{name} ms" for name in names),
        title=f"{taken.title}, {taken.backend}, threads: {taken.threads}, local ranks: {taken.local_ranks}",
    )
    for row in zip(*(getattr(profile, name).points for name in names), strict=True):
        table.add_row(f"{row[0][0]:,}", *(f"{ms:.4g}" for _, ms in row))
    return table
