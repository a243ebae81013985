"""Owns: each action-recognition dataset is read as distributed, with the classes of mirrored clips."""

import dataclasses
import pickle
from pathlib import Path

import pytest
from action_layouts import (
    DATASETS,
    REPEATED,
    SSV_NAMES,
    edit,
    message,
)

from moss_vllm.data.actions.datasets import ActionSplit, left_right_swaps, read_action, tell_shared_clips

# ---- what is read


EXPECTED = {  # classes, labels of train and test, path of the first clip of each
    "ssv1": (4, [3, 2, 1, 0], [3, 2], "20bn-something-something-v1/100218", "100222"),
    "ssv2": (4, [3, 2, 1, 0], [3, 2], "20bn-something-something-v2/45.webm", "49.webm"),
    "diving48": (48, [0, 47, 12, 0], [12, 0], "rgb/-mmq0PT-u8k_00155.mp4", "-mmq0PT-u8k_00159.mp4"),
    "gym99": (99, [98, 0, 7, 0], [7, 0], "subactions/A0xAXXysHUo_E_002184_002237_A_0035_0036.mp4", "40.mp4"),
    "gym288": (288, [287, 0, 7, 0], [7, 0], "A0xAXXysHUo_E_002184_002237_A_0035_0036.mp4", "0040.mp4"),
    "k400": (
        3,
        [2, 1, 0, 1],
        [1, 2],
        "train/testifying/---QUuC4vJs_000084_000094.mp4",
        "val/air_drumming/0wR5jVB-WPk_000417_000427.mp4",
    ),
    "list": (4, [3, 2, 1, 0], [3, 2], "some class/clip 0", "clip 4.mp4"),
}


@pytest.mark.parametrize("data", DATASETS)
def test_each_dataset_as_distributed(layouts, data):
    classes, train_labels, test_labels, train_path, test_path = EXPECTED[data]
    train, test = read_action(data, layouts / data, "train"), read_action(data, str(layouts / data), "test")
    assert len(train.classes) == classes and train.classes == test.classes
    assert [clip.label for clip in train.clips] == train_labels
    assert [clip.label for clip in test.clips] == test_labels
    assert train.clips[0].path.endswith(train_path) and test.clips[0].path.endswith(test_path)
    assert all(Path(clip.path).exists() for clip in (*train.clips, *test.clips))
    ids = {clip.clip_id for clip in (*train.clips, *test.clips)}
    assert len(ids) == 6 and train.missing == test.missing == ()


def test_something_something_classes_are_the_sorted_names(layouts):
    for data in ("ssv1", "ssv2"):
        split = read_action(data, layouts / data, "train")
        assert split.classes == tuple(sorted(SSV_NAMES)) and split.classes[0] == "Holding something"
        assert [clip.clip_id for clip in split.clips][0] == {"ssv1": "100218", "ssv2": "45"}[data]


def test_class_names_compare_without_commas(make):
    root = make("ssv1")
    edit(
        root / "something-something-v1-train.csv",
        "roll onto a slanted surface, so",
        "roll onto a slanted surface so",
    )
    assert [clip.label for clip in read_action("ssv1", root, "train").clips] == [3, 2, 1, 0]


def test_names_of_other_kinds(layouts):
    assert read_action("diving48", layouts / "diving48", "train").classes[:2] == (
        "Back 10som 05Twis FREE",
        "Back 15som 05Twis FREE",
    )
    gym = read_action("gym99", layouts / "gym99", "train")
    assert gym.classes[1] == "(FX) element 1, 1 turn; stretched"
    assert gym.groups[:5] == ("VT-set", "FX-set", "BB-set", "UB-set", "VT-set")
    assert read_action("k400", layouts / "k400", "test").classes == (
        "abseiling",
        "air drumming",
        "testifying",
    )
    # The authors' csv has no commas in its names.
    assert read_action("list", layouts / "list", "train").classes[1] == SSV_NAMES[2].replace(",", "")


