"""Owns: a timeline shows the video's own actions and detections, right where the scores count them so."""

import json
import re
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from detection_folders import CLASSES, FOUND, TEST, detections, edit_result, write_test
from detection_layouts import TEST as VIDEOS
from PIL import Image

from moss_vllm.commands.scripts import timeline as script
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, match_detections
from moss_vllm.report import timeline
from moss_vllm.report.detection_files import read_test
from moss_vllm.report.timeline import (
    Annotated,
    Detected,
    draw_on_page,
    lay_in_rows,
    lay_out_video,
    picture_of,
)
from moss_vllm.runtime.files import whole_file


def line_of(folder, video_id):
    test = read_test(folder)
    return lay_out_video(test.video(video_id), test.split.classes, test.match(), TIOU_THRESHOLDS)


def test_lanes_have_what_happens_and_what_was_found(tmp_path):
    line = line_of(write_test(tmp_path), TEST[0])
    shot, dive = line.lanes
    assert (shot.name, dive.name) == ("CricketShot", "Diving") and line.duration_s == 40
    assert shot.actions == (Annotated(0.2, 1.1, True, 0), Annotated(5.0, 7.0, False, 0))
    assert shot.detections == (
        Detected(0.2, 1.0, 0.9, True, 0),
        Detected(0.3, 1.1, 0.8, False, 1),  # a double detection, in the second row as it overlaps the first
        Detected(5.0, 9.5, 0.7, False, 0),
    )
    assert dive.actions == () and dive.detections == (Detected(20.0, 22.0, 0.4, False, 0),)
    assert line.describe() == "1 of 2 actions found; 1 of the 4 detections drawn right at tIoU 0.5"


def test_two_classes_at_one_time_have_a_lane_each_and_a_video_without_any_has_none(tmp_path):
    folder = write_test(tmp_path)
    line = line_of(folder, TEST[1])
    assert [lane.name for lane in line.lanes] == ["CliffDiving", "Diving"]
    assert all(lane.actions[0].found and lane.detections[0].right for lane in line.lanes)
    silent = line_of(folder, TEST[2])
    assert [one.found for one in silent.lanes[0].actions] == [False] and silent.lanes[0].detections == ()


def test_segments_of_a_row_never_overlap():
    assert lay_in_rows([(0, 2), (1, 3), (2, 4), (1.5, 1.6), (3, 5)]) == [0, 1, 0, 2, 1]  # touching is free
    assert lay_in_rows([(0, 9), (1, 2), (1, 2), (8, 9)], most=2) == [0, 1, None, 1]
    assert lay_in_rows([(4, 4), (4, 4)]) == [0, 0]  # of no length
    assert lay_in_rows([(4, 4), (4, 4), (4.2, 5), (4.9, 6)], least_s=0.1) == [0, 1, 0, 1]  # drawn as bars
    assert lay_in_rows([]) == []
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 30, 200)
    segments = np.stack([starts, starts + rng.exponential(2, 200)], 1).tolist()
    places = lay_in_rows(segments, least_s=0.1)
    for row in range(max(places) + 1):
        own = sorted(segment for segment, place in zip(segments, places, strict=True) if place == row)
        assert own and all(max(one[1], one[0] + 0.1) <= other[0] for one, other in pairwise(own))


def test_actions_of_one_class_that_overlap_are_drawn_below_each_other(tmp_path):
    folder = write_test(tmp_path)
    (file,) = (tmp_path / "thumos" / "annotations").glob("*.json")
    content = json.loads(file.read_text())
    rows = content["database"][TEST[0]]["annotations"]
    rows.append({**rows[0], "segment": [0.5, 6.0]})
    file.write_text(json.dumps(content))
    line = line_of(folder, TEST[0])
    assert [(one.start_s, one.row) for one in line.lanes[0].actions] == [(0.2, 0), (5.0, 0), (0.5, 1)]
    assert (line.lanes[0].action_rows, line.lanes[1].action_rows) == (2, 1)
    bars = re.findall(r'<rect class="truth[^"]*" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', draw_on_page(line))
    spans = defaultdict(list)
    for x, y, width in bars:
        spans[y].append((float(x), float(x) + float(width)))
    assert sorted(map(len, spans.values())) == [1, 2]
    assert all(one[1] <= other[0] for row in spans.values() for one, other in pairwise(sorted(row)))
    assert script.main([str(folder), "--video", TEST[0]]).is_file()


def test_only_the_best_of_the_whole_test_are_drawn_and_rows_are_limited(tmp_path):
    many = [(10.0, 20.0, 0.9 - 0.1 * place, 1) for place in range(6)]
    many += [(30.0 + place, 30.5 + place, 0.2, 1) for place in range(6)]
    folder = write_test(tmp_path, {TEST[0]: many, TEST[2]: [(2.5, 4.5, 0.95, 1)]})
    (lane,) = line_of(folder, TEST[0]).lanes
    # CricketShot has 3 actions: 9 detections count, one in another video; 4 of 6 at one time have a row.
    assert len(lane.detections) == 6 and lane.left_out == 2 and lane.rows == timeline.ROWS
    assert [one.score for one in lane.detections] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.2, 0.2])
    assert "; 2 more not drawn" in line_of(folder, TEST[0]).describe()


