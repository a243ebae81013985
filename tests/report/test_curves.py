"""Owns: curves are drawn at their values, gaps and thinning are named, and no extreme is lost."""

import json
import math
import re

import numpy as np
import pytest
from pages import write
from run_folders import eval_line, jsonl, settings, step_line

from moss_vllm.report.curves import MOST_POINTS, running_mean, thin


def test_lines_are_drawn_where_their_values_belong(folder):
    page = write(folder)
    chart = page.charts["Speed"]
    width, height, left, right, top, bottom = chart["box"]
    (faint,) = re.findall(r'Speed over steps.*?class="curve c0 faint" d="(.*?)"', page.source, re.S)
    points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", faint)]
    high = chart["range"][1]  # the axis begins at 0
    assert chart["span"] == [0, 10] and chart["range"][0] == 0
    expected_y = height - bottom - (height - bottom - top) * 32 / high
    assert points == [
        (pytest.approx(left + (width - left - right) * s / 10, abs=0.06), pytest.approx(expected_y, abs=0.06))
        for s in range(1, 11)
    ]
    (dashed,) = re.findall(r'"CM over steps.*?class="curve c6 dashed" d="(.*?)"', page.source, re.S)
    assert len(set(re.findall(r"[ML][\d.]+ ([\d.]+)", dashed))) == 1  # chance is level


def test_losses_that_are_not_finite_are_gaps_and_said(folder):
    wrong = {4: math.nan, 6: math.inf, 7: -math.inf, 9: 10**400}
    lines = (step_line(s, **({"loss": wrong[s]} if s in wrong else {})) for s in range(1, 11))
    (folder / "train.jsonl").write_text(jsonl(lines))
    page = write(folder)
    loss = page.curve("Loss", "each step")
    assert {step for step, value in loss.items() if value is None} == set(wrong)
    told = "each step: 4 of 10 values not finite, left as gaps at step 4, 6, 7, 9"
    assert told in page.text and page.text.count("values not finite") == 1
    (drawn,) = re.findall(r'Loss over steps.*?class="curve c0 faint" d="(.*?)"', page.source, re.S)
    assert drawn.count("M") == 4 and drawn.count("L") == 2  # 1-3, 5, 8, 10


def test_a_norm_of_zero_has_no_place_on_a_log_axis(folder):
    (folder / "train.jsonl").write_text(
        jsonl(step_line(s, grad_norm=0.0 if s == 3 else s) for s in range(1, 11))
    )
    page = write(folder)
    assert page.charts["Gradient norms"]["log"] and page.curve("Gradient norms", "all")[3] is None
    assert "all: 1 value of zero or below cannot be shown on this axis" in page.text
    assert "not finite," not in page.text


def test_thinning_keeps_ends_extremes_and_gaps():
    values = np.random.default_rng(0).normal(size=100_000)
    values[31_415], values[27_182], values[50_000:50_400], values[77_777] = 99.0, -99.0, np.nan, np.nan
    kept = thin(values)
    assert len(kept) <= 1.01 * MOST_POINTS and kept[0] == 0 and kept[-1] == 99_999
    assert {31_415, 27_182, 77_777} <= set(kept.tolist())
    assert any(50_000 <= place < 50_400 for place in kept) and (np.diff(kept) > 0).all()
    for stretch in np.array_split(np.arange(100_000), 100):  # of several thinned ones each
        inner = kept[(kept >= stretch[0]) & (kept <= stretch[-1])]
        assert np.nanmax(values[inner]) > np.nanquantile(values[stretch], 0.99)
    assert thin(values[:1000]).tolist() == list(range(1000))
    assert len(thin(np.full(5000, np.nan))) <= MOST_POINTS


def test_the_running_mean_leaves_gaps_out():
    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    expected = [1.5, 1.5, np.nan, 6.5, 6.5]
    np.testing.assert_allclose(running_mean(values, 1), expected)


def test_a_long_run_stays_small(folder):
    steps = 20_000
    (folder / "settings.json").write_text(json.dumps(settings(steps=steps)))
    spike = 12_345
    lines = (step_line(s, loss=50.5 if s == spike else 1 + math.sin(s) / 3) for s in range(1, steps + 1))
    (folder / "train.jsonl").write_text(jsonl(lines))
    (folder / "evals.jsonl").write_text(jsonl(eval_line(s) for s in range(100, steps + 1, 100)))
    page = write(folder)
    assert (folder / "page.html").stat().st_size < 2_000_000
    loss = page.curve("Loss", "each step")
    assert loss[spike] == 50.5 and 500 < len(loss) <= MOST_POINTS and {1, steps} <= set(loss)
    assert "Thinned: of 20,000 points about 1,000 a curve are drawn" in page.text
