"""Owns: every training format is recognised and read as its files are; a mix is what its list says."""

import json
import re
from pathlib import Path

import pytest
from annotation_files import put, refusal

from moss_vllm.data.conversations import read_turns, read_videollama3
from moss_vllm.data.rows import CAPTION_PROMPT, BadRow, ClipRow, Turn
from moss_vllm.data.sources import read_sources


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


ASKED = [human("<video>\nWhat moves?"), gpt("A dog."), human("Where to?"), gpt("Left.")]
TURNS = (Turn("What moves?", "A dog."), Turn("Where to?", "Left."))
OURS = {"video": "a.mp4", "turns": [{"question": "What moves?", "answer": "A dog."}]}
FAVOR = {"video_name": "f.mp4", "caption": "A man turns.", "subset": "Koala36M"}
CAPTION = {"video_path": "m.mp4", "motion_caption": "The camera pans."}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


# ---- VideoLLaMA3's conversations


@pytest.mark.parametrize("name", ["sft.json", "sft.jsonl"])
@pytest.mark.parametrize("video", ["clips/a.mp4", ["clips/a.mp4"]])
def test_videollama3_row(tmp_path, name, video):
    put(tmp_path, "clips/a.mp4")
    path = write(tmp_path / name, [{"id": 7, "video": video, "conversations": ASKED, "image": None}])
    assert read_videollama3(path, tmp_path) == [
        ClipRow("clips/a.mp4#0", tmp_path / "clips" / "a.mp4", TURNS, None, None)
    ]


@pytest.mark.parametrize(
    "said",
    [
        [human("What moves? <video>"), *ASKED[1:]],
        [human("What moves?"), *ASKED[1:]],  # no tag: the authors put one in front
        [human("What moves?"), gpt("A dog."), human("<video>Where to?"), gpt("Left.")],
        [{"from": "system", "value": "Be kind."}, gpt("Hello."), *ASKED],  # turns before the first human one
    ],
)
def test_videollama3_tag_may_stand_anywhere(tmp_path, said):
    put(tmp_path, "videos/a.mp4")
    path = write(tmp_path / "sft.json", [{"video": ["a.mp4"], "conversations": said}])
    (row,) = read_videollama3(path, tmp_path)
    assert (row.turns, row.path) == (TURNS, tmp_path / "videos" / "a.mp4")


@pytest.mark.parametrize("video", [{}, {"video": None}])
def test_videollama3_text_only(tmp_path, video):
    said = [human("Two and two?"), gpt("Four.")]
    path = write(tmp_path / "sft.json", [{**video, "conversations": said}])
    assert read_videollama3(path, tmp_path) == [
        ClipRow("text#0", None, (Turn("Two and two?", "Four."),), None, None)
    ]


