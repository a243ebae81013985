"""Owns: Kinetics-GEBD, TAPOS and own json are read as distributed; which ground truth it is, what is missing
or odd is counted and named."""

import hashlib
import json
import pickle
import shutil

import pytest
from action_layouts import moving_square, write_video
from boundary_layouts import (
    GROUND_TRUTH,
    INSTANCES,
    TEST,
    TRAIN,
    golden,
    kinetics,
    record,
    tapos,
    with_scalars,
    write_frames_of,
    write_kinetics,
    write_pickle,
    write_tapos,
)

from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.data.boundaries.on_disk import count_files
from moss_vllm.data.rows import BadRow, BadRows, MissingVideo
from moss_vllm.video.frames import BadVideo

CLIP = f"{TEST[0]}_000003_000013"


@pytest.fixture
def root(tmp_path):
    write_kinetics(tmp_path)
    return tmp_path


def change(root, edit, part="val"):
    """Change the ground truth's records, and return its file."""
    file = root / GROUND_TRUTH.format(part)
    records = kinetics()[part]
    edit(records)
    return write_pickle(file, with_scalars(records))


def paths(split):
    return [video.path for video in split.videos]


# ---- what is read


def test_kinetics_gebd_as_distributed(root):
    train, test = (read_boundaries("kinetics_gebd", root, split) for split in ("train", "test"))
    assert [[video.video_id for video in split.videos] for split in (train, test)] == [
        list(TRAIN),
        list(TEST),
    ]
    video = train.videos[0]
    assert (video.frames, video.fps, video.duration_s, video.mean_consistency) == (
        100,
        10.0,
        10.0,
        sum((0.4, 0.7, 0.6)) / 3,
    )
    assert [rater.times_s for rater in video.raters] == [(1.0, 4.0), (1.2, 4.5, 8.0), (4.2,)]
    assert [rater.frames for rater in video.raters] == [(10.0, 40.0), (12.0, 45.0, 80.0), (42.0,)]
    assert [rater.consistency for rater in video.raters] == [0.4, 0.7, 0.6]
    assert paths(test)[0] == str(root / "images" / "val" / CLIP) and not test.missing
    told = "kept 3 of 3 clips, 0 missing, 8 boundaries in 5 lists of raters; no published count"
    assert test.report() == f"kinetics_gebd test: {told}"


def test_the_ground_truth_is_named_by_counts_and_digest(root):
    file = root / GROUND_TRUTH.format("val")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_boundaries("kinetics_gebd", root, "test").notes == (
        f"the ground truth is {file.name}: 3 clips, 8 boundaries, sha256 {digest}",
        "without k400_val_raw_annotation.pkl beside it, it cannot be told which of the two published "
        "versions this is, that of 2021 or that of May 2022",
    )


@pytest.mark.parametrize("version, other", [("2021", "2022"), ("2022", "2021")])
def test_both_published_versions_are_told_apart_by_the_raw_annotation(tmp_path, version, other):
    values = golden("ground_truth")
    write_pickle(tmp_path / "k400_val_raw_annotation.pkl", values["raw"])
    write_pickle(tmp_path / GROUND_TRUTH.format("val"), with_scalars(values[f"ground_truth_{version}"]))
    split = read_boundaries("kinetics_gebd", tmp_path, "test", find_videos=False)
    assert split.notes[1].startswith(
        f"it is what k400_val_raw_annotation.pkl gives by the rules of {version}; by those of {other} "
    )
    change(tmp_path, lambda records: None)
    (told,) = read_boundaries("kinetics_gebd", tmp_path, "test", find_videos=False).notes[1:]
    assert told.startswith("it is not what k400_val_raw_annotation.pkl gives: clips that are different: ")


