"""Owns: each class is in one group, the numbers by group are the clips' own, other clips are refused."""

import csv
import json
from collections import Counter

import pytest
from PIL import Image

from moss_vllm.commands.scripts import action_groups
from moss_vllm.data.actions.groups import find_groups, read_groups, something_groups
from moss_vllm.data.world.actions import CLASSES
from moss_vllm.runtime.line_store import AnswerFile, Shard

# In the order of their ids, with the pairs that mirroring exchanges where the real names have them.
SOMETHING = [f"Doing {number:03d}, to something" for number in range(174)]
for first in (86, 93, 166):
    SOMETHING[first : first + 2] = [f"Doing {first:03d} {side}" for side in ("left", "right")]


def write_test(folder, tested, *, data="mini", checkpoint="step 1", questions=None, failed=(), **protocol):
    """A result folder; `tested` has (id, class, class named), classes by name or as (class id, name)."""
    protocol = {"name": "views", "clips": 1, **protocol}
    header = {"benchmark": data, "protocol": protocol, "checkpoint": str(checkpoint)}
    header["questions"] = questions or len(tested) + len(failed)
    with AnswerFile(folder / "answers", header, Shard()) as file:
        for uid, name, said in tested:
            (label, name), (guess, said) = numbered(name), numbered(said)
            answer = {"uid": uid, "task": name, "output": said, "parsed": said, "answer": name}
            answer |= {"label": label, "guesses": [guess]}
            answer |= {"correct": label == guess, "in_top5": True, "top5": [[said, 0.5]]}
            file.add({"video_id": uid, "answers": [answer]})
        for uid in failed:
            file.add({"video_id": uid, "failed": "broken", "answers": []})
    return folder


def numbered(one):
    """(class id, name) of a class."""
    names = list(CLASSES) if one in CLASSES else SOMETHING
    return one if isinstance(one, tuple) else (names.index(one), one)


def clips(names, rights):
    """A clip of each class; the n-th is right if `rights` has a 1 there, and else said to be of the next."""
    named = enumerate(zip(names, rights, strict=True))
    return [(f"clip {n}", name, name if right == "1" else names[n - 1]) for n, (name, right) in named]


@pytest.fixture
def pair(tmp_path):
    """Two tests on the mini actions: direction 1 to 3 of 4, speed 2 to 0 of 2, relation 1 to 1 of 2."""
    names = list(CLASSES)[:6] + ["both move together", "both move against each other"]
    a = write_test(tmp_path / "a" / "test", clips(names, "10001110"))
    return a, write_test(tmp_path / "b" / "test", clips(names, "01110001"))


def failure(*arguments):
    with pytest.raises(SystemExit) as stop:
        action_groups.main(list(map(str, arguments)))
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


# ---- groups


def test_each_class_of_something_something_is_in_one_of_50_groups():
    groups = something_groups()
    assert list(groups) == list(range(174)) and len(set(groups.values())) == 50
    sizes = Counter(groups.values())
    assert sizes["Putting/Taking objects into/out of/next to/other objects"] == 19
    assert sizes["Rolling and sliding something"] == 10 and sizes["Poking something"] == 9
    assert sum(size == 1 for size in sizes.values()) == 3
    assert {groups[number] for number in (0, 166, 167)} == {"Camera motions"}
    assert {groups[number] for number in (86, 87)} == {"Pulling something"}
    assert {groups[number] for number in (93, 94)} == {"Pushing something"}


def test_no_id_is_written_twice():
    from moss_vllm.data.actions.groups import SOMETHING as written

    parts = [part.split("-") for numbers in written.values() for part in numbers.split()]
    ids = [number for part in parts for number in range(int(part[0]), int(part[-1]) + 1)]
    assert sorted(ids) == list(range(174))


def test_something_something_is_known_by_its_order_of_classes():
    for data in ("ssv1", "ssv2", "list"):
        groups = find_groups(data, dict(enumerate(SOMETHING)))
        assert groups == something_groups() and groups[15] == "Hitting something with something"
    for classes in (SOMETHING[:-1], SOMETHING[1:] + SOMETHING[:1]):
        with pytest.raises(ValueError, match="classes of ssv1 are not Something-Something's 174"):
            find_groups("ssv1", dict(enumerate(classes)))
        with pytest.raises(ValueError, match="no action groups are known of 'list'.*--groups"):
            find_groups("list", dict(enumerate(classes)))


def test_groups_of_other_data():
    assert find_groups("mini", {}) == dict(enumerate(CLASSES.values()))
    names = {
        3: "(VT) round-off, stretched",
        58: "(BB) salto backward tucked",
        70: "(BB) salto backward tucked",
    }
    assert find_groups("gym99", names) == {3: "VT", 58: "BB", 70: "BB"}
    with pytest.raises(ValueError, match="of 'k400'"):
        find_groups("k400", {0: "abseiling"})


