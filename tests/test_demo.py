"""The demo tells success from failure, and the example shares the work as it says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import demo
import demo_report
import train_digits

ROOT = Path(__file__).resolve().parent.parent


def outcome(algorithm: str, accuracy: float, bytes_a_step: int = 100) -> demo_report.Outcome:
    return demo_report.Outcome(
        algorithm=algorithm,
        topology="ring",
        plan=None,
        ranks=2,
        seed=0,
        epochs=2,
        parameters=10,
        loss=[2.0, 1.0, 0.5, 0.25],
        bytes_sent=[bytes_a_step * step for step in range(1, 5)],
        bytes_are="counted",
        evaluations=[
            {"step": 2, "test_accuracy": 50.0, "test_loss": 1.0},
            {"step": 4, "test_accuracy": accuracy},
        ],
        test_accuracy=accuracy,
        final_loss=0.1,
        seconds=1.0,
        parameter_hash="ab",
    )


def test_demo_passes_when_compression_keeps_accuracy() -> None:
    demo.check([outcome("none", 97.0), outcome("terngrad", 95.6), outcome("horovod", 90.0)])


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([outcome("none", 95.0), outcome("onebit", 97.0)], "uncompressed run reached only 95.00 %"),
        (
            [outcome("none", 97.0), outcome("onebit", 95.4)],
            "onebit .ring. reached 95.40 %, 1.60 points below",
        ),
    ],
)
def test_demo_fails_when_training_or_a_codec_is_broken(
    outcomes: list[demo_report.Outcome], message: str
) -> None:
    with pytest.raises(demo.DemoError, match=message):
        demo.check(outcomes)


def test_failed_command_shows_its_output_and_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    program = "print('[1]<stderr>:No module named \\'compll.codec\\''); print('Launcher\\'s trace'); exit(3)"
    with pytest.raises(demo.DemoError) as caught:
        demo.execute([sys.executable, "-c", program], demo.Console())
    assert "exit code 3" in str(caught.value)
    assert "[1]<stderr>:No module named" in str(caught.value)
    assert "\nLauncher" not in str(caught.value)
    assert "run `make setup`" in str(caught.value)
    assert capsys.readouterr().out.startswith("$ ")


def test_every_run_of_the_demo_is_one_command_that_the_example_takes() -> None:
    assert {(run.algorithm, run.topology) for run in demo.RUNS} == {
        ("horovod", "ring"),
        ("none", "ring"),
        *((algorithm, topology) for algorithm in ("terngrad", "onebit") for topology in ("ps", "ring")),
    }
    command = next(run.command for run in demo.RUNS if (run.algorithm, run.topology) == ("terngrad", "ps"))
    assert " ".join(command) == (
        "horovodrun --gloo -np 2 -H localhost:2 python examples/train_digits.py --algorithm terngrad "
        "--topology ps --comprplan demo/SeCoPaPlan.ps.txt --output demo/terngrad-ps.json"
    )


def test_report_counts_ratio_against_the_uncompressed_ring(tmp_path: Path) -> None:
    outcomes = [outcome("none", 97.0, 1600), outcome("onebit", 96.0, 100)]
    assert [cells[5] for cells in demo_report.rows(outcomes)] == ["1.0", "16.0"]
    demo_report.write_markdown(outcomes, {"cores": "2"}, tmp_path / "demo.md", "demo.png")
    assert "| onebit | ring | 96.00 % | 0.1000 | 100 | 16.0 | 1.0 |" in (tmp_path / "demo.md").read_text()


def test_report_names_no_machine() -> None:
    facts = json.dumps(demo_report.conditions(2, "100mbit", load=0.5))
    assert str(ROOT) not in facts
    assert demo_report.platform.node() not in facts


def test_smoothed_curve_is_the_mean_of_the_last_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_report, "SMOOTH", 2)
    assert np.allclose(demo_report.smoothed([4.0, 2.0, 6.0]), [4.0, 3.0, 4.0])


def test_plot_is_drawn(tmp_path: Path) -> None:
    outcomes = [outcome("none", 97.0, 1600), replace(outcome("onebit", 96.0), topology="ps")]
    demo_report.draw(outcomes, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_share_each_global_batch_without_overlap() -> None:
    whole = list(train_digits.batches(1347, epoch=3, seed=1, rank=0, size=1))
    parts = [list(train_digits.batches(1347, epoch=3, seed=1, rank=rank, size=4)) for rank in range(4)]
    assert len(whole) == 21
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step] for part in parts]), batch)
    assert len(torch.cat(whole).unique()) == 21 * train_digits.GLOBAL_BATCH


def test_test_images_are_not_trained_on_and_hold_every_digit_in_proportion() -> None:
    training, test = train_digits.load_splits()
    assert (len(training.labels), len(test.labels)) == (1347, 450)
    for digit in range(10):
        share = (test.labels == digit).sum().item() / ((training.labels == digit).sum().item())
        assert share == pytest.approx(1 / 3, abs=0.02)


def test_model_has_a_dense_layer_worth_compressing() -> None:
    sizes = {name: parameter.numel() for name, parameter in train_digits.build_model().named_parameters()}
    assert max(sizes.values()) == 131_072
    assert sum(sizes.values()) == 138_698
