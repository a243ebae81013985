"""Owns: each action-recognition dataset is read as distributed, and what is wrong in its files is named."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from action_layouts import DATASETS, REPEATED, SSV_NAMES, moving_square, write_layout, write_video

from moss_vllm.data.actions.datasets import ActionSplit, left_right_swaps, read_action, tell_shared_clips
from moss_vllm.data.rows import BadRow, BadRows, MissingVideo


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """The folder of each dataset; not to be changed."""
    root = tmp_path_factory.mktemp("action")
    for data in DATASETS:
        write_layout(data, root / data)
    return root


@pytest.fixture
def make(tmp_path):
    def make(data):
        write_layout(data, tmp_path / data)
        return tmp_path / data

    return make


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def message(data, root, split="train", **how):
    with pytest.raises(ValueError) as caught:
        read_action(data, root, split, **how)
    return str(caught.value)


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


# ---- what is refused


@pytest.mark.parametrize("data", DATASETS)
def test_a_wrong_root_says_what_was_looked_for_and_where(tmp_path, data):
    text = message(data, tmp_path)
    wanted = {
        "ssv1": "no something-something-v1-labels.csv in",
        "ssv2": "no something-something-v2-labels.json or labels.json or labels/labels.json in",
        "diving48": "no Diving48_vocab.json in",
        "gym99": "no gym99_categories.txt or categories/gym99_categories.txt in",
        "gym288": "no gym288_categories.txt or categories/gym288_categories.txt in",
        "k400": "no train.csv or kinetics_400_train.csv",
        "list": "no labels.csv or *labels*.csv in",
    }[data]
    assert wanted in text and f"{tmp_path}, {tmp_path}/annotations" in text and "pass the folder" in text
    assert f"{tmp_path}/none: folder: is not a folder" in message(data, tmp_path / "none")


def test_unknown_data_and_split():
    assert "'ucf101', 'train' is not one of ssv1, ssv2, diving48" in message("ucf101", ".")
    assert "'ssv1', 'val' is not one of" in message("ssv1", ".", "val")


LABEL_FILES = {
    "ssv1": "something-something-v1-labels.csv",
    "ssv2": "labels/labels.json",
    "diving48": "Diving48_vocab.json",
    "gym99": "gym99_categories.txt",
    "list": "sth_labels.csv",
}
LISTS = {
    "ssv1": "something-something-v1-train.csv",
    "ssv2": "labels/train.json",
    "diving48": "Diving48_V2_train.json",
    "gym99": "gym99_train_element_v1.1.txt",
    "k400": "train.csv",
    "list": "train.txt",
}


@pytest.mark.parametrize("data", LABEL_FILES)
def test_a_missing_label_file_is_named(make, data):
    root = make(data)
    (root / LABEL_FILES[data]).unlink()
    assert Path(LABEL_FILES[data]).name.removeprefix("sth_") in message(data, root)


@pytest.mark.parametrize(
    ("data", "old", "new", "expected"),
    [
        ("ssv1", "100219;Turning", "100219;Eating", "line 2: class 'Eating the camera left"),
        ("ssv2", "Turning the camera left", "Eating", "(id '46'): class 'Eating while filming something'"),
        ("diving48", '"label": 47', '"label": 48', "row 1 (clip '-mmq0PT-u8k_00156'): class 48 is not"),
        ("diving48", '"label": 47', '"label": true', "class True is not one of 0 to 47"),
        ("gym99", "0036 98", "0036 99", "line 1: class '99' is not one of 0 to 98"),
        ("list", "clip 1 12 2", "clip 1 12 4", "line 2: class '4' is not one of 0 to 3"),
    ],
)  # fmt: skip
def test_an_unknown_class_names_file_row_and_value(make, data, old, new, expected):
    root = make(data)
    edit(root / LISTS[data], old, new)
    text = message(data, root)
    assert text.startswith(f"{root / LISTS[data]}: {expected}") or expected in text
    assert "use the label file of the same release" in text


@pytest.mark.parametrize(
    ("data", "old", "new", "expected"),
    [
        ("ssv1", "100219;", "100219,", "line 2: '100219,Turning"),
        ("ssv1", "100219;", ";", "is not 'id;class name'; use the train or validation csv"),
        ("ssv2", '"id": "46"', '"id": 46', "row 1: 'id' is int, a string is needed"),
        ("ssv2", '"template"', '"templates"', "row 0 (id '45'): has no 'template'"),
        ("diving48", '"vid_name"', '"video"', "row 0: has no 'vid_name'"),
        ("gym99", "0036 98", "0036  98 5", "line 1: 'A0xAXXysHUo_E_002184_002237_A_0035_0036  98 5' is not"),
        ("k400", ",84,", ",8x,", "line 2: time_start '8x' and time_end '94' are not both numbers"),
        ("k400", ",84,94,train,0", ",84", "line 2: has no time_end"),
        ("k400", "time_start", "begin", "line 1: its header has no time_start"),
        ("list", "some class/clip 1 12 2", "clip", "line 2: 'clip' is neither 'folder frames class' nor"),
        ("list", "clip 1 12 2", "clip 1 0 2", "is neither 'folder frames class' nor 'video class'"),
    ],
)
def test_a_malformed_row_is_named(make, data, old, new, expected):
    root = make(data)
    edit(root / LISTS[data], old, new)
    text = message(data, root, allow_missing=True)
    assert text.startswith(str(root / LISTS[data])) and expected in text


@pytest.mark.parametrize(
    ("data", "old", "name"),
    [
        ("ssv1", "100219", "../100219"),
        ("ssv1", "100219", ".."),
        ("ssv2", '"46"', '"/etc/46"'),
        ("diving48", "-mmq0PT-u8k_00156", "..\\\\\\\\x"),
        ("gym99", "A0xAXXysHUo_E_002184_002237_A_0036_0037", "a/../../b"),
        ("k400", "--3ouPhoy2A", "../x"),
        ("k400", '"air drumming",--3', '"../x",--3'),
        ("list", "some class/clip 1", "../clip"),
        ("list", "some class/clip 1", "/etc/clip"),
        ("list", "some class/clip 1", "C:/clip"),
    ],
)
def test_a_path_that_leaves_the_root_is_refused(make, data, old, name):
    root = make(data)
    edit(root / LISTS[data], old, name.replace("\\\\\\\\", "\\\\"))
    text = message(data, root, allow_missing=True)
    assert "is not a plain file name" in text or "is not a path below the video folder" in text


@pytest.mark.parametrize("data", LISTS)
def test_an_empty_list_is_refused(make, data):
    root = make(data)
    path = root / LISTS[data]
    path.write_text(
        "[]" if path.suffix == ".json" else path.read_text().splitlines()[0] if data == "k400" else " \n"
    )
    assert message(data, root).startswith(str(path))
    with pytest.raises(BadRow, match="is empty|is an empty list|lists no clip"):
        read_action(data, root, "train")


def test_repeated_clips_are_all_named(make):
    root = make("ssv1")
    path = root / "something-something-v1-train.csv"
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(BadRows) as caught:
        read_action("ssv1", root, "train")
    assert len(caught.value.rows) == 4
    assert "line 5: clip '100218' is already listed at line 1; keep one of the two rows" in str(caught.value)


def test_missing_videos_are_counted_and_the_first_named(make):
    root = make("ssv2")
    videos = root / "20bn-something-something-v2"
    for name in ("45.webm", "47.webm"):
        (videos / name).unlink()
    with pytest.raises(MissingVideo) as caught:
        read_action("ssv2", root, "train")
    assert str(caught.value) == (
        f"{root}/labels/train.json: 2 of 4 clips: "
        f"no video in 20bn-something-something-v2, videos, . of {root}: 45.webm, 47.webm; "
        "download them, or allow missing videos (--allow-missing)"
    )
    kept = read_action("ssv2", root, "train", allow_missing=True)
    assert [clip.clip_id for clip in kept.clips] == ["46", "48"]
    assert [row.row_id for row in kept.missing] == ["45", "47"]
    # Without a single one the root is wrong, whatever was allowed.
    for path in videos.iterdir():
        path.unlink()
    text = message("ssv2", root, allow_missing=True)
    assert "all 4 of 4 clips" in text and "pass the folder of the videos as root" in text


def test_many_missing_videos_make_a_short_message(make):
    root = make("list")
    (root / "train.txt").write_text("".join(f"gone/{i}.mp4 0\n" for i in range(1000)) + "clip_5.webm 1\n")
    text = message("list", root)
    assert "1,000 of 1,001 clips" in text and "gone/4.mp4, ... and 995 more" in text and len(text) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "broken JSON"),
        ("[]", "is a list, not a filled object"),
        (json.dumps({"a": "0", "b": "2"}), "its indices are not 0 to 1, each once"),
        (json.dumps({"a,b": "0", "ab": "1"}), "has class 'a,b' twice"),
    ],
)
def test_a_wrong_label_file_is_refused(make, text, expected):
    root = make("ssv2")
    (root / "labels" / "labels.json").write_text(text)
    assert expected in message("ssv2", root)


def test_wrong_categories_are_refused(make):
    root = make("gym99")
    path = root / "gym99_categories.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "Clabel: five", *lines[6:]]))
    assert "line 6: 'Clabel: five' is not 'Clabel: N; set: N; Glabel: N; name'" in message("gym99", root)
    path.write_text("\n".join(lines[1:]))
    assert "the labels of its 98 classes are not 0 to 97" in message("gym99", root)


def test_two_lists_that_could_be_meant_are_named(make):
    root = make("list")
    (root / "train.txt").rename(root / "ssv1_train.txt")
    assert len(read_action("list", root, "train").clips) == 4
    (root / "ssv2_train.txt").write_text("x 0\n")
    assert "2 files look like *train*.txt: ssv1_train.txt, ssv2_train.txt" in message("list", root)
    assert len(read_action("list", root, "train", annotation=root / "ssv1_train.txt").clips) == 4


def test_a_csv_without_classes_is_refused(make):
    root = make("ssv1")
    text = message("ssv1", root, annotation=root / "something-something-v1-test.csv")
    assert "'9001' is not 'id;class name'" in text and "the test csv has no classes" in text
    root = make("k400")
    (root / "test.csv").write_text("youtube_id,time_start,time_end,split\nabc,0,10,test\n")
    text = message("k400", root, "test", annotation=root / "test.csv")
    assert "its header has no label" in text


def test_kinetics_times_may_be_fractions(make):
    root = make("k400")
    edit(root / "train.csv", ",84,94,", ",84.0,94.0,")
    assert read_action("k400", root, "train").clips[0].clip_id == "---QUuC4vJs_000084_000094"


def test_a_list_of_videos_whose_names_end_in_numbers(make, tmp_path):
    root = make("list")
    write_video(root / "take 2.mp4", moving_square(0, frames=2))
    (root / "train.txt").write_text("take 2.mp4 3\n")
    assert read_action("list", root, "train").clips[0].label == 3


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


@pytest.mark.parametrize("time", ["inf", "nan", "1e999"])
def test_times_that_are_no_times_are_named(make, time):
    root = make("k400")
    edit(root / "train.csv", ",84,", f",{time},")
    assert f"line 2: time_start {time!r} and time_end '94' are not both numbers" in message("k400", root)


def test_a_csv_that_cannot_be_parsed_is_named(make):
    root = make("k400")
    with (root / "train.csv").open("a") as file:
        file.write('"' + "x" * 140_000)
    assert "line 5: is no csv (field larger than field limit (131072)); repair" in message("k400", root)
