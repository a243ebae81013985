"""Owns: head outputs become the detections of AdaTAD's authors, rounding and soft-NMS included."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.decoding import DecodeSettings, decode_windows, merge_windows, point_segments
from moss_vllm.detection.predictions import Detections, no_detections, read_predictions, write_predictions
from moss_vllm.detection.soft_nms import soft_nms

GOLDEN = Path(__file__).parents[1] / "golden_detection"
ROWS = json.loads((GOLDEN / "detections.json").read_text())
CLASSES = ROWS["class_names"]
SETTINGS = DecodeSettings(**ROWS["settings"])


def load(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        about = {key: value for key, value in file.metadata().items() if key != "source"}
        return {key: file.get_tensor(key) for key in file.keys()}, {
            k: json.loads(v) for k, v in about.items()
        }


@pytest.fixture(scope="module")
def golden():
    return load("decode")


@pytest.fixture
def levels(golden):
    names = ("cls_logits", "reg", "mask")
    return [tuple(golden[0][f"level{level}.{name}"] for name in names) for level in range(4)]


@pytest.fixture
def points(golden):
    rows = [
        torch.tensor([time * stride, 0.0, 0.0, stride])
        for length, stride in zip(golden[1]["lengths"], golden[1]["strides"], strict=True)
        for time in range(length)
    ]
    return torch.stack(rows)


@pytest.fixture
def places(golden):
    return [
        (
            DetectionVideo(
                row["video_name"], "", row["duration"], round(row["duration"] * row["fps"]), actions=()
            ),
            row["window_start_frame"],
        )
        for row in golden[1]["windows"]
    ]


def as_rows(detections):
    columns = (detections.segments_s.tolist(), detections.labels.tolist(), detections.scores.tolist())
    return [
        {"segment": segment, "label": CLASSES[label], "score": score}
        for segment, label, score in zip(*columns, strict=True)
    ]


def assert_near(found, expected, relative=1e-4):
    found, expected = (np.asarray(one, np.float64) for one in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= relative * max(1, np.abs(expected).max())


def test_golden_windows(golden, levels, points, places):
    assert [video.fps for video, _ in places] == [row["fps"] for row in golden[1]["windows"]]
    windows = decode_windows(levels, points, places, SETTINGS)
    for index, window in enumerate(windows):
        segments, scores = point_segments(levels, points, index)
        assert_near(segments, golden[0][f"window{index}.segments"])
        assert_near(scores, golden[0][f"window{index}.scores"])
        assert_near(window.segments_s, golden[0][f"window{index}.candidate_segments_s"])
        assert_near(window.scores, golden[0][f"window{index}.candidate_scores"])
        assert window.labels.tolist() == golden[0][f"window{index}.candidate_labels"].tolist()
        assert as_rows(window.rounded()) == ROWS["windows"][index]["rows"]


def test_golden_videos_and_the_file_of_them(golden, levels, points, places, tmp_path):
    windows = decode_windows(levels, points, places, SETTINGS)
    found = {}
    for index, name in enumerate(golden[1]["videos"]):
        own = [w for w, (video, _) in zip(windows, places, strict=True) if video.video_id == name]
        found[name] = merge_windows(own, SETTINGS)
        assert_near(found[name].segments_s, golden[0][f"video{index}.final_segments_s"])
        assert_near(found[name].scores, golden[0][f"video{index}.final_scores"])
        assert found[name].labels.tolist() == golden[0][f"video{index}.final_labels"].tolist()
    write_predictions(tmp_path / "found.json", found, CLASSES)
    assert json.loads((tmp_path / "found.json").read_text()) == ROWS["final"]
    for name, one in read_predictions(tmp_path / "found.json", CLASSES).items():
        assert all(np.array_equal(getattr(one, key), getattr(found[name], key)) for key in vars(one))


def test_half_precision_outputs_are_decoded_in_float32(levels, points, places):
    half = [(logits.half(), distances.half(), mask) for logits, distances, mask in levels]
    whole = [(logits.half().float(), distances.half().float(), mask) for logits, distances, mask in levels]
    for one, other in zip(
        *(decode_windows(some, points, places, SETTINGS) for some in (half, whole)), strict=True
    ):
        assert np.array_equal(one.segments_s, other.segments_s) and np.array_equal(one.scores, other.scores)


def test_outputs_that_are_nan_or_do_not_fit_are_refused(levels, points, places):
    levels[1][0][4, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="video_test_0000006, window at frame 0: .* are NaN or infinite"):
        decode_windows(levels, points, places, SETTINGS)
    levels[1][0][4, 2, 0] = 0
    levels[0][1][0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="video_test_0000004, window at frame 0: "):
        decode_windows(levels, points, places, SETTINGS)
    with pytest.raises(ValueError, match=r"4 windows and 60 points do not fit levels of \(5, 4, 32\), "):
        decode_windows(levels, points, places[:4], SETTINGS)
    with pytest.raises(ValueError, match="5 windows and 59 points do not fit"):
        decode_windows(levels, points[1:], places, SETTINGS)


# ---- soft-NMS


def nms_settings(given):
    return {key: given[key] for key in ("sigma", "min_score", "max_seg_num") if key in given}


@pytest.mark.parametrize("name", ["thumos", "capped", "min_score"])
def test_golden_soft_nms(name):
    golden, settings = load("soft_nms")
    given = Detections(*(golden[key].numpy() for key in ("segments", "scores", "labels")))
    found = soft_nms(given, **nms_settings(settings[name]))
    assert found.labels.tolist() == golden[f"{name}.labels"].tolist()
    assert_near(found.segments_s, golden[f"{name}.segments"])
    assert_near(found.scores, golden[f"{name}.scores"], 1e-6)


def plainly(detections, sigma, min_score, max_seg_num):
    """The same, one class after the other and one pair after the other."""
    rows = []
    for label in sorted(set(detections.labels.tolist())):
        left = [
            [np.float32(score), index]
            for index, score in enumerate(detections.scores)
            if detections.labels[index] == label
        ]
        kept = 0
        while left and kept < max_seg_num:
            best = max(left, key=lambda one: one[0])  # the first of equals
            left.remove(best)
            rows.append((float(best[0]), detections.segments_s[best[1]].tolist(), label))
            kept += 1
            s, e = detections.segments_s[best[1]].astype(np.float32)
            for one in left:
                start, end = detections.segments_s[one[1]].astype(np.float32)
                overlap = max(np.float32(0), min(e, end) - max(s, start))
                lengths = (e - s + np.float32(1e-6)) + (end - start + np.float32(1e-6))
                one[0] *= np.exp(-((overlap / (lengths - overlap)) ** 2) / np.float32(sigma))
            left = [one for one in left if one[0] >= min_score]
    return sorted(rows, key=lambda row: -row[0])[:max_seg_num]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sigma, min_score, max_seg_num", [(0.7, 0.0, 1000), (0.3, 0.05, 1000), (0.5, 0, 30)])
def test_soft_nms_equals_one_pair_after_the_other(seed, sigma, min_score, max_seg_num):
    """With ties, equal segments, segments of no length and within each other."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 60, 120) / 2
    segments = np.stack([starts, starts + rng.choice([0, 0.5, 2, 9, 40], 120)], 1)
    given = Detections(segments, rng.integers(1, 30, 120) / 30, rng.integers(0, 3, 120))
    found = soft_nms(given, sigma=sigma, min_score=min_score, max_seg_num=max_seg_num)
    expected = plainly(given, sigma, min_score, max_seg_num)
    assert_near(found.scores, [row[0] for row in expected], 1e-6)
    scores = np.array([row[0] for row in expected])
    clear = np.array([np.sum(np.abs(scores - score) < 1e-6) == 1 for score in scores])
    assert clear.sum() >= 5
    assert np.array_equal(found.segments_s[clear], np.array([row[1] for row in expected])[clear])
    assert np.array_equal(found.labels[clear], np.array([row[2] for row in expected])[clear])


def test_of_equal_scores_the_first_is_taken_and_nothing_is_taken_twice():
    segments = np.array([[5.0, 6.0], [1.0, 2.0], [1.0, 2.0], [3.0, 3.0]])
    given = Detections(segments, np.array([0.5, 0.5, 0.5, 0.0]), np.zeros(4, np.int64))
    found = soft_nms(given, sigma=0.01)
    assert found.segments_s.tolist() == [[5, 6], [1, 2], [1, 2], [3, 3]]
    assert found.scores[:2].tolist() == [0.5, 0.5] and 0 < found.scores[2] < 1e-40
    assert len(soft_nms(no_detections())) == 0


@pytest.mark.parametrize(
    "given", [{"sigma": 0.0}, {"sigma": float("nan")}, {"min_score": 2}, {"max_seg_num": 0}]
)
def test_settings_of_soft_nms_out_of_range(given):
    with pytest.raises(ValueError, match="sigma is at least 0.01, min_score 0 to 1, max_seg_num at least 1"):
        soft_nms(no_detections(), **given)


def test_soft_nms_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        soft_nms(Detections(np.array([[0.0, np.nan]]), np.array([0.5]), np.array([0])))
