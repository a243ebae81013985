"""Owns: a clip's picture shows its scores, what was found and what each rater marked, as F1 counts it."""

import json

import numpy as np
import pytest
from boundary_folders import FOUND, TEST, edit_result, write_test
from PIL import Image

from moss_vllm.boundaries.scores import score_boundaries
from moss_vllm.commands.scripts import timeline as script
from moss_vllm.report.boundary_files import holds_boundaries, read_boundary_test
from moss_vllm.report.boundary_page import curves_by_mistakes
from moss_vllm.report.score_curve import Mark, draw_curve_on_page, lay_out_clip
from moss_vllm.report.timeline import NAMES, RIGHT_MARGIN, WIDTH


def curve_of(folder, video_id, **changes):
    test = read_boundary_test(folder, **changes)
    return next(one for one in curves_by_mistakes(test) if one.video_id == video_id)


def test_what_each_rater_marked_is_found_or_missed(tmp_path):
    curve = curve_of(write_test(tmp_path), TEST[0])
    first, second = curve.raters
    assert first.marks == (Mark(2.0, True), Mark(6.0, True))
    assert second.marks == (Mark(2.1, True), Mark(6.2, True), Mark(9.0, False))
    # Rater 1 has 2 of 2 with 3 detections, rater 2 has 2 of 3: the first fits better.
    assert (first.counts, second.counts) == (True, False)
    assert curve.detections == (Mark(2.0, True), Mark(6.2, True), Mark(8.0, False))
    told = "2 of 2 boundaries of rater 1 found; 2 of 3 detections right at 0.05 of the clip"
    assert curve.describe() == told and curve.mistakes == 1
    assert len(curve.points) == 100 and curve.points[19] == (2.0, 0.9) and curve.threshold == 0.3


def test_right_detections_are_as_many_as_the_scores_count(tmp_path):
    rng = np.random.default_rng(0)
    found = {name: tuple(sorted(rng.choice(np.arange(1, 100, 2), 6, replace=False))) for name in TEST}
    test = read_boundary_test(write_test(tmp_path, found))
    matches = score_boundaries(test.split, test.found).matches
    curves = {one.video_id: one for one in curves_by_mistakes(test)}
    for name, rater, hits in zip(matches.names, matches.raters[:, 0], matches.hits[:, 0], strict=True):
        assert curves[name].raters[rater].counts
        assert sum(mark.hit for mark in curves[name].raters[rater].marks) == hits
        assert sum(mark.hit for mark in curves[name].detections) == hits
    assert [one.mistakes for one in curves_by_mistakes(test)] == sorted(
        (one.mistakes for one in curves.values()), reverse=True
    )


def test_clips_that_are_not_scored_or_have_no_predictions_say_so(tmp_path):
    folder = write_test(tmp_path, {TEST[0]: (20,), TEST[1]: (50, 70)})
    assert curve_of(folder, TEST[1]).describe() == ("2 detections; not scored, as its raters agree below 0.3")
    svg = draw_curve_on_page(curve_of(folder, TEST[1]))
    assert svg.count('class="unscored"') == 2 and 'class="false"' not in svg
    missing = curve_of(folder, TEST[2])
    assert missing.describe() == "no predictions" and missing.points == () and missing.mistakes == 2


def test_times_in_frames_and_outside_the_clip(tmp_path):
    test = read_boundary_test(write_test(tmp_path))
    video = test.video(TEST[2])
    curve = lay_out_clip(video, [4.2, 10.0, -1.0], rule="efficientgebd")
    assert curve.detections == (Mark(4.2, True),) and curve.threshold is None
    assert curve.describe().endswith("1 of 1 detection right at 0.05 of the clip; 2 outside the clip dropped")
    assert lay_out_clip(video, [10.0]).detections == (Mark(10.0, False),)


def test_a_mark_on_a_page_lies_at_its_time(tmp_path):
    svg = draw_curve_on_page(curve_of(write_test(tmp_path), TEST[0]))
    scale = (WIDTH - NAMES - RIGHT_MARGIN) / 10
    assert f'<rect class="false" x="{NAMES + 8 * scale - 1:.1f}" y="4" width="2" height="80">' in svg
    assert "<title>false detection at 8.00 s</title>" in svg and "<title>missed at 9.00 s</title>" in svg
    assert svg.count('class="right"') == 2 and svg.count('class="truth"') == 4
    assert svg.count('class="truth missed"') == 1 and 'class="level"' in svg
    line = svg.split('class="curve" d="M')[1].split('"')[0].split("L")
    assert len(line) == 100 and line[19] == f"{NAMES + 2 * scale:.1f} {4 + 80 * 0.1:.1f}"
    assert ">rater 1, counts</text>" in svg and ">rater 2</text>" in svg