def test_a_raw_annotation_is_read_by_the_rules_of_either_version(tmp_path):
    values = golden("ground_truth")
    write_pickle(tmp_path / "k400_val_raw_annotation.pkl", values["raw"])
    for version in ("2021", "2022"):
        split = read_boundaries("kinetics_gebd", tmp_path, "test", version=version, find_videos=False)
        records = values[f"ground_truth_{version}"]
        found = {one.video_id: [list(rater.times_s) for rater in one.raters] for one in split.videos}
        assert found == {name: one["substages_timestamps"] for name, one in records.items()}
        dropped = len(values["raw"]) - len(records)
        assert split.notes[1] == (
            f"k400_val_raw_annotation.pkl is the raw annotation: its ground truth is built by the rules of "
            f"{version}, without {dropped} clips that have fewer than three raters or lack a field"
        )


def test_tapos_json_becomes_instances_without_their_ends(tmp_path):
    write_tapos(tmp_path)
    train, test = (read_boundaries("tapos", tmp_path, split) for split in ("train", "test"))
    assert [video.video_id for video in train.videos] == list(INSTANCES["train"])
    video = test.videos[0]
    assert (video.frames, video.duration_s, video.fps) == (200, 6.0, 200 / 6)
    (rater,) = video.raters
    assert rater.frames == (51.0, 120.0) and rater.times_s == pytest.approx((51 * 6 / 200, 120 * 6 / 200))
    assert train.videos[0].duration_s == 7.831
    assert train.report().endswith("published count 12,822 clips, 29,489 boundaries")


def test_the_shipped_pickle_and_the_json_of_tapos_agree(tmp_path):
    write_tapos(tmp_path)
    ours = read_boundaries("tapos", tmp_path, "test")
    records = golden("targets")["tapos"]
    (tmp_path / "tapos_annotation.json").unlink()
    write_pickle(tmp_path / "tapos_gt_val.pkl", {name: one["record"] for name, one in records.items()})
    theirs = read_boundaries("tapos", tmp_path, "test", find_videos=False)
    assert [video.video_id for video in theirs.videos] == list(records)
    assert {len(video.raters) for video in (*ours.videos, *theirs.videos)} == {1}
    assert {video.mean_consistency for video in (*ours.videos, *theirs.videos)} == {1.0}


def test_instances_without_a_boundary_are_left_out_and_noted(tmp_path):
    file = write_tapos(tmp_path)
    content = tapos()
    content["yt_made_up-2"]["s00005_7_000_9_400"]["substages"] = [0, 199]
    file.write_text(json.dumps(content))
    split = read_boundaries("tapos", tmp_path, "test")
    assert len(split.videos) == 1
    assert split.notes[1] == f"instances left out as they have no boundary: 1 ({INSTANCES['val'][1]})"


def test_own_json(tmp_path):
    clips = {
        "a": {"subset": "training", "duration": 4.0, "fps": 25.0, "boundaries_s": [[1.2, 3.99], [1.3]]},
        "b": {"subset": "training", "duration": 4.0, "frame": 48, "boundaries_s": [[]]},
        "c": {"subset": "validation", "duration": 4.0, "fps": 25.0, "boundaries_s": [[2.0], [1.0], [2.2]],
              "consistency": [0.5, 0.2, 0.8]},
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps({"database": clips}))
    write_video(tmp_path / "videos" / "a.mp4", moving_square(0, 6))
    for name in ("b", "c"):
        write_frames_of(tmp_path / "videos" / name, 5, "{:05d}.png")
    train, test = (read_boundaries("json", tmp_path, split) for split in ("train", "test"))
    assert [rater.frames for rater in train.videos[0].raters] == [(30.0, 99.0), (32.0,)]
    assert [(video.frames, video.fps) for video in train.videos] == [(100, 25.0), (48, 12.0)]
    assert train.videos[0].mean_consistency == 1.0 and test.videos[0].mean_consistency == 0.5
    assert [rater.consistency for rater in test.videos[0].raters] == [0.5, 0.2, 0.8]
    assert not train.notes
    assert read_boundaries("json", tmp_path, "test", subset="training").videos == train.videos