def test_right_detections_are_as_many_as_the_scores_count(tmp_path):
    rng = np.random.default_rng(0)
    starts, labels = rng.uniform(0, 8, 60), rng.integers(0, 3, 60)
    rows = list(zip(starts, starts + rng.uniform(0.5, 3, 60), rng.uniform(size=60), labels, strict=True))
    found = {video: rows[place::3] for place, video in enumerate(VIDEOS)}
    test = read_test(write_test(tmp_path, found))
    matches = match_detections(
        {video.video_id: video.actions for video in test.split.videos},
        {video: detections(some).rounded() for video, some in found.items()},
    )
    lines = [lay_out_video(video, CLASSES, matches, TIOU_THRESHOLDS) for video in test.split.videos]
    for one in matches:
        best = timeline.DRAWN_PER_ACTION * int(one.actions.sum())
        lanes = [lane for line in lines for lane in line.lanes if lane.name == CLASSES[one.label]]
        drawn = sum(d.right for lane in lanes for d in lane.detections)
        assert drawn == one.found[2, :best].sum() == sum(a.found for lane in lanes for a in lane.actions)


def test_ticks_are_round_and_few():
    for duration_s, step in ((0.5, 1), (9, 1), (33.8, 5), (254, 30), (1500, 300)):
        ticks = timeline.ticks_s(duration_s)
        assert ticks == list(range(0, int(duration_s) + 1, step)) and len(ticks) <= 11


def test_a_bar_on_a_page_lies_at_its_time_and_is_as_dark_as_its_score(tmp_path):
    svg = draw_on_page(line_of(write_test(tmp_path), TEST[0]))
    scale = (timeline.WIDTH - timeline.NAMES - timeline.RIGHT_MARGIN) / 40
    x, width = timeline.NAMES + 20 * scale, 2 * scale
    assert f'x="{x:.1f}" y="' in svg and f'width="{width:.1f}" height="8" opacity="0.49"' in svg
    assert "<title>false, score 0.400: 20.00 to 22.00 s</title>" in svg
    assert svg.count('class="truth"') == 1 and svg.count('class="truth missed"') == 1
    assert svg.count('class="right"') == 1 and svg.count('class="false"') == 3


def test_the_picture_has_frames_and_lanes(tmp_path, capsys):
    folder = write_test(tmp_path)
    out = script.main([str(folder), "--video", TEST[0]])
    assert out == folder / f"timeline_{TEST[0]}.png"
    said = capsys.readouterr().out
    assert (
        said.startswith(f"{TEST[0]}: 1 of 2 actions found; 1 of the 4 detections drawn right")
        and str(out) in said
    )
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1500
    green = np.abs(pixels - (0, 158, 115)).sum(-1) < 60
    red = np.abs(pixels - (213, 94, 0)).sum(-1) < 150
    assert green[:-80].any() and red[:-80].any()  # above the legend
    # The video grows brighter with time, and so does the strip from left to right.
    grey = (pixels.max(-1) == pixels.min(-1)) & (pixels.max(-1) < 250)
    strip = pixels[60:120, 250:1450].mean((0, 2))
    assert grey.any() and strip[:100].mean() < strip[-100:].mean()


def test_a_video_that_cannot_be_read_is_drawn_without_frames(tmp_path, capsys):
    out = script.main([str(write_test(tmp_path)), "--video", TEST[1], "--out", str(tmp_path / "a.png")])
    assert out.is_file() and f"without frames: {tmp_path}" in capsys.readouterr().out


def test_predictions_of_another_project_need_a_root(tmp_path):
    folder = write_test(tmp_path)
    (folder / "result.json").unlink()
    file = folder / "predictions.json"
    out = script.main([str(file), "--video", TEST[0], "--root", str(tmp_path / "thumos")])
    assert out.is_file()
    with pytest.raises(SystemExit, match="name the folder with --root"):
        script.main([str(file), "--video", TEST[0]])


def test_wrong_names_are_told(tmp_path):
    folder = write_test(tmp_path)
    with pytest.raises(SystemExit, match=f"'video_test_9' is none of the 3 test videos .* such as {TEST[0]}"):
        script.main([str(folder), "--video", "video_test_9"])
    edit_result(folder, classes=["Diving"])
    with pytest.raises(SystemExit, match="has 1 classes and .* 3, or others"):
        script.main([str(folder), "--video", TEST[0]])
    with pytest.raises(SystemExit, match="result.json"):
        script.main([str(tmp_path / "thumos"), "--video", TEST[0]])
    assert json.loads((folder / "predictions.json").read_text())["results"].keys() == FOUND.keys()


@pytest.mark.parametrize("name", ["x" * 250, "\u3042" * 80])
def test_a_picture_has_a_name_that_can_be_written(tmp_path, name):
    picture = picture_of(name, tmp_path)
    assert picture.name.startswith(f"timeline_{name[:50]}")
    with whole_file(picture) as part:
        part.write_bytes(b"PNG")
    assert picture.is_file()
