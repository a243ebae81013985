"""Owns: the plan's token counts are those of the real conversations, and every row it drops is named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from video_files import write_pictures

from moss_vllm.data.rows import BadRow, ClipRow, MissingVideo, Turn
from moss_vllm.data.sources import Source, Sources
from moss_vllm.video import probe as probe_module
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.probe import probe_clip
from moss_vllm.vlm.plan import plan
from moss_vllm.vlm.video_llama3.chat import encode

SAMPLING = Sampling(sample_fps=2.0, short_side_px=56, max_frames=12)
TURNS = (Turn("What moves?", "The red circle moves left."), Turn("Is it red?", "Yes."))


def write_noise(path, *, frames=30, **settings):
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(frames)]
    return write_pictures(path, noise, options={"g": "12"}, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of every kind that changes a count."""
    folder = tmp_path_factory.mktemp("videos")
    write_noise(folder / "plain.mp4")
    write_noise(folder / "long.mkv", frames=150)  # times of two digits, more than max_frames
    write_noise(folder / "uneven.mp4", frames=25, times_ms=np.cumsum([0] + [40, 40, 700, 130] * 6))
    write_noise(folder / "turned.mp4", rotation=90)
    write_noise(folder / "one.mp4", frames=1)
    return folder


def rows_of(folder):
    """Each video whole and in part, and a conversation without one."""
    rows = [
        ClipRow(path.name, path, TURNS[: 1 + n % 2], None, None)
        for n, path in enumerate(sorted(folder.iterdir()))
    ]
    rows += [
        ClipRow("from", folder / "long.mkv", TURNS, 3.3, None),
        ClipRow("part", folder / "long.mkv", TURNS, 9.7, 11.2),
        ClipRow("text", None, TURNS, None, None),
    ]
    return rows


def sources_of(rows, bad=(), weight=None, name="mine"):
    return Sources((Source(name, "turns", tuple(rows), tuple(bad), weight),))


def make(sources, processor, *, compress=False, max_tokens=100_000, sampling=SAMPLING, **settings):
    return plan(sources, processor, sampling=sampling, compress=compress, max_tokens=max_tokens, **settings)


# ---- counts


def test_counts_are_those_of_the_conversations(folder, processor):
    rows = rows_of(folder)
    result = make(sources_of(rows), processor)
    assert (result.rows, result.rejected, result.shares) == (rows, [], [(len(rows), float(len(rows)))])
    for row, tokens in zip(result.rows, result.tokens, strict=True):
        clip = None
        if row.path:
            clip = read_clip(row.path, SAMPLING, start_s=row.start_s or 0.0, end_s=row.end_s)
        assert tokens == len(encode(processor, clip, row.turns, compress=False)["input_ids"]), row.row_id
    assert replace(result, tokens=[50, 10, 20, 31]).spread() == (10, 26, 50)


@pytest.mark.parametrize("name", ["plain.mp4", "long.mkv", "uneven.mp4", "turned.mp4", "one.mp4"])
@pytest.mark.parametrize("side", [28, 112, None])
def test_a_probe_is_the_clip_without_its_pixels(folder, name, side):
    sampling = replace(SAMPLING, short_side_px=side)
    for part in ({}, {"start_s": 0.05, "end_s": 1.3}):
        clip, probe = (
            read_clip(folder / name, sampling, **part),
            probe_clip(folder / name, sampling, **part),
        )
        assert probe.frame_times_s == tuple(clip.frame_times_s)
        assert sorted((probe.height, probe.width)) == sorted(clip.frames.shape[1:3])


def test_compression_can_only_shorten(folder, processor):
    rows = rows_of(folder)
    whole, compressed = (make(sources_of(rows), processor, compress=c) for c in (False, True))
    assert whole.tokens == compressed.tokens  # upper bounds
    # A video at rest shrinks to the lower bound: its first frame and a token of every other one.
    still = np.zeros((12, 56, 84, 3), np.uint8)
    clip = read_clip(folder / "long.mkv", SAMPLING)
    example = encode(processor, replace(clip, frames=still), TURNS[:1], compress=True)
    row = next(row for row in rows if row.row_id == "long.mkv")
    least = len(example["input_ids"])
    row = replace(row, turns=TURNS[:1])
    fits = make(sources_of([row]), processor, compress=True, max_tokens=least)
    assert (fits.rows, fits.rejected) == ([row], [])
    short = make(sources_of([row]), processor, compress=True, max_tokens=least - 1)
    assert short.rows == [] and short.rejected[0].reason.startswith(f"at least {least} tokens of 12 frames")