def test_boundaries_outside_their_clip_are_kept_and_noted(root):
    change(root, lambda records: records[TEST[0]].update(record(TEST[0], [2.0, 11.0], [3.0], frames=100)))
    split = read_boundaries("kinetics_gebd", root, "test")
    note = f"boundaries outside their clip, kept as annotated: 1 ({TEST[0]} rater 0, 11 of 10 s)"
    assert note in split.notes and split.videos[0].raters[0].times_s == (2.0, 11.0)


# ---- where clips are


@pytest.mark.parametrize(
    "layout, image",
    [
        ("images/val/{clip}", "frame{}.jpg"),
        ("val_split/{group}/{clip}", "image_{:05d}.jpg"),
        ("val_split/{spaced}/{clip}", "image_{:05d}.jpg"),
        ("frames/{clip}", "img_{:05d}.png"),
        ("val/{clip}", "frame{}.jpg"),
        ("{group}/{clip}", "img_{:05d}.jpg"),
    ],
)
def test_frames_are_found_in_each_layout(root, layout, image):
    where = layout.format(clip=CLIP, group="air_drumming", spaced="Air drumming")
    shutil.rmtree(root / "images" / "val" / CLIP)
    write_frames_of(root / where, 12, image)
    split = read_boundaries("kinetics_gebd", root, "test")
    assert paths(split)[0] == str(root / where) and count_files(split.videos[0].path) == 12


@pytest.mark.parametrize("layout", ["images/val/{0}_{1}", "val_split/{0}/{1}", "{0}/{1}"])
def test_instances_of_tapos_are_found_in_each_layout(tmp_path, layout):
    write_tapos(tmp_path)
    shutil.rmtree(tmp_path / "images" / "val" / INSTANCES["val"][0])
    where = layout.format("yt_made_up-2", "s00004_0_500_6_500")
    write_frames_of(tmp_path / where, 12, "image_{:05d}.jpg")
    assert paths(read_boundaries("tapos", tmp_path, "test"))[0] == str(tmp_path / where)