def test_a_csv_of_groups(tmp_path):
    file = tmp_path / "groups.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([("name", "group"), ("moves, then stops", "order"), ("moves", "way")])
    assert read_groups(file, {4: "moves then stops", 0: "moves", 1: "stays"}) == {4: "order", 0: "way"}


def test_a_csv_of_groups_with_classes_of_one_name(tmp_path):
    file, classes = tmp_path / "groups.csv", {58: "salto, tucked", 70: "salto tucked"}
    file.write_text('name,group\n"salto, tucked",a\nsalto tucked,a\n')
    assert read_groups(file, classes) == {58: "a", 70: "a"}
    file.write_text("id,group\n58,a\n070,b\n3,c\n")
    assert read_groups(file, classes) == {58: "a", 70: "b"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("class,group\na,b\n", "line 1: 'class,group' is not the header 'name,group' or 'id,group'"),
        ("name,group\na,b,c\n", "line 2: 'a,b,c' is not 'name,group'"),
        ("name,group\na,\n", "line 2: 'a,' is not 'name,group'"),
        (
            'name,group\n"a, b",c\na b,d\n',
            "line 3: has class 'a b' in group 'd', above it is in 'c'; keep one",
        ),
        ("id,group\n0,a\nx,a\n", "line 3: 'x,a' is not 'id,group'"),
        ("", "file: is empty"),
        (None, "No such file"),
    ],
)
def test_a_csv_that_is_not_one_is_named(tmp_path, pair, text, message):
    file = tmp_path / "groups.csv"
    if text is not None:
        file.write_text(text)
    told = failure(*pair, "--groups", file)
    assert str(file) in told and message in told


# ---- two tests


def test_numbers_by_group_are_those_of_the_clips(pair, tmp_path, capsys):
    record = action_groups.main([*map(str, pair), "--json", str(tmp_path / "new" / "groups.json")])
    assert json.loads((tmp_path / "new" / "groups.json").read_text()) == json.loads(json.dumps(record))
    groups = record["groups"]
    assert list(groups) == ["direction", "relation", "speed"]
    assert [groups[name]["accuracy"] for name in groups] == [(25, 75), (50, 50), (100, 0)]
    assert [groups[name]["points"] for name in groups] == [50, 0, -100]
    assert (groups["direction"]["gained"], groups["direction"]["lost"]) == (3, 1)
    assert groups["speed"]["interval"] == (-100, -100)
    assert record["counts"] == {"up": 1, "down": 1, "equal": 1}
    assert record["all"]["accuracy"] == (50, 50) and record["all"]["questions"] == 8
    assert (record["A"]["name"], record["B"]["name"]) == ("a", "b")
    said = " ".join(capsys.readouterr().out.split())
    assert "speed 2 100.0 0.0 -100.0 -100.0 to -100.0 0 2" in said
    assert "1 of 3 groups up, 1 down, 1 equal; all 8 clips: 50.0 to 50.0 % (+0.0)" in said
    assert "no clip of 2 groups: camera, order" in said