# ---- what is dropped


def test_a_row_is_dropped_one_token_above_the_limit(folder, processor):
    row = ClipRow("one", folder / "plain.mp4", TURNS, None, None)
    tokens = make(sources_of([row]), processor).tokens[0]
    assert make(sources_of([row]), processor, max_tokens=tokens).rows == [row]
    (rejected,) = make(sources_of([row]), processor, max_tokens=tokens - 1).rejected
    assert (rejected.row_id, rejected.source, rejected.kind) == ("one", "mine", "too long")
    assert rejected.reason.startswith(f"{tokens} tokens of 6 frames and the text, more than max_tokens=")


def test_every_dropped_row_is_counted_written_and_named(folder, tmp_path, processor):
    (tmp_path / "torn.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:2000])
    rows = [
        *rows_of(folder),
        ClipRow("torn", tmp_path / "torn.mp4", TURNS, None, None),
        ClipRow("late", folder / "plain.mp4", TURNS, 60.0, 61.0),
        ClipRow("token", folder / "plain.mp4", (Turn("What?", "It <|im_end|> turns."),), None, None),
        ClipRow("wordy", None, (Turn("What?", "It moves left. " * 400),), None, None),
    ]
    bad = [
        BadRow("f.json", 3, "has no 'caption'", "fill it in"),
        MissingVideo("f.json", "row 4", "gone", "get"),
    ]
    result = make(sources_of(rows, bad), processor, max_tokens=1000)
    assert result.line() == "kept 8 of 14 rows: 1 too long, 4 bad, 1 missing"
    assert [row.row_id for row in result.rows] == [row.row_id for row in rows[:8]]
    file = result.write(tmp_path / "run")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert file == tmp_path / "run" / "rejected.jsonl"
    assert [(row["row_id"], row["source"], row["kind"]) for row in written] == [
        ("row 3", "mine", "bad"),
        ("row 4", "mine", "missing"),
        ("torn", "mine", "bad"),
        ("late", "mine", "bad"),
        ("token", "mine", "bad"),
        ("wordy", "mine", "too long"),
    ]
    reasons = {row["row_id"]: row["reason"] for row in written}
    assert reasons["row 3"] == "has no 'caption'; fill it in"
    assert "not a video, or its header is lost" in reasons["torn"]
    assert "start_s is 60.0, the video ends at 3.00 s" in reasons["late"]
    assert "special token of the chat layout" in reasons["token"]
    assert "of 0 frames and the text" in reasons["wordy"]


def test_a_plan_with_nothing_rejected_says_so(folder, tmp_path, processor):
    result = make(sources_of(rows_of(folder)), processor)
    (tmp_path / "rejected.jsonl").write_text("of an earlier run\n")
    assert result.write(tmp_path).read_text() == ""
    assert result.line() == "kept 8 of 8 rows: 0 too long, 0 bad, 0 missing"
    result.check(0.0)


def test_check_names_counts_file_and_remedies(processor, tmp_path):
    rows = [ClipRow(f"t{n}", None, TURNS, None, None) for n in range(98)]
    bad = [BadRow("f", 0, "is bad", "mend it"), MissingVideo("f", "row 1", "is gone", "get it")]
    result = make(sources_of(rows, bad), processor)
    result.check(0.02)
    with pytest.raises(RuntimeError) as caught:
        result.check()
    assert "in rejected.jsonl once the plan is written" in str(caught.value)
    result.write(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        result.check(0.015)
    assert str(caught.value).splitlines() == [
        f"2 of 100 rows (2.0%) cannot be used, more than 1.5%; all are in {tmp_path}/rejected.jsonl",
        "  1 bad: repair or remove the rows; the first is row 0 of mine: is bad; mend it",
        "  1 missing: download the videos, or pass the folder that holds them; the first is row 1 of mine: "
        "is gone; get it",
        "  or raise max_rejected_share to train on the others",
    ]


def test_check_names_a_source_that_has_no_row_left(processor):
    good = [ClipRow(f"t{n}", None, TURNS, None, None) for n in range(99)]
    wordy = ClipRow("b/w", None, (Turn("What?", "It moves left. " * 400),), None, None)
    sources = Sources(
        (*sources_of(good, name="a").sources, *sources_of([wordy], name="b", weight=2.0).sources)
    )
    result = make(sources, processor, max_tokens=500)
    assert result.shares == [(99, 99.0), (0, 2.0)]
    with pytest.raises(RuntimeError, match=r"1 of 100 rows \(1\.0%\) cannot be used, no row of b is left"):
        result.check(1.0)


def test_of_a_streamed_source_only_the_first_rows_are_told(processor, tmp_path):
    good = [ClipRow(f"t{n}", None, TURNS, None, None) for n in range(9)]
    bad = [BadRow("f", 0, "is bad", "mend it")]
    (own,), (stream,) = sources_of(good).sources, sources_of(good[:3], bad * 2, name="s", weight=2.0).sources
    stream = replace(stream, format="streamed")
    alone, mixed = make(Sources((stream,)), processor), make(Sources((own, stream)), processor)
    told = "streamed, each row checked as it comes; of the first 5: 0 too long, 2 bad, 0 missing"
    assert alone.line() == told
    assert mixed.line() == f"kept 9 of 9 rows: 0 too long, 0 bad, 0 missing; {told}"
    for result in (alone, mixed):
        result.check(0.0)
        assert result.write(tmp_path).read_text() == ""
    empty = make(Sources((own, replace(stream, rows=()))), processor)
    assert len(empty.write(tmp_path).read_text().splitlines()) == 2
    with pytest.raises(RuntimeError, match=r"2 of 11 rows \(18\.2%\) cannot be used, no row of s is left"):
        empty.check(1.0)


def test_weights_stay_and_counts_are_of_the_rows_kept(folder, processor):
    wordy = ClipRow("w", None, (Turn("What?", "It moves left. " * 400),), None, None)
    text = ClipRow("t", None, TURNS, None, None)
    one, two = sources_of([text, wordy, text]), sources_of([wordy, text], name="b")
    both = Sources((*one.sources, *two.sources))
    assert make(both, processor, max_tokens=500).shares == [(2, 2.0), (1, 1.0)]
    weighted = Sources(tuple(replace(s, weight=w) for s, w in zip(both.sources, (3, 0.5), strict=True)))
    assert make(weighted, processor, max_tokens=500).shares == [(2, 3.0), (1, 0.5)]


# ---- the cache


@pytest.fixture
def probed(monkeypatch):
    """Names of the videos measured."""
    names, original = [], probe_module.probe_clip

    def count(path, **settings):
        names.append(path.name)
        return original(path, **settings)

    monkeypatch.setattr(probe_module, "probe_clip", count)
    return names


@pytest.fixture
def mine(folder, tmp_path):
    """A folder to change, and its rows."""
    shutil.copytree(folder, tmp_path / "mine")
    return sources_of(rows_of(tmp_path / "mine")), tmp_path / "mine"


def test_a_video_is_measured_once(mine, processor, tmp_path, probed):
    sources, folder = mine
    cache = tmp_path / "run" / "plan.jsonl"
    first = make(sources, processor, cache=cache)
    assert len(probed) == 7  # rows that share a file and its part share a measurement
    probed.clear()
    again = make(sources, processor, cache=cache)
    assert probed == [] and (again.tokens, again.rows) == (first.tokens, first.rows)

    write_noise(folder / "plain.mp4", frames=50)  # edited
    edited = make(sources, processor, cache=cache)
    assert probed == ["plain.mp4"]
    changed = [
        row.row_id for row, a, b in zip(again.rows, again.tokens, edited.tokens, strict=True) if a != b
    ]
    assert changed == ["plain.mp4"]

    probed.clear()
    make(sources, processor, cache=cache, sampling=replace(SAMPLING, sample_fps=1.0))  # another sampling
    assert len(probed) == 7


def test_a_torn_line_costs_one_measurement(mine, processor, tmp_path, probed):
    cache = tmp_path / "plan.jsonl"
    first = make(mine[0], processor, cache=cache, workers=1)
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    for expected in (1, 0):
        probed.clear()
        assert make(mine[0], processor, cache=cache).tokens == first.tokens
        assert len(probed) == expected
    cache.write_bytes(b'\x00\xff\n[]\n{"key": 3}\n' + cache.read_bytes())
    assert make(mine[0], processor, cache=cache).tokens == first.tokens and not probed


def test_a_bad_video_is_looked_at_again(mine, processor, tmp_path):
    sources, folder = mine
    whole = (folder / "one.mp4").read_bytes()
    (folder / "one.mp4").write_bytes(whole[: len(whole) // 2])
    cache = tmp_path / "plan.jsonl"
    assert [row.row_id for row in make(sources, processor, cache=cache).rejected] == ["one.mp4"]
    (folder / "one.mp4").unlink()
    (rejected,) = make(sources, processor, cache=cache).rejected
    assert "No such file" in rejected.reason
    (folder / "one.mp4").write_bytes(whole)
    assert make(sources, processor, cache=cache).rejected == []
