"""Owns: captions come out in the layout FAVOR-Bench's LLM-free step 1 reads, also after a stop."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
from launching import ROOT, load_script

from moss_vllm.data.rows import Turn
from moss_vllm.evaluation import asking
from moss_vllm.evaluation import command as eval_script
from moss_vllm.evaluation.answering import Answers
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.video_llama3.chat import collate, encode

PROMPT = "Describe what is happening in the video."
# What the annotation calls a video, the file's name, the name the scorer's ground truth has.
VIDEOS = [
    ("B7DNX.mp4", "B7DNX.mp4", "B7DNX"),
    ("4_08_000048", "4_08_000048.mp4", "4_08_000048"),
    ("27k-12-4-3|P1|4966|5375", "27k-12-4-3|P1|4966|5375.mp4", "27k-12-4-3|P1|4966|5375"),
    ("7R8ZU.mp4", "7R8ZU.mp4.mp4", "7R8ZU"),
    ("539EH.mp4.mp4", "539EH.MP4", "539EH"),
]
STEMS = [stem for *_, stem in VIDEOS]


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return checkpoint.load(str(tiny_base), device="cpu", dtype=torch.float32)


@pytest.fixture
def data(world, tmp_path):
    """FAVOR-Bench's layout with its kinds of names; every video is another."""
    folder = tmp_path / "FAVOR" / "videos" / "FAVOR-Bench"
    folder.mkdir(parents=True)
    ask = {"question": "?", "options": ["left", "right"], "correct_answer": "left", "task_type": "AS"}
    clips = sorted((world / "FAVOR" / "videos" / "FAVOR-Bench").glob("*.mp4"))
    for (_, file, _), clip in zip(VIDEOS, clips, strict=False):
        shutil.copy(clip, folder / file)
    rows = [{"video_name": name, "questions": [ask] * 3, "caption": "human words"} for name, *_ in VIDEOS]
    (tmp_path / "FAVOR" / "video_perspective.json").write_text(json.dumps(rows))
    return tmp_path / "FAVOR"


@pytest.fixture
def captions(loaded, monkeypatch):
    """The script; its model is `loaded`."""
    module = load_script(ROOT / "eval" / "favor_captions.py")
    monkeypatch.setattr(eval_script, "load", lambda ckpt, device, dtype: loaded)
    return module


@pytest.fixture
def asked(loaded, monkeypatch):
    """Captions that depend on the video, and the prompts in the order they were asked."""
    prompts = []

    def answer(_, videos, *, max_new_tokens, batch_size):
        for given in videos:
            assert len(given.ids) == 1 and max_new_tokens == 512  # one prompt a video, whatever its questions
            prompts.append(loaded.processor.tokenizer.decode(given.ids[0]))
            seen = float(given.video["pixel_values_videos"].double().sum())
            seconds = dict.fromkeys(("encode", "prefill", "answer"), 0.5)
            yield Answers([f"The “red” square moves {seen:.3f}.\nThe camera shakes."], [], seconds)

    monkeypatch.setattr(asking, "answer", answer)
    return prompts


def run(captions, data, out, *more):
    argv = ["--data", str(data), "--out", str(out), "--device", "cpu", "--short-side-px", "84", *more]
    return captions.main(argv)


def read(out, name="captions.json"):
    return json.loads((out / name).read_text(encoding="utf-8"))


def store(out):
    return out / "answers" / "00-of-01.jsonl"


def test_layout_is_that_of_step_1(captions, loaded, data, tmp_path, asked, capsys):
    out = tmp_path / "out"
    result = run(captions, data, out)
    written = read(out)
    assert [list(one) for one in written] == [[stem] for stem in STEMS]  # a list of dicts with one key
    texts = [text for one in written for text in one.values()]
    assert texts == [record["output"] for record in result.records] and len(set(texts)) == len(STEMS)
    assert all(text.startswith("The “red” square moves ") for text in texts)
    assert sorted(path.name for path in out.iterdir()) == ["about.json", "answers", "captions.json"]
    about = read(out, "about.json")
    assert about["protocol"]["name"] == "caption" and about["protocol"]["short_side_px"] == 84
    assert about["checkpoint"] == loaded.name and about["captions"] == 5
    assert about["empty"] == [] and about["failed"] == {}
    assert capsys.readouterr().out == "5 of 5 captions, 0 of them empty\n"


def test_prompt_is_that_of_training_unless_another_is_given(captions, data, tmp_path, asked):
    run(captions, data, tmp_path / "a")
    assert [prompt.count(PROMPT) for prompt in asked] == [1] * 5
    rows = [json.loads(line) for line in store(tmp_path / "a").read_text().splitlines()[1:]]
    assert [row["answers"][0]["prompt"] for row in rows] == [PROMPT] * 5
    assert [row["answers"][0]["uid"] for row in rows] == [row["video_id"] for row in rows] == STEMS
    about = read(tmp_path / "a", "about.json")
    assert (about["prompt"], about["prompt_source"]) == (
        PROMPT,
        "moss_vllm; FAVOR-Bench's repository has none",
    )
    asked.clear()
    own = ("--prompt", "Describe the camera.")
    with pytest.raises(SystemExit, match="^error: .*holds answers of another run .data was "):
        run(captions, data, tmp_path / "a", *own)
    run(captions, data, tmp_path / "b", *own)
    assert [(p.count("Describe the camera."), p.count(PROMPT)) for p in asked] == [(1, 0)] * 5
    about = read(tmp_path / "b", "about.json")
    assert (about["prompt"], about["prompt_source"]) == ("Describe the camera.", "--prompt")