def test_videollama3_videos_may_repeat(tmp_path):
    put(tmp_path, "a.mp4")
    path = write(tmp_path / "sft.json", [{"id": "x", "video": ["a.mp4"], "conversations": ASKED}] * 2)
    assert [row.row_id for row in read_videollama3(path, tmp_path)] == ["a.mp4#0", "a.mp4#1"]


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"image": ["a.jpg"]}, "bad", "image rows are not supported, this trains on videos"),
        ({"video": None, "image": ["a.jpg"]}, "bad", "image rows are not supported"),
        ({"stream": True, "conversation": []}, "bad", "stream records are not supported"),
        ({"video": ["a.mp4", "b.mp4"]}, "bad", "'video' lists 2 videos, one is needed"),
        ({"video": []}, "bad", "'video' lists 0 videos"),
        ({"video": 3}, "bad", "'video' is int, a string is needed"),
        ({"video": ["/etc/passwd"]}, "bad", "video name '/etc/passwd' is not a relative file name"),
        ({"video": "../a.mp4"}, "bad", "video name '../a.mp4' is not a relative file name"),
        ({"video": "gone.mp4"}, "missing", "video 'gone.mp4' is in none of the folders ., videos of"),
        ({"video": None}, "bad", "1 <video> tags for no video"),
        ({"conversations": None}, "bad", "'conversations' is not a list of objects"),
        ({"conversations": ["hi"]}, "bad", "'conversations' is not a list of objects"),
        ({"conversations": []}, "bad", "speakers are nobody human"),
        ({"conversations": [gpt("A dog.")]}, "bad", "speakers are nobody human"),
        ({"conversations": ASKED[:3]}, "bad", "speakers are human, gpt, human; let 'human' and 'gpt'"),
        ({"conversations": [ASKED[0], *ASKED]}, "bad", "speakers are human, human, gpt, human, gpt"),
        ({"conversations": [human("A?"), {"from": "assistant", "value": "B"}]}, "bad", "human, assistant"),
        ({"conversations": [human("<video> and <video>?"), gpt("A")]}, "bad", "2 <video> tags for one video"),
        ({"conversations": [human("<video>\n"), gpt("A")]}, "bad", "a question is <video> alone"),
        ({"conversations": [human("A?"), gpt("<video>")]}, "bad", "a <video> tag in an answer"),
        ({"conversations": [human("<image>A?"), gpt("A")]}, "bad", "has an <image> tag"),
        ({"conversations": [human("A?"), gpt(" ")]}, "bad", "'value' is empty"),
        ({"conversations": [human("A?"), {"from": "gpt"}]}, "bad", "has no 'value'"),
    ],
)
def test_videollama3_bad_row(tmp_path, changes, kind, reason):
    put(tmp_path, "a.mp4")
    good = {"video": ["a.mp4"], "conversations": ASKED}
    path = write(tmp_path / "sft.json", [good, {**good, **changes}])
    refusal(lambda: read_videollama3(path, tmp_path), f"{path}: row 1", reason)
    bad = []
    assert [row.row_id for row in read_videollama3(path, tmp_path, bad=bad)] == ["a.mp4#0"]
    assert [one.kind for one in bad] == [kind]


# ---- our own rows


def test_turns_row(tmp_path):
    put(tmp_path, "a.mp4")
    turns = [
        {"question": q, "answer": a, "note": 1} for q, a in (("What moves?", "A dog."), ("Where?", "Left."))
    ]
    rows = [
        {"video": "a.mp4", "turns": turns, "start_s": 1.5, "end_s": 4, "id": "walk", "licence": "CC"},
        {"video": "a.mp4", "turns": turns, "start_s": None, "id": 12},
        {"turns": turns[:1]},
    ]
    said = (Turn("What moves?", "A dog."), Turn("Where?", "Left."))
    assert read_turns(write(tmp_path / "rows.jsonl", rows), tmp_path) == [
        ClipRow("walk", tmp_path / "a.mp4", said, 1.5, 4.0),
        ClipRow("12", tmp_path / "a.mp4", said, None, None),
        ClipRow("text#2", None, said[:1], None, None),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start": 1.5}, "has 'start', which is not read; call it 'start_s'"),
        ({"end_time": 1.5}, "has 'end_time', which is not read; call it 'end_s'"),
        ({"video_path": "a.mp4"}, "has 'video_path', which is not read; call it 'video'"),
        ({"start_s": "1.5"}, "start_s is '1.5', not a number of seconds"),
        ({"start_s": True}, "start_s is True"),
        ({"end_s": -1}, "end_s is -1"),
        ({"start_s": 4, "end_s": 4}, "end_s 4.0 is not above start_s 4.0"),
        ({"end_s": 0}, "end_s 0.0 is not above start_s 0.0"),
        ({"video": None}, "'video' is NoneType, a string is needed"),  # it must not train blind answers
        ({"video": ["a.mp4"]}, "'video' is list"),
        ({"video": "gone.mp4"}, "video 'gone.mp4' is in none of the folders"),
        ({"turns": []}, "'turns' is not a filled list of objects"),
        ({"turns": ["hi"]}, "'turns' is not a filled list of objects"),
        ({"turns": [{"question": "A?"}]}, "has no 'answer'"),
        ({"turns": [{"question": "A?", "answer": ""}]}, "'answer' is empty"),
        ({"id": "first"}, "row 1 ('first'): its id was already used; keep one of the two rows"),
        ({"id": " "}, "'id' is empty"),
    ],
)
def test_turns_bad_row(tmp_path, changes, reason):
    put(tmp_path, "a.mp4")
    path = write(tmp_path / "rows.jsonl", [{**OURS, "id": "first"}, {**OURS, **changes}])
    refusal(lambda: read_turns(path, tmp_path), f"{path}: row 1", reason)