def test_videos_are_found_and_the_first_named_folder_counts(root, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_video(first / "air_drumming" / f"{CLIP}.mp4", moving_square(0, 6))
    for clip in (CLIP, f"{TEST[1]}_000003_000013", f"{TEST[2]}_000003_000013"):
        write_frames_of(second / clip, 3)
    split = read_boundaries("kinetics_gebd", root, "test", videos=[first, second])
    assert paths(split)[0] == str(first / "air_drumming" / f"{CLIP}.mp4")
    assert paths(split)[1].startswith(str(second)) and count_files(split.videos[0].path) == 6


def test_a_clip_under_another_name_is_found_by_its_id_and_noted(root):
    shutil.move(root / "images" / "val" / CLIP, root / "images" / "val" / TEST[0])
    shutil.move(
        root / "images" / "val" / f"{TEST[2]}_000003_000013", root / "images" / "val" / f"{TEST[2]}_3_13"
    )
    split = read_boundaries("kinetics_gebd", root, "test")
    assert paths(split)[0].endswith(TEST[0]) and paths(split)[2].endswith("_3_13")
    note = f"clips found by their id alone, under another name: 2 ({TEST[0]}, {TEST[2]}_3_13)"
    assert note in split.notes


def test_missing_clips_are_counted_named_and_still_annotated(root):
    shutil.rmtree(root / "images" / "val" / CLIP)
    for image in (root / "images" / "val" / f"{TEST[1]}_000003_000013").iterdir():
        image.unlink()
    with pytest.raises(MissingVideo, match=f"2 of 3 videos: neither .*: {TEST[0]}, {TEST[1]}; download"):
        read_boundaries("kinetics_gebd", root, "test")
    split = read_boundaries("kinetics_gebd", root, "test", allow_missing=True)
    assert [video.video_id for video in split.videos] == [TEST[2]]
    assert [(video.video_id, video.path) for video in split.missing] == [(TEST[0], ""), (TEST[1], "")]
    assert {video.video_id for video in split.annotated} == set(TEST)
    assert "kept 1 of 3 clips, 2 missing, 8 boundaries" in split.report()
    assert any(note.startswith("folders without an image, counted as missing: 1 (") for note in split.notes)
    shutil.rmtree(root / "images")
    with pytest.raises(MissingVideo, match="all 3 of 3 videos: .*; pass the folders of the videos"):
        read_boundaries("kinetics_gebd", root, "test", allow_missing=True)


def test_frames_are_counted_from_1_or_0_without_a_gap(tmp_path):
    write_frames_of(tmp_path, 12)
    assert count_files(tmp_path) == 12
    (tmp_path / "frame12.jpg").rename(tmp_path / "frame0.jpg")
    assert count_files(tmp_path) == 12
    (tmp_path / "frame7.jpg").unlink()
    with pytest.raises(BadVideo, match="has 11 frames up to number 11, but no frame 7 .*extract the frames"):
        count_files(tmp_path)
    for number in range(7):
        (tmp_path / f"frame{number}.jpg").unlink()
    with pytest.raises(BadVideo, match="has 4 frames up to number 11, but no frame 1 "):
        count_files(tmp_path)


# ---- what is refused

RECORDS = [  # a change to a clip's record, and what is told of it
    ({"num_frames": None}, "'num_frames' is None, a number above 0 is needed"),
    ({"num_frames": 10.5}, "10.5 frames in 10 s: a whole number is needed"),
    ({"num_frames": 10**12, "video_duration": 1e10}, "1e+12 frames in 1e+10 s: a whole number is needed"),
    ({"num_frames": 100_000}, "100000 frames in 10 s: a whole number is needed, 1 to 1000 a second"),
    ({"fps": "10"}, "'fps' is '10', a number above 0"),
    ({"video_duration": -1.0}, "'video_duration' is -1.0"),
    ({"f1_consis": None}, "'f1_consis' is NoneType, a list of numbers is needed"),
    ({"f1_consis": [0.5, "0.6"]}, "'f1_consis' has '0.6', which is no number"),
    ({"f1_consis": [0.5]}, "2 raters in seconds, 2 in frames, 1 in f1_consis"),
    ({"f1_consis_avg": "0.5"}, "'f1_consis_avg' is '0.5', a number is needed"),
    ({"substages_timestamps": {}}, "'substages_timestamps' is dict, a list with a list for each rater"),
    ({"substages_timestamps": []}, "'substages_timestamps' has no rater"),
    ({"substages_timestamps": [[2.0, 6.0], None]}, "rater 1: 'substages_timestamps' is NoneType"),
    (
        {"substages_timestamps": [[2.0, 6.0], [2.1, float("nan"), 9.0]]},
        "rater 1: 'substages_timestamps' has nan",
    ),
    (
        {"substages_timestamps": [[2.0], [2.1, 6.2, 9.0]]},
        "rater 0: has 1 boundaries in seconds and 2 in frames",
    ),
    ({"path_frame": "air_drumming/.."}, "'..' is not a path below the video folder"),
    ({"path_frame": 3}, "'path_frame' is int, a text is needed"),
]


@pytest.mark.parametrize("given, told", RECORDS)
def test_a_record_that_cannot_be_meant_is_named(root, given, told):
    def edit(records):
        records[TEST[0]].update(given)

    records = kinetics()["val"]
    edit(records)
    file = write_pickle(root / GROUND_TRUTH.format("val"), records)
    with pytest.raises(BadRow) as caught:
        read_boundaries("kinetics_gebd", root, "test")
    assert str(caught.value).startswith(f"{file}: video '{TEST[0]}'") and told in str(caught.value)


def test_all_bad_records_come_in_one_error(root):
    def edit(records):
        records[TEST[0]]["fps"] = 0
        records[TEST[2]] = []

    records = kinetics()["val"]
    edit(records)
    write_pickle(root / GROUND_TRUTH.format("val"), records)
    with pytest.raises(BadRows) as caught:
        read_boundaries("kinetics_gebd", root, "test")
    assert [row.row for row in caught.value.rows] == [f"video '{TEST[0]}'", f"video '{TEST[2]}'"]


@pytest.mark.parametrize(
    "content, told",
    [
        ({}, "file: is empty"),
        ([1], "file: holds a list, not a dict of clips"),
        ({TEST[0]: record(TEST[0], [], [])}, "no clip to test with has a boundary"),
        (
            {TEST[0]: record(TEST[0], [20.0, 60.0], [3.0])},
            "2 of 3 boundaries lie outside their clip; write bound",
        ),
    ],
)
def test_a_file_of_other_content_is_refused(root, content, told):
    write_pickle(root / GROUND_TRUTH.format("val"), content)
    with pytest.raises(BadRow) as caught:
        read_boundaries("kinetics_gebd", root, "test")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "edit, told",
    [
        ({"path_video": 3}, "'path_video' is no text"),
        ({"num_frames": "300"}, "'num_frames' is '300'"),
        ({"substages_timestamps": [[], None]}, "'substages_timestamps' has not a list for each rater"),
        ({"substages_timestamps": [[], [{"start_time": 1.0}]]}, 'rater 1, mark 0: is not {"start_time": sec'),
        ({"substages_timestamps": [[3.0]]}, "rater 0, mark 0: is not"),
    ],
)
def test_a_raw_record_that_cannot_be_meant_is_named(tmp_path, edit, told):
    raw = golden("ground_truth")["raw"]
    raw["rulesAAAAA1"].update(edit)
    write_pickle(tmp_path / "k400_val_raw_annotation.pkl", raw)
    with pytest.raises(BadRow) as caught:
        read_boundaries("kinetics_gebd", tmp_path, "test", find_videos=False)
    assert "video 'rulesAAAAA1'" in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize(
    "edit, told",
    [
        ({"total_frames": None}, "instance yt_made_up-2_s00004_0_500_6_500: 'total_frames' is None"),
        ({"substages": [0, "5"]}, "'substages' has '5', which is no number"),
        ({"substages": None}, "'substages' is NoneType"),
    ],
)
def test_an_instance_that_cannot_be_meant_is_named(tmp_path, edit, told):
    file = write_tapos(tmp_path)
    content = tapos()
    content["yt_made_up-2"]["s00004_0_500_6_500"].update(edit)
    file.write_text(json.dumps(content))
    with pytest.raises(BadRow) as caught:
        read_boundaries("tapos", tmp_path, "test")
    assert told in str(caught.value)


