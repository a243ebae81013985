"""Owns: the page of a detector's test shows its scores, every class and every video, and stays small."""

import re
import shutil

import pytest
from detection_folders import FOUND, TEST, edit_result, write_test
from pages import refusal

from moss_vllm.commands.scripts import report
from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.detection.predictions import read_predictions
from moss_vllm.detection.scores import score_detections
from moss_vllm.report import strips
from moss_vllm.report.detection_files import read_test
from moss_vllm.report.timeline import DRAWN_PER_ACTION


def write(folder, *more):
    return report.main([str(folder), *more]).read_text()


def cells(page, head):
    """The cells of the first row that begins with `head`."""
    row = next(
        row for row in re.findall(r"<tr>(.*?)</tr>", page) if row.startswith(f'<th scope="row">{head}<')
    )
    return re.findall(r'<td class="number">(.*?)</td>', row)


def test_the_page_has_the_scores_of_the_predictions(tmp_path):
    folder = write_test(tmp_path, environment={"av": "18.1.0", "decord": "not installed"})
    page = write(folder)
    assert "<td>av</td><td>18.1.0</td>" in page and "<td>decord</td>" not in page
    split = read_detection("thumos14", tmp_path / "thumos", "test")
    scores = score_detections(split, read_predictions(folder / "predictions.json", split.classes))
    assert cells(page, "this test") == [f"{value:.1f}" for value in scores.mean.values()]
    assert f"<b>{scores.mean['avg']:.1f} %</b><span>average mAP" in page
    counts = [scores.false_positives[1][kind] for kind in scores.false_positives[1]]
    aps = [f"{value:.1f}" for value in (*scores.classes[1], sum(scores.classes[1]) / 5)]
    assert cells(page, "CricketShot") == [*aps, "3", *map(str, counts)]
    assert "runs/detection/best on thumos14" in page and "this page counts the latter" not in page


def test_the_papers_rows_stand_beside_a_variant_of_the_paper(tmp_path):
    assert "(paper)" not in write(write_test(tmp_path))
    edit_result(tmp_path / "test", variant="b")
    assert cells(write(tmp_path / "test"), "AdaTAD-B + MOSS (paper)")[-1] == "72.2"


def test_every_video_has_its_timeline_and_those_read_their_frames(tmp_path):
    page = write(write_test(tmp_path))
    figures = re.findall(r'<figure class="timeline">.*?</figure>', page)
    assert [re.search("<b>(.*?)</b>", figure)[1] for figure in figures] == list(TEST)
    assert figures[0].count("<img") == strips.MOST_FRAMES and 'loading="lazy"' in figures[0]
    assert "1 of 2 actions found; 1 of the 4 detections drawn right at tIoU 0.5" in figures[0]
    assert "its frames cannot be read" in figures[1] and "<img" not in figures[1]
    assert "Frames are shown of 1 of 3 videos" in page


def test_frames_are_of_the_videos_with_most_mistakes_first(tmp_path):
    page = write(write_test(tmp_path), "--strips", "1")
    assert page.count("<img") == strips.MOST_FRAMES and "its frames cannot be read" not in page
    assert "<img" not in write(tmp_path / "test", "--strips", "0")
    assert "--strips -1 is negative" in refusal(tmp_path / "test", "--strips", -1)


def test_a_page_of_many_videos_stays_small(tmp_path):
    rows = FOUND[TEST[0]] * 12  # THUMOS-14 has 16 actions a video
    page = write(write_test(tmp_path, {TEST[0]: rows}), "--strips", "0")
    one_bar = max(map(len, re.findall(r'<rect class="(?:false|right|truth).*?</rect>', page)))
    assert 211 * 16 * (1 + DRAWN_PER_ACTION) * one_bar < 3e6


def test_other_scores_than_result_json_has_are_told(tmp_path):
    folder = write_test(tmp_path)
    edit_result(folder, mAP={"avg": 71.14})
    assert "result.json has an average mAP of 71.14, the detections and videos that are here give" in write(
        folder
    )


def test_names_are_text_and_no_script_is_needed(tmp_path):
    folder = write_test(tmp_path, checkpoint="<script>alert(1)</script>")
    page = write(folder)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_a_test_whose_data_are_gone_is_refused(tmp_path):
    folder = write_test(tmp_path)
    edit_result(folder, split={"data": "thumos14", "root": str(tmp_path / "gone")})
    assert "gone" in refusal(folder) and not (folder / "page.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": None},
        {"mAP": {"avg": "high"}},
        {"mAP": [1]},
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


def test_another_root_has_its_own_annotation(tmp_path):
    folder = write_test(tmp_path)
    edit_result(folder, split={"root": str(tmp_path / "gone"), "annotation": str(tmp_path / "gone.json")})
    assert read_test(folder, root=tmp_path / "thumos").split.file.startswith(str(tmp_path / "thumos"))


def test_videos_that_are_gone_cost_frames_only(tmp_path):
    folder = write_test(tmp_path)
    with_frames = cells(write(folder), "this test")
    shutil.rmtree(tmp_path / "thumos" / "raw_data")
    page = write(folder)
    assert cells(page, "this test") == with_frames and "<img" not in page
    assert f"3 of 3 videos are not below {tmp_path}/thumos, and have no frames here" in page


def test_a_test_of_predictions_names_their_file_and_half_a_test_has_no_page(tmp_path):
    folder = write_test(tmp_path)
    found = (folder / "predictions.json").rename(tmp_path / "found.json")
    assert "predictions.json" in refusal(folder)
    edit_result(folder, predictions=str(found))
    assert "this test" in write(folder)
    (folder / "result.json").unlink()
    assert "is neither the folder of a run" in refusal(folder)