def test_turns_a_part_of_no_video_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"turns": OURS["turns"], "start_s": 1}])
    with pytest.raises(BadRow, match="row 0: has start_s or end_s and no 'video'"):
        read_turns(path, tmp_path)


# ---- which format


@pytest.mark.parametrize(
    ("row", "name", "kind", "row_id"),
    [
        (FAVOR, "train.json", "FAVOR-Train", "f"),
        (FAVOR, "sft.json", "FAVOR-Train", "f"),
        (FAVOR, "my own.json", "FAVOR-Train", "f"),
        (CAPTION, "train.jsonl", "MotionBenchCaption", "m"),
        (CAPTION, "MotionBenchCaption-train/train.jsonl", "MotionBenchCaption", "m"),
        ({"video": ["a.mp4"], "conversations": ASKED}, "data.json", "VideoLLaMA3", "a.mp4#0"),
        (OURS, "data.jsonl", "turns", "a.mp4#0"),
    ],
)
@pytest.mark.parametrize("by", ["file", "folder"])
def test_formats_are_recognised(tmp_path, row, name, kind, row_id, by):
    put(tmp_path, "videos/f.mp4", "videos/a.mp4")
    put(tmp_path, "MotionBenchCaption-train/videos/m.mp4", "videos/m.mp4")
    path = write(tmp_path / name, [row])
    (source,) = read_sources(path if by == "file" else tmp_path).sources
    assert (source.format, [one.row_id for one in source.rows], source.bad) == (kind, [row_id], ())
    assert source.line() == f"{source.name}: {kind}, 1 rows (0 without a video), 0 rejected"


def test_bad_and_missing_rows_are_kept_beside_the_good(tmp_path):
    put(tmp_path, "f.mp4")
    write(tmp_path / "train.json", [FAVOR, {**FAVOR, "video_name": "gone"}, {**FAVOR, "caption": 1}])
    (source,) = read_sources(tmp_path).sources
    assert [row.row_id for row in source.rows] == ["f"]
    assert [row.kind for row in source.bad] == ["missing", "bad"]
    assert source.line() == f"{tmp_path.name}: FAVOR-Train, 1 rows (0 without a video), 2 rejected"


def test_videos_may_lie_elsewhere(tmp_path):
    put(tmp_path, "disk/f.mp4")
    path = write(tmp_path / "train.json", [FAVOR])
    with pytest.raises(BadRow, match="'f.mp4' is in none of the folders"):
        read_sources(path)
    assert read_sources(path, tmp_path / "disk").rows[0].path == tmp_path / "disk" / "f.mp4"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([FAVOR, CAPTION], "mixes the formats FAVOR-Train, MotionBenchCaption; write one file per format"),
        ([{"video_name": "f", "caption": "x", "questions": []}], "is a row of FAVOR-Bench, the test set"),
        ([{"stream": True, "video": "f.mp4", "conversation": []}], "stream records are not supported"),
    ],
)
def test_unknown_formats_are_named(tmp_path, rows, reason):
    put(tmp_path, "f.mp4", "m.mp4")
    with pytest.raises(BadRow, match=reason):
        read_sources(write(tmp_path / "x.json", rows))


def test_a_folder_must_tell_its_annotation(tmp_path):
    for name in ("train.json", "train.jsonl"):
        write(tmp_path / name, [FAVOR])
    with pytest.raises(BadRow, match=r"holds 2 annotation files \(train.json, train.jsonl\)"):
        read_sources(tmp_path)


def test_a_known_name_wins_over_others(tmp_path):
    put(tmp_path, "f.mp4")
    write(tmp_path / "train.json", [FAVOR])
    write(tmp_path / "video_perspective.json", [{}])
    assert len(read_sources(tmp_path).rows) == 1


# ---- several


@pytest.fixture
def mix(tmp_path):
    """Two sources, and a function that writes the list of them."""
    put(tmp_path, "favor/f.mp4", "disk/f.mp4")
    write(tmp_path / "favor" / "train.json", [FAVOR])
    write(tmp_path / "caps" / "train.jsonl", [{"video_path": "f", "motion_caption": "It turns."}])

    def make(text):
        (tmp_path / "mix.yaml").write_text(text)
        return tmp_path / "mix.yaml"

    return make