def test_finegym_without_set_names(make):
    root = make("gym99")
    (root / "set_categories.txt").unlink()
    assert read_action("gym99", root, "train").groups[:2] == ("set 1", "set 21")


def test_older_file_names_and_other_containers(make):
    root = make("ssv2")
    for name in ("labels", "train", "validation"):
        (root / "labels" / f"{name}.json").rename(root / f"something-something-v2-{name}.json")
    (root / "20bn-something-something-v2").rename(root / "videos")
    (root / "videos" / "45.webm").rename(root / "videos" / "45.mp4")
    paths = [clip.path for clip in read_action("ssv2", root, "train").clips]
    assert paths == [str(root / "videos" / name) for name in ("45.mp4", "46.webm", "47.webm", "48.webm")]


def test_annotation_names_a_file_or_a_folder(make, tmp_path):
    root = make("k400")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("train.csv", "val.csv"):
        (root / name).rename(folder / name)
    whole = read_action("k400", root, "train", annotation=folder)
    assert [clip.label for clip in whole.clips] == [2, 1, 0, 1]
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "part.csv").write_text("\n".join(lines[:2]) + "\n")
    part = read_action("k400", root, "train", annotation=folder / "part.csv")
    # "abseiling" is in neither part.csv nor val.csv, beside which it lies.
    assert part.file == str(folder / "part.csv") and part.classes == ("air drumming", "testifying")
    assert "not there; check the annotation's path" in message("k400", root, annotation=folder / "x.csv")


def test_kinetics_clips_in_any_layout(make):
    root = make("k400")
    clip = root / "train" / "air drumming" / "--3ouPhoy2A_000020_000030.mp4"
    for place in ("train", "videos_train/air_drumming", "videos_train/air drumming", ""):
        (root / place).mkdir(parents=True, exist_ok=True)
        clip = clip.rename(root / place / clip.name)
        assert read_action("k400", root, "train").clips[1].path == str(clip)


def test_report_counts(layouts, make):
    report = read_action("ssv2", layouts / "ssv2", "train").report()
    assert report == (
        "ssv2 train: kept 4 of 4 clips, 0 missing, 4 classes (4 with clips); published count 168,913"
    )
    root = make("list")
    (root / "clip 4.mp4").unlink()
    split = read_action("list", root, "test", allow_missing=True)
    assert split.report() == (
        "list test: kept 1 of 2 clips, 1 missing, 4 classes (1 with clips); no published count"
    )
    assert [row.row_id for row in split.missing] == ["clip 4.mp4"]
    assert split.missing[0].reason == f"clip 4.mp4 is not below {root}"
    assert pickle.loads(pickle.dumps(split)) == split


# ---- left and right


@pytest.fixture(scope="module")
def something():
    """174 names with the authors' three pairs."""
    # Neighbours in the sorted list of 174 whose ids the class groups of data_formats.md name.
    names = [f"Class {i:03d}" for i in range(174)]
    names[85:90] = [
        f"Pulling something {where}"
        for where in ("from behind of it", "from left to right", "from right to left", "onto it", "out of it")
    ]
    names[93:96] = [
        f"Pushing something {w}" for w in ("from left to right", "from right to left", "off of it")
    ]
    names[165:169] = [
        f"Turning the camera {way} while filming something"
        for way in ("downwards", "left", "right", "upwards")
    ]
    return tuple(names)


SWAPS = {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}


def test_mirrored_classes_have_the_ids_of_the_authors_code(something):
    assert left_right_swaps(something) == SWAPS


def test_labels_are_swapped_where_the_data_define_it_and_nowhere_else(something):
    for data in DATASETS:
        split = ActionSplit(data, "train", something, (), (), None, "")
        assert split.swaps == (SWAPS if data in ("ssv1", "ssv2", "list") else {}) and split.may_mirror
    others = something[1:] + something[:1], ("turn left", "turn right"), ("drive on the Left", "walk")
    for classes in others:
        own = ActionSplit("list", "train", classes, (), (), None, "")
        assert own.swaps == {} and not own.may_mirror  # who knows what mirroring makes of them?
        assert ActionSplit("k400", "train", classes, (), (), None, "").may_mirror
    assert ActionSplit("list", "train", ("walk", "leftover"), (), (), None, "").may_mirror