def test_groups_of_ones_own(pair, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("name,group\n" + "".join(f"{name},{name.split()[0]}\n" for name in CLASSES))
    record = action_groups.main([*map(str, pair), "--groups", str(file)])
    assert {name: one["questions"] for name, one in record["groups"].items()} == {"moves": 6, "both": 2}


def test_a_picture_of_50_groups(tmp_path):
    names = SOMETHING * 2
    a = write_test(tmp_path / "a", clips(names, "10" * 174), data="ssv1")
    b = write_test(tmp_path / "b", clips(names, "110" * 116), data="ssv1")
    record = action_groups.main([str(a), str(b), "--out", str(tmp_path / "new" / "groups.png")])
    assert len(record["groups"]) == 50 and record["groups"]["Stuffing/Taking out"]["questions"] == 2
    with Image.open(tmp_path / "new" / "groups.png") as picture:
        assert picture.size == (1350, 1815) and picture.convert("L").getextrema() == (0, 255)


def test_ids_are_those_of_the_checkpoint_where_the_test_has_not_all_classes(tmp_path):
    run = tmp_path / "runs" / "b"
    some = clips(SOMETHING[15:17], "10")
    for folder in (run / "test", run / "evals" / "step-000002"):
        write_test(folder, some, data="ssv2")
    assert "the 2 classes of ssv2 are not" in failure(run / "test", run / "evals" / "step-000002")
    for place in (run / "best", tmp_path / "moved"):
        place.mkdir()
        (place / "run.json").write_text(json.dumps({"classes": SOMETHING}))
    far = write_test(tmp_path / "x" / "far", some, data="ssv2", checkpoint=tmp_path / "moved")
    for first, second in ((run / "test", far), (run / "evals" / "step-000002", far), (far, run / "test")):
        record = action_groups.main([str(first), str(second)])
        assert list(record["groups"]) == ["Hitting something with something", "Holding something"]


def test_ids_are_those_the_test_names_without_a_checkpoint(tmp_path):
    some = clips(SOMETHING, "1" * 174)[:-1] + [("clip 173", SOMETHING[0], SOMETHING[173])]
    a, b = (write_test(tmp_path / name, some, data="ssv2") for name in "ab")
    groups = action_groups.main([str(a), str(b)])["groups"]
    assert groups["Wiping something off of something"]["questions"] == 1  # 63; no clip is of 173
    assert groups["Camera motions"]["questions"] == 9


def test_a_list_of_something_something_is_known_without_its_checkpoint(tmp_path):
    a, b = (write_test(tmp_path / name, clips(SOMETHING, "1" * 174), data="list") for name in "ab")
    assert len(action_groups.main([str(a), str(b)])["groups"]) == 50
    some = [write_test(tmp_path / name, clips(SOMETHING[1:], "1" * 173), data="list") for name in "cd"]
    assert "no action groups are known of 'list'" in failure(*some)


def test_classes_of_one_name_are_in_groups_of_their_own(tmp_path):
    one, other = (58, "(BB) salto backward tucked"), (70, "(BB) salto backward tucked")
    a = write_test(tmp_path / "a", [("x", one, other), ("y", other, other)], data="gym99")
    b = write_test(tmp_path / "b", [("x", one, one), ("y", other, one)], data="gym99")
    file = tmp_path / "groups.csv"
    file.write_text("id,group\n58,first\n70,second\n")
    groups = action_groups.main([str(a), str(b), "--groups", str(file)])["groups"]
    assert {name: found["accuracy"] for name, found in groups.items()} == {
        "first": (0, 100),
        "second": (100, 0),
    }
    turned = write_test(tmp_path / "turned", [("x", other, one), ("y", other, one)], data="gym99")
    assert "do not agree on the class of 1 clips (x)" in failure(a, turned)


def test_a_test_of_an_earlier_version_is_refused(pair):
    file = pair[0] / "answers" / "00-of-01.jsonl"
    file.write_text(file.read_text().replace('"label"', '"number"'))
    assert "8 clips (clip 0, clip 1, clip 2, ...) without a class id, as earlier" in failure(*pair)


def test_what_differs_or_is_missing_is_said(tmp_path):
    some = clips(list(CLASSES)[:2], "11")
    a = write_test(tmp_path / "a", some, failed=["clip 8"], questions=5)
    b = write_test(tmp_path / "b", some, failed=["clip 8"], questions=5, clips=2)
    assert action_groups.main([str(a), str(b)])["notes"][:3] == [
        "WARNING: the views differ: clips 1 and 2",
        "1 clips could not be read and are not counted (clip 8)",
        "WARNING: 2 clips were not tested yet",
    ]


# ---- what is refused


def test_other_clips_are_counted_and_named(pair, tmp_path):
    names = list(CLASSES)
    more = write_test(tmp_path / "more", clips(names, "1" * 12))
    told = failure(pair[0], more)
    assert f"only {more} has 4 clips (clip 8, clip 9, clip 10, ...)" in told and "same clips" in told
    turned = write_test(tmp_path / "turned", clips(names[:4] + names[:4], "1" * 8))
    assert "do not agree on the class of 4 clips (clip 4, clip 5, clip 6, ...)" in failure(pair[0], turned)
    other = write_test(tmp_path / "other", clips(names[:8], "1" * 8), data="k400")
    assert "is of k400; compare tests of one dataset" in failure(pair[0], other)


def test_a_class_without_a_group(pair, tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("name,group\nmoves left,way\n")
    told = failure(*pair, "--groups", file)
    assert (
        f"{file}: no group for 7 classes of {pair[0]} ('moves right', 'moves up', 'moves down', ...)" in told
    )


def test_folders_that_are_no_tests(pair, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no tested clips; name one that" in failure(
        pair[0], tmp_path / "empty"
    )
    none = write_test(tmp_path / "none", [], questions=4)
    assert "has no clip that was scored yet" in failure(none, pair[0])
    asked = write_test(tmp_path / "asked", clips(list(CLASSES), "1" * 12), name="favor", data="FAVOR-Bench")
    assert "holds answers of another task (FAVOR-Bench); name one that eval/action_recog.py" in failure(
        pair[0], asked
    )
    assert "is named twice" in failure(pair[0], pair[0])
    assert "is a folder; name a file" in failure(*pair, "--out", tmp_path)