def test_a_mix_reads_beside_its_list(mix, tmp_path):
    sources = read_sources(
        mix("- {path: favor, weight: 3}\n- {path: caps/train.jsonl, weight: 0.5, videos: disk, name: caps}\n")
    )
    assert [(s.name, s.format, s.weight) for s in sources.sources] == [
        ("favor", "FAVOR-Train", 3),
        ("caps", "MotionBenchCaption", 0.5),
    ]
    assert sources.rows == [  # one video, two ids
        ClipRow("favor/f", tmp_path / "favor/f.mp4", (Turn(CAPTION_PROMPT, "A man turns."),), None, None),
        ClipRow("caps/f", tmp_path / "disk/f.mp4", (Turn(CAPTION_PROMPT, "It turns."),), None, None),
    ]
    assert sources.sources[1].line().endswith(", weight 0.5")


def test_a_mix_of_one_keeps_its_ids(mix):
    sources = read_sources(mix("- path: favor\n"))
    assert [row.row_id for row in sources.rows] == ["f"]
    assert sources.sources[0].weight is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a list of"),
        ("path: favor", "expected a list of"),
        ("- favor", "source 0 is 'favor'; write it as"),
        ("- {path: 3}", "source 0: path is 3, a text is needed"),
        ("- {path: favor, name: ''}", "source 0: name is '', a text is needed"),
        ("- {path: favor, weight: -1}", "weight is -1; it must"),
        ("- {path: favor, weight: .nan}", "weight is nan; it must"),
        ("- {path: favor, weight: .inf}", "weight is inf; it must"),
        pytest.param(f"- {{path: favor, weight: 1{'0' * 400}}}", "weight is 1000000", id="401 digits"),
        pytest.param(f"- {{path: favor, weight: 1{'0' * 5000}}}", "mix.yaml: cannot be", id="5001 digits"),
        ("- {path: 2026-99-99}", "mix.yaml: cannot be read as YAML: month must be"),
        ("- {path: favor, weight: true}", "weight is True; it must"),
        ("- {path: favor, weight: '2'}", "weight is '2'; it must"),
        ("- {path: favor, weight: }", "weight is None; it must"),
        ("- {path: favor, weight: 1}\n- {path: caps}", "caps have no weight; give every source one, or none"),
        ("- {path: favor}\n- {path: favor}", "more than one source is called favor; give each a `name`"),
        ("- {path: other.yaml}", "other.yaml is a list of its own"),
    ],
)
def test_a_bad_mix_is_refused(mix, text, reason):
    with pytest.raises(ValueError, match=reason):
        read_sources(mix(text))


def test_a_mix_names_its_own_videos(mix):
    path = mix("- path: favor")
    with pytest.raises(ValueError, match="is for one source; name `videos` in the list's rows"):
        read_sources(path, "disk")


# ---- docs/data.md


def test_the_documented_examples_are_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    examples = [json.loads(line) for line in re.findall(r"```json\n(.*)\n```", text)]
    put(tmp_path, "abc123_4.mp4", "0a1b2c.mp4", "clips/a.mp4")
    found = [read_sources(write(tmp_path / f"{n}.json", [row])).sources[0] for n, row in enumerate(examples)]
    assert [source.format for source in found] == [
        "FAVOR-Train",
        "MotionBenchCaption",
        "VideoLLaMA3",
        "turns",
    ]
    assert [len(source.rows[0].turns) for source in found] == [1, 1, 1, 2]
    mix = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1].replace("/disk/clips", str(tmp_path / "disk"))
    (tmp_path / "mix.yaml").write_text(mix)
    put(tmp_path, "FAVOR/abc123_4.mp4", "disk/clips/a.mp4", "MotionBench/MotionBenchCaption-train/0a1b2c.mp4")
    write(tmp_path / "FAVOR" / "train.json", [examples[0]])
    write(tmp_path / "MotionBench" / "MotionBenchCaption-train" / "train.jsonl", [examples[1]])
    write(tmp_path / "mine" / "rows.jsonl", [examples[3]])
    sources = read_sources(tmp_path / "mix.yaml")
    assert [source.weight for source in sources.sources] == [3, 1, 0.5]
    assert sources.rows[-1].row_id == "mine/dog-1"
