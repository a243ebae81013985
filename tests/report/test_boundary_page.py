"""Owns: the page of a boundary model's test shows its scores and clips, and stays small."""

import re
import shutil

import pytest
from boundary_folders import FOUND, TEST, edit_result, frame_scores, with_names, write_test
from pages import refusal

from moss_vllm.boundaries.scores import score_boundaries
from moss_vllm.commands.scripts import report
from moss_vllm.report import boundary_page, strips
from moss_vllm.report.boundary_files import read_boundary_test


def write(folder, *more):
    return report.main([str(folder), *more]).read_text()


def cells(page, head):
    """The cells of the first row that begins with `head`."""
    row = next(
        row for row in re.findall(r"<tr>(.*?)</tr>", page) if row.startswith(f'<th scope="row">{head}<')
    )
    return re.findall(r'<td class="number">(.*?)</td>', row)


def test_the_page_has_the_scores_of_the_predictions_beside_the_papers(tmp_path):
    folder = write_test(tmp_path)
    edit_result(folder, environment={"av": "18.1.0", "decord": "not installed"})
    page = write(folder)
    assert "<td>av</td><td>18.1.0</td>" in page and "<td>decord</td>" not in page
    test = read_boundary_test(folder)
    scores = score_boundaries(test.split, test.found)
    assert cells(page, "this test") == [f"{value:.1f}" for value in scores.mean.values()]
    assert cells(page, r"BasicGEBD + MOSS \(paper\)".replace("\\", "")) == ["79.4", "89.0"]
    assert f"<b>{scores.mean['F1@0.05']:.1f} %</b><span>F1@0.05" in page
    assert "runs/boundaries/best on kinetics_gebd" in page and "this page counts the latter" not in page
    assert "by EfficientGEBD&#x27;s tables, in frames" in page and "95 % interval over clips" in page


def test_drawn_data_have_no_row_of_the_paper(tmp_path):
    page = write(write_test(tmp_path, data="mini"))
    assert "(paper)" not in page and "runs/boundaries/best on mini" in page


def test_every_clip_has_its_curve_those_with_most_mistakes_first(tmp_path):
    page = write(write_test(tmp_path))
    figures = re.findall(r'<figure class="timeline">.*?</figure>', page)
    assert [re.search("<b>(.*?)</b>", figure)[1] for figure in figures] == [TEST[0], TEST[2], TEST[1]]
    assert all(figure.count('class="curve"') == 1 for figure in figures)
    assert all(figure.count("<img") == strips.MOST_FRAMES for figure in figures)
    assert "Drawn are 3 of 3 clips" in page and "frames are shown of 3" in page


def test_frames_stand_at_their_times_in_the_clip(tmp_path):
    page = write(write_test(tmp_path))
    for name in TEST:  # folders of 100 frames, and a video
        times = [float(time) for time in re.findall(rf'alt="{name} at (.*?) s"', page)]
        assert times[0] == 0 and 8 < times[-1] < 10 and len(times) == strips.MOST_FRAMES


def test_frames_are_of_as_many_clips_as_asked(tmp_path):
    page = write(write_test(tmp_path), "--strips", "1")
    assert page.count("<img") == strips.MOST_FRAMES and page.count('class="curve"') == 3
    assert "<img" not in write(tmp_path / "test", "--strips", "0")
    assert "--strips -1 is negative" in refusal(tmp_path / "test", "--strips", -1)


def test_a_page_of_many_clips_stays_small(tmp_path, monkeypatch):
    names = [f"name{number:07d}" for number in range(9)]
    monkeypatch.setattr(boundary_page, "MOST_VIDEOS", 4)
    page = write(write_test(tmp_path, dict.fromkeys(names, (20, 62)), with_names(*names)), "--strips", "0")
    assert page.count('class="curve"') == 4 and "Drawn are 4 of 9 clips" in page
    figure = max(map(len, re.findall(r'<figure class="timeline">.*?</figure>', page)))
    assert strips.MOST_VIDEOS * figure < 2e6


def test_other_scores_than_result_json_has_are_told(tmp_path):
    folder = write_test(tmp_path)
    edit_result(folder, **{"F1@0.05": 71.14})
    assert "result.json has F1@0.05 71.14, the predictions and clips that are here give" in write(folder)


def test_names_are_text_and_no_script_is_needed(tmp_path):
    page = write(write_test(tmp_path, checkpoint="<script>alert(1)</script>"))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": None},
        {"threshold": "high"},
        {"peaks": 3},
        {"F1@0.05": "high"},
        {"f1_precision_recall": []},
        {"predictions": 3},
        {"split": None},
        {"split": {"split": "train"}},
        {"split": {"root": 3}},
        {"split": {"videos": "abc"}},
    ],
)
def test_a_result_json_that_no_test_wrote_is_refused(tmp_path, changes):
    folder = write_test(tmp_path)
    edit_result(folder, **changes)
    ((name, value),) = changes.items()
    assert f"{folder / 'result.json'}: {name!r} is {value!r}, which no test writes" in refusal(folder)


def test_clips_that_are_gone_cost_frames_only(tmp_path):
    folder = write_test(tmp_path)
    with_frames = cells(write(folder), "this test")
    shutil.rmtree(tmp_path / "kinetics" / "images" / "val")
    page = write(folder)
    assert cells(page, "this test") == with_frames and "<img" not in page
    assert f"3 of 3 clips are not below {tmp_path}/kinetics, and have no frames here" in page


def test_a_test_whose_data_or_scores_are_gone_is_refused(tmp_path):
    folder = write_test(tmp_path)
    (folder / "scores.json").rename(tmp_path / "found.json")
    assert "scores.json" in refusal(folder)
    edit_result(folder, predictions=str(tmp_path / "found.json"))
    assert "this test" in write(folder, "--out", str(folder / "other.html"))
    edit_result(folder, split={"data": "kinetics_gebd", "root": str(tmp_path / "gone")})
    assert "gone" in refusal(folder) and not (folder / "page.html").exists()
    assert len(frame_scores(FOUND[TEST[0]]).numbers) == 100