def test_instances_of_another_name_are_refused(tmp_path):
    file = write_tapos(tmp_path)
    for content in (
        {"video": {"s1": {"subset": "val"}}},
        {"video": 3},
        {"video": {"s00004_6_500_0_500": {}}},
    ):
        if "s00004_6_500_0_500" in (content["video"] if isinstance(content["video"], dict) else ()):
            row = {"subset": "val", "total_frames": 9, "substages": [0, 3, 8]}
            content["video"]["s00004_6_500_0_500"] = row
        file.write_text(json.dumps(content))
        with pytest.raises(BadRow, match="instance video_.*(is not an object named|ends before it starts)"):
            read_boundaries("tapos", tmp_path, "test")


def test_a_boundary_of_own_json_may_lie_anywhere(tmp_path):
    clip = {
        "subset": "training",
        "duration": 4.0,
        "fps": 25.0,
        "boundaries_s": [[-1e308, 1.0, 2.0, 3.0, 1e308]],
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"a": clip}}))
    (rater,) = read_boundaries("json", tmp_path, "train", find_videos=False).videos[0].raters
    assert rater.frames[1:] == (25.0, 50.0, 75.0, 99.0) and rater.frames[0] < 0


def test_an_id_names_no_other_folder(root):
    file = change(root, lambda records: records.update({"../a": records.pop(TEST[0])}))
    with pytest.raises(BadRow, match=r"video '../a': '../a' is not a plain file name") as caught:
        read_boundaries("kinetics_gebd", root, "test")
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    "given, told",
    [
        ({"boundaries_s": [1.0, 2.0]}, "video 'a', rater 0: 'boundaries_s' is float, a list of numbers"),
        ({"boundaries_s": None}, "'boundaries_s' is NoneType, a list with a list for each rater"),
        ({"fps": None}, "'fps' is None"),
        ({"duration": "4"}, "'duration' is '4'"),
        (
            {"consistency": [0.5, 0.5]},
            r"'consistency' is [0.5, 0.5], a list of 1 numbers is needed; write one",
        ),
        ({"consistency": 0.5}, "'consistency' is 0.5, a list of 1 numbers"),
        ({"consistency": [80]}, "'consistency' has 80, a number from 0 to 1 is needed; write shares"),
        ({"subset": "val"}, "no video has the subset 'training', by which train is chosen; there are 'val'"),
    ],
)
def test_an_entry_of_own_json_that_cannot_be_meant_is_named(tmp_path, given, told):
    clip = {"subset": "training", "duration": 4.0, "fps": 25.0, "boundaries_s": [[1.0, 2.0]], **given}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"a": clip}}))
    with pytest.raises(BadRow) as caught:
        read_boundaries("json", tmp_path, "train", find_videos=False)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "number, told", [("9" * 5000, "cannot be read"), ("9" * 400, "'duration' is 999"), ("1e999", "is inf")]
)
def test_numbers_beyond_floats_are_named(tmp_path, number, told):
    row = f'{{"subset": "training", "duration": {number}, "fps": 25.0, "boundaries_s": [[1.0]]}}'
    (tmp_path / "annotations.json").write_text(f'{{"database": {{"a": {row}}}}}')
    with pytest.raises(BadRow) as caught:
        read_boundaries("json", tmp_path, "train", find_videos=False)
    assert told in str(caught.value)


