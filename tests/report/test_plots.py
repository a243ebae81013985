"""Owns: pictures have the size, the colours and the refusals promised."""

import numpy as np
import pytest
from PIL import Image

from moss_vllm.evaluation.scoring import PAPER_TABLE_5
from moss_vllm.report import plots
from moss_vllm.report.plots import plot_accuracy, plot_losses


def test_loss_plot(tmp_path):
    rng = np.random.default_rng(0)
    curves = {
        name: [(step, start * 0.99**step + 0.1 * rng.random()) for step in range(300)]
        for name, start in (("+ train", 3.0), ("+ train + MOSS", 2.5))
    }
    plot_losses(curves, tmp_path / "new" / "loss.png")
    with Image.open(tmp_path / "new" / "loss.png") as image:
        assert image.size == (1200, 675)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # lines of two colours, faint and full
    plain = (tmp_path / "new" / "loss.png").read_bytes()
    plot_losses(curves, tmp_path / "new" / "loss.png", held_out={"+ train": [(100, 1.0), (299, 0.4)]})
    assert (tmp_path / "new" / "loss.png").read_bytes() != plain
    plot_losses(curves, tmp_path / "new" / "loss.png", held_out={"+ train": []})
    assert (tmp_path / "new" / "loss.png").read_bytes() == plain
    assert plots.centred_mean([1.0, 5.0]) == [1.0, 5.0]
    assert plots.centred_mean([float(i) for i in range(100)]) == pytest.approx(range(100))
    for wrong, message in (({}, "curves"), ({"a": []}, "'a': 0"), ({"a": [(0, float("nan"))]}, "not finite")):
        with pytest.raises(ValueError, match=message):
            plot_losses(wrong, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_letters_that_the_font_lacks_are_no_warning_each(tmp_path, recwarn):
    plot_losses({"\u65e5\u672c\u8a9e": [(0, 1.0)]}, tmp_path / "a.png", title="\u65e5\u672c\u8a9e")
    assert not recwarn.list and (tmp_path / "a.png").is_file()


def test_accuracy_plot(tmp_path):
    plot_accuracy(PAPER_TABLE_5["MotionBench-Dev"], tmp_path / "a.png", chance={"all": 26.0, "MR": 25.0})
    plot_accuracy({"m": {"all": (40.0, 2.0), "MR": 30.0}}, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (1500, 675)
    with Image.open(tmp_path / "a.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73), (0, 0, 0)} <= colours
    with pytest.raises(ValueError, match="no accuracy to plot"):
        plot_accuracy({}, tmp_path / "c.png")