def test_a_run_cut_in_any_line_goes_on(captions, data, tmp_path, asked):
    out = tmp_path / "out"
    run(captions, data, out)
    whole, expected = store(out).read_bytes(), (out / "captions.json").read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for length in (0, 1, ends[0], *(end + 300 for end in ends[:5]), len(whole) - 1):  # cuts in every line
        asked.clear()
        store(out).write_bytes(whole[:length])
        (out / "captions.json").unlink()
        run(captions, data, out)
        kept = max(0, whole[:length].count(b"\n") - 1)  # the first line is the header
        assert len(asked) == 5 - kept, f"cut at byte {length}"
        assert (out / "captions.json").read_bytes() == expected
    asked.clear()
    run(captions, data, out)
    assert asked == []


def test_two_processes_and_merging_write_the_same_file(
    captions, reopen, data, tmp_path, asked, monkeypatch, capsys
):
    monkeypatch.setattr(eval_script, "load", reopen)
    run(captions, data, tmp_path / "one")
    expected, out = (tmp_path / "one" / "captions.json").read_bytes(), tmp_path / "two"
    asked.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(captions, data, out).pending == 3 and not (out / "captions.json").exists()
    told = capsys.readouterr().err
    command = shlex.split(told[told.index("python ") :])
    assert "3 videos have no caption yet" in told and command[2:] == [
        *("--merge", "--out", str(out), "--data", str(data), "--prompt", PROMPT)
    ]
    captions.main(command[2:])
    assert not (out / "captions.json").exists() and len(asked) == 2
    monkeypatch.setenv("RANK", "0")
    run(captions, data, out)
    assert (out / "captions.json").read_bytes() == expected and len(asked) == 5
    about = (out / "about.json").read_bytes()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(eval_script, "load", lambda *_, **__: pytest.fail("merging opens no model"))
    for _ in range(2):
        (out / "captions.json").unlink()
        captions.main(command[2:])
        assert (out / "captions.json").read_bytes() == expected and len(asked) == 5
    assert (out / "about.json").read_bytes() == about


def test_missing_videos_stop_the_run_or_have_an_empty_caption(captions, data, tmp_path, asked, capsys):
    folder, out = data / "videos" / "FAVOR-Bench", tmp_path / "out"
    gone = (folder / "4_08_000048.mp4").rename(tmp_path / "kept.mp4")
    (folder / "539EH.MP4").write_bytes(b"")
    with pytest.raises(SystemExit, match="^error: videos missing or unreadable: 2\n  4_08_000048: ") as told:
        run(captions, data, out)
    assert "\n  539EH: " in str(told.value)
    assert asked == []
    run(captions, data, out, "--allow-missing")
    written = read(out)
    assert [list(one) for one in written] == [[stem] for stem in STEMS]  # left out, they would raise the mean
    assert written[1] == {"4_08_000048": ""} and written[4] == {"539EH": ""} and len(asked) == 3
    about = read(out, "about.json")
    assert about["empty"] == list(about["failed"]) == ["4_08_000048", "539EH"]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "5 of 5 captions, 2 of them empty"
    assert told[1] == "missing or unreadable, with an empty caption: 4_08_000048, 539EH"
    for name in ("4_08_000048.mp4", "539EH.MP4"):  # asked about once they are there
        shutil.copy(gone, folder / name)
    run(captions, data, out)
    assert len(asked) == 5 and read(out, "about.json")["empty"] == []
    assert written[1] != read(out)[1] and written[0] == read(out)[0]


def test_a_part_of_the_videos_never_passes_for_all(
    captions, reopen, data, tmp_path, asked, monkeypatch, capsys
):
    monkeypatch.setattr(eval_script, "load", reopen)
    run(captions, data, tmp_path / "out", "--limit", "2")
    assert not (tmp_path / "out" / "captions.json").exists()
    assert [list(one) for one in read(tmp_path / "out", "captions-partial.json")] == [["B7DNX"], [STEMS[1]]]
    assert capsys.readouterr().out == "2 of 5 captions, 0 of them empty\n"
    run(captions, data, tmp_path / "out")  # which goes on
    assert [list(one) for one in read(tmp_path / "out")] == [[stem] for stem in STEMS] and len(asked) == 5


def test_captions_are_what_the_model_says(captions, loaded, data, tmp_path, monkeypatch):
    short = replace(captions.CAPTIONS.protocols["caption"], max_new_tokens=8)
    monkeypatch.setattr(captions, "CAPTIONS", replace(captions.CAPTIONS, protocols={"caption": short}))
    run(captions, data, tmp_path / "out", "--compress-tokens")
    clip = read_clip(data / "videos/FAVOR-Bench/B7DNX.mp4", Sampling(sample_fps=2.0, short_side_px=84))
    batch = collate([encode(loaded.processor, clip, [Turn(PROMPT)])], pad_id=0)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    said = loaded.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert read(tmp_path / "out")[0] == {"B7DNX": said} and said
