"""Owns: a benchmark run ends with the same table however often it was stopped, and asks no question twice.

Also: batches do not change answers, the one-frame control shows one frame, a broken file is named and costs
no answer given before, and the scripts in eval/ write what they promise.
"""

import argparse
import importlib.util
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from moss_vllm import evaluation, report
from moss_vllm.data.favor import FAVOR_TASKS
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS, read_motionbench
from moss_vllm.data.rows import Question
from moss_vllm.data.video import BadVideo, Clip, read_clip
from moss_vllm.errors import errors_in_one_line
from moss_vllm.evaluation import (
    FAVOR_PROTOCOLS,
    MOTIONBENCH_PROTOCOLS,
    add_options,
    choose_folder,
    evaluate,
    hold_middle_frame,
)
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.miniature import build, build_processor, build_tokenizer

CORPUS = ["Time 0.0s:,\n", "A. left", "B. right", "C. up", "What moves? the red square moves", "Answer"]
PROTOCOL = replace(MOTIONBENCH_PROTOCOLS["letter"], short_side_px=84)
KINDS = ("Motion Recognition", "Repetition Count")


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    processor = build_processor(build_tokenizer(CORPUS, 300))
    model = build(processor.tokenizer).eval()
    with torch.no_grad():  # as initialised it repeats one token, whatever it sees
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.mul_(5)
    return Loaded(model, processor, "tiny", {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MotionBench's layout: four videos of different lengths, six public questions and two withheld ones."""
    root = tmp_path_factory.mktemp("MotionBench")
    rows = []
    for number, answers in enumerate((["A"], ["B", "C"], ["C", "A", "NA"], ["B", "NA"])):
        write(root / "self-collected" / f"v{number}.mp4", frames=8 + 4 * number, seed=number)
        qa = [
            {
                "uid": f"u{number}_{i}",
                "answer": answer,
                "question": f"What moves {i}?\nA. left\nB. right\nC. up",
            }
            for i, answer in enumerate(answers)
        ]
        rows.append({"question_type": KINDS[number % 2], "video_path": f"v{number}.mp4", "qa": qa})
    (root / "video_info.meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def asked(monkeypatch):
    """Answers that depend on the prompt alone, and the prompts in the order they were asked."""
    prompts = []

    def answer(loaded, examples, max_new_tokens):
        prompts.extend(example["input_ids"].tolist() for example in examples)
        return [f"({'ABC'[int(example['input_ids'].sum()) % 3]})" for example in examples]

    monkeypatch.setattr(evaluation, "_generate", answer)
    return prompts


def write(path, *, frames, seed, size=(84, 112)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8).repeat(7, 0).repeat(7, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            frame = np.roll(noise, 5 * i, 1)[: size[0], : size[1]]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        file.mux(stream.encode(None))


def run(loaded, data, store, protocol=PROTOCOL, **options):
    return evaluate(loaded, read_motionbench(data, data), MOTIONBENCH_TASKS, protocol, store=store, **options)


def lines(store):
    return [json.loads(line) for line in store.read_text().splitlines()]


def uids(store):
    return [row["uid"] for row in lines(store)[1:]]


@pytest.mark.parametrize("compress", [True, False])
def test_batches_do_not_change_answers(loaded, data, tmp_path, compress):
    protocol = replace(PROTOCOL, compress_tokens=compress, max_new_tokens=8)
    outputs = []
    for size in (1, 4):
        result = run(loaded, data, tmp_path / f"{size}.jsonl", protocol, batch_size=size)
        outputs.append([record["output"] for record in result.records])
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) == 4  # what is said depends on the video


def test_generation_settings_of_a_checkpoint_change_no_answer(loaded, data, tmp_path, monkeypatch):
    protocol = replace(PROTOCOL, max_new_tokens=8)
    plain = run(loaded, data, tmp_path / "plain.jsonl", protocol).records
    for name, value in {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "repetition_penalty": 3.0,
    }.items():
        monkeypatch.setattr(loaded.model.generation_config, name, value)
    assert run(loaded, data, tmp_path / "settings.jsonl", protocol).records == plain


def test_a_store_has_all_that_was_said(loaded, data, tmp_path, asked):
    result = run(loaded, data, tmp_path / "a.jsonl", batch_size=4)
    head, *rows = lines(tmp_path / "a.jsonl")
    assert head["header"]["questions"] == 6 and head["header"]["checkpoint"] == "tiny"
    assert head["header"]["protocol"] == {
        "name": "letter",
        "max_new_tokens": 16,
        "sample_fps": 2.0,
        "short_side_px": 84,
        "max_frames": 180,
        "compress_tokens": True,
        "still": False,
    }
    assert set(head["header"]["versions"]) == {"moss_vllm", "torch", "transformers", "peft"}
    assert [row["uid"] for row in rows] == ["u0_0", "u1_0", "u1_1", "u2_0", "u2_1", "u3_0"]
    assert rows == result.records
    letter = rows[1]["output"][1]
    assert rows[1] == {
        "uid": "u1_0",
        "video_id": "v1",
        "task": "RC",
        "prompt": "What moves 0?\nA. left\nB. right\nC. up\n"
        "Answer with the option's letter from the given choices directly and only give the best option.",
        "output": f"({letter})",
        "parsed": letter,
        "answer": "B",
        "correct": letter == "B",
        "protocol": "letter",
    }
    right = sum(row["parsed"] == row["answer"] for row in rows)
    assert result.score.accuracy["all"] == pytest.approx(100 * right / 6)
    assert result.score.total == {"all": 6, "MR": 3, "LM": 0, "CM": 0, "MO": 0, "AO": 0, "RC": 3}
    assert result.chance == pytest.approx({"all": 100 / 3, "MR": 100 / 3, "RC": 100 / 3})


def test_killed_at_any_byte_of_the_last_line(loaded, data, tmp_path, asked):
    store = tmp_path / "a.jsonl"
    first = run(loaded, data, store, batch_size=4)
    whole, last = store.read_bytes(), asked[-1]
    start = whole[:-1].rfind(b"\n") + 1
    for length in range(start, len(whole)):
        store.write_bytes(whole[:length])
        asked.clear()
        again = run(loaded, data, store, batch_size=4)
        assert asked == [last], f"cut at byte {length}"
        assert store.read_bytes() == whole and again.records == first.records
        assert again.resumed == 5
    asked.clear()
    assert run(loaded, data, store).score == first.score and asked == []
    store.write_bytes(whole[:100])  # inside the header: no answer yet
    assert run(loaded, data, store).records == first.records and len(asked) == 6


def test_stopped_in_the_middle(loaded, data, tmp_path, asked, monkeypatch):
    straight = run(loaded, data, tmp_path / "straight.jsonl", batch_size=2)
    everything = sorted(asked)
    asked.clear()
    answer, store = evaluation._generate, tmp_path / "stopped.jsonl"

    def stop(*given):
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answer(*given)

    monkeypatch.setattr(evaluation, "_generate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, data, store, batch_size=2)
    assert uids(store) == ["u0_0", "u1_0", "u1_1", "u2_0"]
    monkeypatch.setattr(evaluation, "_generate", answer)
    resumed = run(loaded, data, store, batch_size=3)
    assert sorted(asked) == everything  # each question once
    assert resumed.table("MotionBench-Dev") == straight.table("MotionBench-Dev")
    assert store.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_another_runs_answers_are_refused_and_kept(loaded, data, tmp_path, asked):
    store = tmp_path / "a.jsonl"
    run(loaded, data, store)
    before = store.read_bytes()
    changed = build(loaded.processor.tokenizer).eval()
    changed.load_state_dict(loaded.model.state_dict())
    with torch.no_grad():
        next(changed.parameters()).mul_(1.5)
    others = {
        "protocol.sample_fps was 2.0, is 1.0": (loaded, replace(PROTOCOL, sample_fps=1.0)),
        "protocol.still was False, is True": (loaded, replace(PROTOCOL, still=True)),
        "checkpoint was tiny, is other": (replace(loaded, name="other"), PROTOCOL),
        "weights was ": (replace(loaded, model=changed), PROTOCOL),
    }
    for message, (model, protocol) in others.items():
        with pytest.raises(
            ValueError, match=f"{message}.*; pass --overwrite to start again, or another --out"
        ):
            run(model, data, store, protocol)
    with pytest.raises(ValueError, match="questions was 6, is 2, data was"):
        videos = read_motionbench(data, data, split="test")
        evaluate(loaded, videos, MOTIONBENCH_TASKS, PROTOCOL, store=store)
    assert store.read_bytes() == before
    asked.clear()
    run(loaded, data, store, replace(PROTOCOL, still=True), overwrite=True)
    assert len(asked) == 6 and lines(store)[0]["header"]["protocol"]["still"] is True


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"uid": ', b'{"a": 1}', b"[1]"])
def test_a_damaged_line_is_named_and_nothing_is_cut(loaded, data, tmp_path, asked, damage):
    store = tmp_path / "a.jsonl"
    run(loaded, data, store)
    rows = store.read_bytes().split(b"\n")
    store.write_bytes(b"\n".join([*rows[:2], damage, *rows[3:]]) + b"torn")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3 is no line of an answer store"):
        run(loaded, data, store)
    assert store.read_bytes().endswith(b"\ntorn")
    store.write_bytes(b"\n".join([*rows[:2], rows[1], *rows[3:]]))
    with pytest.raises(ValueError, match="line 3 .*'u0_0' was answered before"):
        run(loaded, data, store)


def test_a_file_that_is_no_store_is_kept(loaded, data, tmp_path, asked):
    (tmp_path / "notes").write_text("my notes")
    with pytest.raises(ValueError, match="holds answers of another run"):
        run(loaded, data, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "my notes"


def test_the_one_frame_control_shows_the_middle_frame_at_every_time(loaded, data, tmp_path, monkeypatch):
    clip = read_clip(data / "self-collected" / "v1.mp4", sample_fps=2.0, short_side_px=84)
    still = hold_middle_frame(clip)
    assert len(clip.frames) == 6 and (clip.frames[0] != clip.frames[3]).any()
    assert (still.frames == clip.frames[3]).all() and still.frames.shape == clip.frames.shape
    assert still.frame_times_s.tolist() == clip.frame_times_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert hold_middle_frame(Clip(clip.frames[:1], clip.frame_times_s[:1])).frames.shape[0] == 1

    seen = {}
    for name in ("moving", "still"):
        shown = seen[name] = []
        monkeypatch.setattr(
            evaluation, "_generate", lambda _, e, n, shown=shown: shown.extend(e) or ["A"] * len(e)
        )
        protocol = replace(PROTOCOL, still=name == "still", compress_tokens=False)
        run(loaded, data, tmp_path / name, protocol)
    for moving, still in zip(seen["moving"], seen["still"], strict=True):
        frames = int(moving["video_grid_thw"][0, 0])
        before, after = (e["pixel_values_videos"].unflatten(0, (frames, -1)) for e in (moving, still))
        assert torch.equal(after, before[frames // 2].expand_as(after)) and not torch.equal(before, after)
        assert torch.equal(moving["input_ids"], still["input_ids"])  # the same times and questions


def test_a_corrupt_video_is_named_and_earlier_answers_are_kept(loaded, data, tmp_path, asked):
    broken, store = data / "self-collected" / "v2.mp4", tmp_path / "a.jsonl"
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadVideo, match=r"self-collected.v2\.mp4"):
            run(loaded, data, store, batch_size=1)
    finally:
        broken.write_bytes(whole)
    assert uids(store) == ["u0_0", "u1_0", "u1_1"]
    asked.clear()
    assert len(run(loaded, data, store).records) == 6
    assert uids(store) == ["u0_0", "u1_0", "u1_1", "u2_0", "u2_1", "u3_0"] and len(asked) == 3


def test_a_limit_is_labelled_partial_and_can_be_lifted(loaded, data, tmp_path, asked):
    part = run(loaded, data, tmp_path / "a.jsonl", limit=2)
    assert part.partial == "partial: 2 of 6 questions" and part.score.total["all"] == 2
    part.save(tmp_path, "MotionBench-Dev")
    title = "**MotionBench-Dev, accuracy (%), partial: 2 of 6 questions**"
    assert (tmp_path / "table.md").read_text().splitlines()[0] == title
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["partial"] == "partial: 2 of 6 questions" and saved["asked"] == 2 and saved["questions"] == 6
    whole = run(loaded, data, tmp_path / "a.jsonl")
    assert whole.partial == "" and whole.score.total["all"] == 6 and len(asked) == 6
    assert run(loaded, data, tmp_path / "a.jsonl", limit=2).records == part.records
    for wrong in ({"limit": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="is 0; it must be at least 1"):
            run(loaded, data, tmp_path / "b.jsonl", **wrong)


def test_saved_scores_are_unrounded(loaded, data, tmp_path, asked):
    result = run(replace(loaded, run={"step": 7}), data, tmp_path / "a.jsonl")
    result.save(tmp_path, "MotionBench-Dev")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["accuracy_percent"] == result.score.accuracy
    assert (
        saved["counts"]["total"] == result.score.total and saved["counts"]["correct"] == result.score.correct
    )
    assert saved["chance_percent"]["all"] == 100 / 3 and saved["run"] == {"step": 7}
    assert saved["protocol"] == PROTOCOL.settings and saved["versions"]["torch"] == version("torch")


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(
    loaded, data, tmp_path, asked, capsys, monkeypatch
):
    run(loaded, data, tmp_path / "a.jsonl", batch_size=4)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(report, "TELL_EVERY_S", 0.0)
    run(loaded, data, tmp_path / "b.jsonl", batch_size=4)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(", about")[0] for line in told] == ["4 of 6 questions", "6 of 6 questions"]


def test_protocols_judge_as_their_benchmarks():
    around = Question(
        "u", "AS", "?", ("Turn left", "Turn around", "Turn around and walk"), "Turn around", "?"
    )
    text, letter = FAVOR_PROTOCOLS["favor_official"].judge, FAVOR_PROTOCOLS["letter"].judge
    assert text("She will turn around.", around) == (True, "Turn around")
    assert text("Turn around and walk", around) == (False, "Turn around and walk")
    assert text("Turn left, turn around", around) == (True, "Turn left; Turn around")
    assert text("nothing", around) == (False, None)
    assert letter("(B)", around) == (True, "B") and letter("C", around) == (False, "C")
    assert letter("?", around) == (False, None)
    motion = MOTIONBENCH_PROTOCOLS["letter"].judge
    lettered = Question("u", "MR", "?", ("B", "A", "C"), "A", "?")  # texts that are letters mislead nobody
    assert motion("A", lettered) == (True, "A") and motion("B.", lettered) == (False, "B")
    assert motion("A", replace(lettered, answer=None)) == (False, "A")
    assert motion("?", replace(lettered, answer=None)) == (False, None)
    assert [p.max_new_tokens for p in (PROTOCOL, *FAVOR_PROTOCOLS.values())] == [16, 256, 16]


def test_clip_settings_of_the_checkpoint_give_way_to_flags():
    trained = {"short_side_px": 84, "compress_tokens": False, "max_tokens": 4096}
    adapted = MOTIONBENCH_PROTOCOLS["letter"].adapt(
        trained, {"sample_fps": 1.0, "compress_tokens": None, "data": 3}
    )
    assert adapted.settings == {**PROTOCOL.settings, "sample_fps": 1.0, "compress_tokens": False}


def script(name, loaded, monkeypatch):
    path = Path(__file__).parents[1] / "eval" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"eval_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load", lambda ckpt, device: loaded)
    return module


def test_motionbench_script(loaded, data, tmp_path, asked, monkeypatch, capsys):
    module = script("motionbench", replace(loaded, run={"protocol": {"short_side_px": 84}}), monkeypatch)
    monkeypatch.chdir(tmp_path)
    result = module.main(["--data", str(data), "--device", "cpu", "--max-frames", "4"])
    out = tmp_path / "runs" / "eval" / "motionbench" / "tiny"
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "result.json", "table.md"]
    assert json.loads((out / "result.json").read_text())["protocol"]["max_frames"] == 4
    assert result.protocol.short_side_px == 84 and result.protocol.sample_fps == 2.0
    shown = capsys.readouterr().out
    assert (
        "+ FAVOR-Train + MOSS (paper)" in shown
        and "number of questions" in shown
        and "motion world" not in shown
    )
    assert "6 questions scored; the published benchmark has 4,018" in shown
    with pytest.raises(SystemExit, match="^error: .*answers.jsonl holds answers of another run.*--overwrite"):
        module.main(["--data", str(data), "--device", "cpu", "--max-frames", "5"])
    module.main(["--data", str(data), "--device", "cpu", "--still"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny", "tiny-still"]


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], "runs/eval/favor_bench/tiny"),
        (["--ckpt", "a/step-000200/"], "runs/eval/favor_bench/tiny-step-000200"),
        (["--protocol", "favor_official"], "runs/eval/favor_bench/tiny"),
        (["--protocol", "letter"], "runs/eval/favor_bench/tiny-letter"),
        (
            ["--ckpt", "a/step-000200", "--protocol", "letter", "--still"],
            "runs/eval/favor_bench/tiny-step-000200-letter-still",
        ),
        (["--ckpt", "a/step-000200", "--still", "--out", "there"], "there"),
    ],
)
def test_runs_that_differ_have_folders_that_differ(flags, folder):
    parser = argparse.ArgumentParser()
    add_options(parser, FAVOR_PROTOCOLS)
    args = parser.parse_args(flags)
    assert choose_folder(args, "favor_bench", "hub/tiny", FAVOR_PROTOCOLS) == Path(folder)


@pytest.mark.parametrize(("split", "scored"), [("test", None), ("all", 6)])
def test_submission_has_the_withheld_questions(
    loaded, data, tmp_path, asked, monkeypatch, capsys, split, scored
):
    module = script("motionbench", loaded, monkeypatch)
    result = module.main(
        ["--data", str(data), "--split", split, "--out", str(tmp_path), "--short-side", "84"]
    )
    letters = json.loads((tmp_path / "submission.json").read_text())
    assert list(letters) == ["u2_2", "u3_1"] and set(letters.values()) <= set("ABC")
    assert (result.score and result.score.total["all"]) == scored
    assert "submission.json has 2 withheld questions, 0 without a letter" in capsys.readouterr().out


def test_favor_script_on_a_motion_world(loaded, data, tmp_path, asked, monkeypatch, capsys):
    folder = tmp_path / "FAVOR" / "videos" / "FAVOR-Bench"
    write(folder / "a.mp4", frames=6, seed=1)
    ask = {"question": "What?", "options": ["left", "right"], "correct_answer": "left", "task_type": "NSM"}
    row = {"video_name": "a.mp4", "questions": [ask, {**ask, "task_type": "AS"}]}
    (tmp_path / "FAVOR" / "video_perspective.json").write_text(json.dumps([row]))
    (tmp_path / "world.json").write_text("{}")
    module = script("favor_bench", loaded, monkeypatch)
    for given in (tmp_path, tmp_path / "FAVOR"):
        module.main(["--data", str(given), "--out", str(tmp_path / "out"), "--short-side", "84"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "the paper's rows are of FAVOR-Bench; these data are the motion world, not comparable" in shown
        assert "no option could be read from 2 answers" in shown
    assert len(asked) == 2
    result = module.main(
        [
            "--data",
            str(tmp_path),
            "--out",
            str(tmp_path / "letter"),
            "--short-side",
            "84",
            "--protocol",
            "letter",
        ]
    )
    assert [record["parsed"] in "AB" for record in result.records if record["parsed"]]
    assert list(result.tasks) == list(FAVOR_TASKS)


def test_wrong_input_ends_with_one_line_before_any_model_is_loaded(loaded, data, tmp_path, monkeypatch):
    module = script("motionbench", loaded, monkeypatch)
    monkeypatch.setattr(
        module, "load", lambda *_, **__: pytest.fail("loaded a model for data that cannot be used")
    )
    (tmp_path / "video_info.meta.jsonl").write_text(
        (data / "video_info.meta.jsonl").read_text().splitlines()[0]
    )
    with pytest.raises(SystemExit, match="^error: .*'v0.mp4' is in none of the folders") as stopped:
        module.main(["--data", str(tmp_path)])
    assert "\n" not in str(stopped.value)
    with pytest.raises(
        SystemExit, match="^error: .*holds none of video_info.meta.jsonl, MotionBench/video_info"
    ):
        module.main(["--data", str(tmp_path.parent)])


def test_scripts_end_with_one_line():
    for error, told in (
        (BadVideo("a.mp4", "empty", "copy it"), "error: a.mp4: empty (remedy: copy it)"),
        (KeyboardInterrupt(), "stopped; the same command goes on from here"),
    ):
        with pytest.raises(SystemExit) as stopped, errors_in_one_line():
            raise error
        assert stopped.value.code == told
    with pytest.raises(KeyError), errors_in_one_line():  # a fault of ours keeps its traceback
        raise KeyError("a")


def test_without_data_the_motion_world_is_asked_for(loaded, monkeypatch):
    for name in ("motionbench", "favor_bench"):
        module = script(name, loaded, monkeypatch)
        monkeypatch.setattr(module, "ensure_world", lambda: (_ for _ in ()).throw(OSError("made a world")))
        with pytest.raises(SystemExit, match="error: made a world"):
            module.main([])