@pytest.mark.parametrize("data", REPEATED)
def test_classes_of_one_name_stay_apart_and_move_no_other(layouts, data):
    split = read_action(data, layouts / data, "train")
    assert split.swaps == left_right_swaps(split.classes) == {}
    for label, name in REPEATED[data].items():
        assert split.classes[label] == name
    assert len(split.classes) - len(set(split.classes)) == len(REPEATED[data]) // 2


def test_classes_without_a_mirror_stay():
    assert left_right_swaps(("(BB) a", "(VT) b", "(BB) a", "(UB) c", "(UB) d")) == {}
    # Which of the two lefts would a mirrored right be?
    assert left_right_swaps(("go left", "go left", "go right", "x", "turn right", "turn left")) == {
        4: 5,
        5: 4,
    }
    assert left_right_swaps(("turn left", "leftover", "bright light", "go left, then right")) == {}
    assert left_right_swaps(("go left, then right", "go right then left")) == {0: 1, 1: 0}


# ---- lists of one's own


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "clip 4.mp4 1 3",
            "line 5: 'clip 4.mp4' is a video file; it takes one class, and no number of frames",
        ),
        ("clip 4.mp4 1 2 3", "line 5: '1' and a class stand behind 'clip 4.mp4'; that takes 'class', or"),
        ("clip 4.mp4 -1 3", "line 5: '-1' and a class stand behind 'clip 4.mp4'"),
        ("some class/clip 1 -12 3", "line 5: '-12' and a class stand behind 'some class/clip 1'"),
        ("some class/clip 1 12.0 3", "line 5: '12.0' and a class stand behind 'some class/clip 1'"),
        ("some class/clip 1 12 1 3", "line 5: '12' and a class stand behind 'some class/clip 1'"),
        ("some class/clip 1 0 3", "line 5: 'some class/clip 1 0 3' is neither"),
        ("clip 4.mp4 1,3", "line 5: class '1,3' is not one of 0 to 3"),
        ("clip 4.mp4 3.0", "line 5: class '3.0' is not one of 0 to 3"),
        ("clip 4.mp4 -1", "line 5: class '-1' is not one of 0 to 3"),
        ("clip 4.mp4 4", "line 5: class '4' is not one of 0 to 3; use the label file"),
        ("path label", "line 5: class 'label' is not one of 0 to 3"),
        ("clip 4.mp4", "line 5: class '4.mp4' is not one of"),
        ("clip_5.webm,3", "line 5: 'clip_5.webm,3' is neither 'folder frames class' nor 'video class'"),
        ("some class/clip 0 12 1", "line 5: clip 'some class/clip 0' is already listed at line 1"),
        (
            "./some class//clip 0/ 12 1",
            "line 5: './some class//clip 0' is the file of line 1 ('some class/clip 0')",
        ),
    ],
)
def test_a_line_that_can_mean_two_things_is_refused(make, line, expected):
    root = make("list")
    with (root / "train.txt").open("a") as file:
        file.write(line + "\n")
    assert f"{root / 'train.txt'}: {expected}" in message("list", root, allow_missing=True)


def test_tabs_empty_lines_spaces_and_folders_called_as_videos(make):
    root = make("list")
    (root / "some class" / "clip 3").rename(root / "clip.3.mp4")
    (root / "some class" / "clip 1").rename(root / "clip")
    lines = [
        "",
        "some class/clip 0\t12\t3",
        "   ",
        "clip 4.mp4\t  1 ",
        "\tclip.3.mp4 12 2",
        "clip 0",
    ]
    (root / "train.txt").write_text("\r\n".join(lines))
    clips = read_action("list", root, "train").clips
    names = [clip.path.removeprefix(f"{root}/") for clip in clips]
    assert names == ["some class/clip 0", "clip 4.mp4", "clip.3.mp4", "clip"]
    assert [(clip.label, clip.frames) for clip in clips] == [(3, 12), (1, None), (2, 12), (0, None)]