def test_no_rate_in_own_json(tmp_path):
    clip = {"subset": "training", "duration": 4.0, "boundaries_s": [[1.0]]}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"a": clip}}))
    with pytest.raises(BadRow, match="video 'a': has no 'fps' and no 'frame'; write one of the two"):
        read_boundaries("json", tmp_path, "train", find_videos=False)


def test_folders_that_are_not_there_or_hold_a_clip_twice_are_refused(root):
    with pytest.raises(BadRow, match="gone: folder: is not a folder; pass a folder of clips or frames"):
        read_boundaries("kinetics_gebd", root, "test", videos=[root / "gone"])
    (root / "images" / "val" / f"{CLIP}.mp4").touch()
    with pytest.raises(BadRow, match=f"is the name of 2 in .*: {CLIP}, {CLIP}.mp4; keep one of them there"):
        read_boundaries("kinetics_gebd", root, "test")


def test_no_file_and_unknown_names(tmp_path):
    with pytest.raises(BadRow, match=r"no k400_mr345_val_.*\.pkl or k400_val_raw_annotation.pkl in "):
        read_boundaries("kinetics_gebd", tmp_path, "test")
    with pytest.raises(
        ValueError, match="'ava', 'test', '2022' is not one of kinetics_gebd, tapos, json, mini, train"
    ):
        read_boundaries("ava", tmp_path, "test")
    with pytest.raises(ValueError, match="'tapos', 'val', '2022' is not one of"):
        read_boundaries("tapos", tmp_path, "val")
    with pytest.raises(ValueError, match="'tapos', 'test', '2020' is not one of"):
        read_boundaries("tapos", tmp_path, "test", version="2020")


def test_code_in_the_ground_truth_does_not_run(root):
    class Hostile:
        def __reduce__(self):
            return open, (str(root / "code-has-run"), "w")

    (root / GROUND_TRUTH.format("val")).write_bytes(pickle.dumps({"a": Hostile()}))
    with pytest.raises(BadRow, match="names 'io.open', which is code"):
        read_boundaries("kinetics_gebd", root, "test")
    assert not (root / "code-has-run").exists()