def test_the_picture_has_frames_a_curve_and_marks(tmp_path, capsys):
    folder = write_test(tmp_path)
    out = script.main([str(folder), "--video", TEST[0]])
    assert out == folder / f"timeline_{TEST[0]}.png"
    said = capsys.readouterr().out
    assert said.startswith(f"{TEST[0]}: 2 of 2 boundaries of rater 1 found") and "without frames" not in said
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1500
    middle = pixels[130:-90]  # below the frames, above the legend

    def places(colour, least):
        """Columns that hold so many pixels of a colour."""
        return np.flatnonzero((np.abs(middle - colour).sum(-1) < 60).sum(0) >= least)

    green, red = places((0, 158, 115), 100), places((213, 94, 0), 100)
    assert len(green) and len(red) and (np.diff(green) > 100).sum() == 1  # two lines, then one
    assert green.max() < red.min() and len(places((0, 114, 178), 1)) > 1000
    # Red squares of the clip's own frames are in the strip.
    assert (np.abs(pixels[40:130] - (230, 40, 0)).sum(-1) < 60).any()


def test_a_clip_that_is_not_there_or_cannot_be_read_is_drawn_without_frames(tmp_path, capsys):
    folder = write_test(tmp_path)
    split = read_boundary_test(folder).split
    clip = tmp_path / "kinetics" / "images" / "val"
    (clip / f"{TEST[1]}_000003_000013.mp4").write_bytes(b"no video")
    script.main([str(folder), "--video", TEST[1]])
    assert f"without frames: {clip}" in capsys.readouterr().out
    clip.rename(clip.with_name("gone"))
    script.main([str(folder), "--video", TEST[0]])
    assert "without frames, as the video is not there" in capsys.readouterr().out
    assert all(video.path for video in split.videos)


def test_a_file_of_any_project_needs_a_root_and_takes_a_threshold(tmp_path, capsys):
    folder = write_test(tmp_path)
    where = ["--root", str(tmp_path / "kinetics"), "--video", TEST[0]]
    assert script.main([str(folder / "scores.json"), *where, "--threshold", "0.95"]).is_file()
    assert "0 of 2 boundaries of rater 1 found; 0 of 0 detections" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "seconds.png")]
    assert script.main([str(folder / "predictions.json"), *where, *out]).is_file()
    with pytest.raises(SystemExit, match="name the folder with --root"):
        script.main([str(folder / "scores.json"), "--video", TEST[0]])
    with pytest.raises(
        SystemExit, match="has boundaries in seconds, which a threshold of 0.5 does not change"
    ):
        script.main([str(folder / "predictions.json"), *where, "--threshold", "0.5"])


def test_detections_of_actions_are_told_apart(tmp_path):
    folder = write_test(tmp_path)
    assert holds_boundaries(folder) and holds_boundaries(folder / "scores.json")
    assert holds_boundaries(tmp_path / "model_pred_dict_epoch09.pkl")
    (tmp_path / "found.json").write_text(json.dumps({"results": {}}))
    assert not holds_boundaries(tmp_path / "found.json") and not holds_boundaries(tmp_path / "kinetics")
    (tmp_path / "broken.json").write_text("{")
    assert not holds_boundaries(tmp_path / "broken.json") and not holds_boundaries(tmp_path / "none.json")
    with pytest.raises(SystemExit) as error:
        script.main([str(tmp_path / "found.json"), "--video", "a", "--threshold", "0.5"])
    assert error.value.code == 2


def test_wrong_names_are_told(tmp_path):
    folder = write_test(tmp_path)
    with pytest.raises(SystemExit, match=f"'nobody' is none of the 3 test videos .* such as {TEST[0]}"):
        script.main([str(folder), "--video", "nobody"])
    edit_result(folder, rule="ours")
    with pytest.raises(
        SystemExit, match="'rule' is 'ours', which no test writes; test again with eval/boundar"
    ):
        script.main([str(folder), "--video", TEST[0]])
    assert json.loads((folder / "predictions.json").read_text()).keys() == FOUND.keys()