def test_clips_of_both_lists_are_told(make):
    root = make("list")
    (root / "val.txt").write_text("clip 4.mp4 3\n./some class/clip 1 12 2\n")
    train, test = (read_action("list", root, split) for split in ("train", "test"))
    assert tell_shared_clips(train, test) == [
        f"WARNING: 1 clips of {root}/val.txt are trained on: ./some class/clip 1; leave them out of one "
        "of the two lists"
    ]
    assert tell_shared_clips(train, dataclasses.replace(test, clips=test.clips[:1])) == []


# ---- names in two Unicode forms


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def rename_to(root, old, new):
    """Give videos, folders and rows another name; json files write it as it is."""
    for path in sorted(root.rglob(f"*{old}*"), reverse=True):
        path.rename(path.with_name(path.name.replace(old, new)))
    for path in root.rglob("*"):
        if path.is_file() and path.suffix in (".txt", ".csv", ".json"):
            path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("forms", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["row", "disk"])
@pytest.mark.parametrize(
    ("data", "part"),
    [("ssv1", "100219"), ("ssv2", "46"), ("diving48", "00156"), ("gym99", "0037"), ("gym288", "0037"),
     ("k400", "air drumming"), ("k400", "3ouPhoy2A"), ("list", "some class"), ("list", "clip 1")],
)  # fmt: skip
def test_a_name_is_found_in_another_unicode_form(make, data, part, forms):
    root = make(data)
    labels = [clip.label for clip in read_action(data, root, "train").clips]
    rename_to(root, part, forms[0])
    for path in sorted(root.rglob(f"*{forms[0]}*"), reverse=True):
        path.rename(path.with_name(path.name.replace(forms[0], forms[1])))
    clips = read_action(data, root, "train").clips
    assert [clip.label for clip in clips] == labels
    assert all(Path(clip.path).exists() for clip in clips)
    assert any(forms[1] in clip.path for clip in clips) and not any(forms[0] in clip.path for clip in clips)


def test_classes_in_two_unicode_forms_are_one(make):
    root = make("k400")
    edit(root / "train.csv", "testifying", COMPOSED)
    edit(root / "val.csv", "testifying", DECOMPOSED)
    (root / "train" / "testifying").rename(root / "train" / DECOMPOSED)
    train, test = (read_action("k400", root, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("abseiling", "air drumming", COMPOSED)
    root = make("ssv1")
    edit(root / "something-something-v1-labels.csv", "Holding", COMPOSED)
    edit(root / "something-something-v1-train.csv", "Holding", DECOMPOSED)
    assert sorted(clip.label for clip in read_action("ssv1", root, "train").clips) == [0, 1, 2, 3]


def test_a_name_that_is_there_in_two_forms_is_taken_as_written_or_refused(make):
    root = make("list")
    video = (root / "clip 4.mp4").read_bytes()
    both = "\u1e69", "s\u0323\u0307"  # one letter with two marks, which has more forms than two
    for name in both:
        (root / f"{name}.mp4").write_bytes(video)
    (root / "train.txt").write_text("".join(f"{name}.mp4 1\n" for name in both))
    paths = [clip.path for clip in read_action("list", root, "train").clips]
    assert paths == [f"{root}/{name}.mp4" for name in both]
    (root / "train.txt").write_text("clip_5.webm 1\n\u1e61\u0323.mp4 1\n")
    told = message("list", root, allow_missing=True)
    assert "line 2" in told and "in 2 Unicode forms, none as it is written here; rename one" in told
    (root / f"{both[1]}.mp4").unlink()
    (root / "train.txt").write_text("".join(f"{name}.mp4 1\n" for name in both))
    assert "line 2: " in (told := message("list", root)) and "is the file of line 1" in told


def test_a_csv_that_cannot_be_parsed_is_named(make):
    root = make("k400")
    with (root / "train.csv").open("a") as file:
        file.write('"' + "x" * 140_000)
    assert "line 5: is no csv (field larger than field limit (131072)); repair" in message("k400", root)
