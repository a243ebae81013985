"""Owns: a benchmark run ends with the same table however often it was stopped, and asks no question twice.

Also: batches do not change answers, the one-frame control shows one frame, a broken file is named and costs
no answer given before, and the scripts in eval/ write what they promise.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, as_flags, load_script

from moss_vllm.data.favor import FAVOR_TASKS
from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.data.rows import BenchmarkVideo, Question, Turn
from moss_vllm.evaluation import asking, command
from moss_vllm.evaluation.answering import Answers
from moss_vllm.evaluation.asking import Reading, choose_workers, evaluate, hold_middle_frame
from moss_vllm.evaluation.command import choose_folder
from moss_vllm.evaluation.options import add_options
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH, Questions
from moss_vllm.evaluation.questions import look_over
from moss_vllm.evaluation.result import QUESTION_SCHEMA, collect, read_evaluation
from moss_vllm.runtime import progress
from moss_vllm.runtime.errors import RunStopped, errors_in_one_line
from moss_vllm.runtime.line_store import AnswerFile, Shard, read_answers
from moss_vllm.runtime.provenance import answering_weights, fingerprint, settings_fingerprint
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.write import write_clip
from moss_vllm.vlm.adapter import trained_state
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.video_llama3.chat import conversation_text
from moss_vllm.vlm.video_llama3.miniature import build, build_processor, build_tokenizer

CORPUS = ["Time 0.0s:,\n", "A. left", "B. right", "C. up", "What moves? the red square moves", "Answer"]
PROTOCOL = replace(MOTIONBENCH.protocols["letter"], short_side_px=84)
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
    monkeypatch.setattr(asking, "answer", answer_of_prompts(prompts))
    return prompts


def answer_of_prompts(prompts):
    def answer(loaded, videos, *, max_new_tokens, batch_size):
        for given in videos:
            prompts.extend(ids.tolist() for ids in given.ids)
            yield said([f"({'ABC'[int(ids.sum()) % 3]})" for ids in given.ids])

    return answer


@pytest.fixture(scope="module")
def whole_store(loaded, data, tmp_path_factory):
    """A folder with the answers to all six questions; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "answer", answer_of_prompts([]))
        run(loaded, data, out)
    return out


@pytest.fixture
def answered(whole_store, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "answered")


def said(texts):
    return Answers(texts, [], dict.fromkeys(("encode", "prefill", "answer"), 0.5))


def write(path, *, frames, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (12, 112, 3), np.uint8).repeat(7, 0).repeat(7, 1)
    write_clip(np.stack([np.roll(noise, 5 * i, 1)[:, :112] for i in range(frames)]), path, fps=4)


def run(loaded, data, out, protocol=PROTOCOL, **options):
    return ask(loaded, read_motionbench(data, data), out, protocol, **options)


def ask(loaded, videos, out, protocol=PROTOCOL, *, limit=None, allow_missing=False, **options):
    """As the scripts in eval/ do: look the data over, then ask."""
    reading = Reading(**{name: options.pop(name) for name in ("read", "workers") if name in options})
    questions = look_over(MOTIONBENCH, videos, protocol.prompt, limit=limit, allow_missing=allow_missing)
    return evaluate(loaded, questions, protocol, out=out, reading=reading, **options)


def store(out):
    return out / "answers" / "00-of-01.jsonl"


def lines(out):
    return [json.loads(line) for line in store(out).read_text().splitlines()]


def uids(out):
    return [answer["uid"] for row in lines(out)[1:] for answer in row["answers"]]


def test_of_the_generation_config_what_changes_greedy_answers_is_followed_and_recorded(
    loaded, data, tmp_path, monkeypatch, capsys
):
    protocol, config = replace(PROTOCOL, max_new_tokens=8), loaded.model.generation_config
    plain = run(loaded, data, tmp_path / "plain", protocol)
    for name, value in {"do_sample": True, "temperature": 0.7, "top_k": 20, "num_beams": 3}.items():
        monkeypatch.setattr(config, name, value)
    capsys.readouterr()
    sampled = run(loaded, data, tmp_path / "settings", protocol)
    assert sampled.records == plain.records and sampled.table().notes == plain.table().notes
    ignored = "the model's generation config has num_beams=3: not followed, answers are greedy"
    assert ignored in capsys.readouterr().err
    monkeypatch.setattr(config, "repetition_penalty", 3.0)
    penalised = run(loaded, data, tmp_path / "penalised", protocol)
    assert penalised.records != plain.records and penalised.header["generation"] == {
        "repetition_penalty": 3.0
    }
    assert penalised.table().notes[1] == "greedy, by the model's generation config: repetition_penalty=3.0"
    with pytest.raises(ValueError, match="another run .generation.repetition_penalty was None, is 3.0"):
        run(loaded, data, tmp_path / "plain", protocol)
    likely = replace(MOTIONBENCH.protocols["likelihood"], short_side_px=84)
    assert run(loaded, data, tmp_path / "likely", likely).header["generation"] == {}


def test_a_store_has_all_that_was_said(loaded, data, tmp_path, asked):
    result = run(loaded, data, tmp_path)
    head, *rows = lines(tmp_path)
    assert head["header"]["questions"] == 6 and head["header"]["checkpoint"] == "tiny"
    assert head["header"]["benchmark"] == "MotionBench-Dev" and head["header"]["run"] == {}
    assert head["header"]["protocol"] == {
        "name": "letter",
        "max_new_tokens": 16,
        "sample_fps": 2.0,
        "short_side_px": 84,
        "max_pixels": None,
        "max_frames": 180,
        "compress_tokens": True,
        "still": False,
    }
    assert set(head["header"]["versions"]) == {"moss_vllm", "torch", "transformers", "peft"}
    assert [(row["video_id"], row["frames"]) for row in rows] == [("v0", 4), ("v1", 6), ("v2", 8), ("v3", 10)]
    assert all(row["seconds"].keys() == {"decode", "encode", "prefill", "answer"} for row in rows)
    assert uids(tmp_path) == ["u0_0", "u1_0", "u1_1", "u2_0", "u2_1", "u3_0"]
    assert result.records == [{"video_id": row["video_id"], **a} for row in rows for a in row["answers"]]
    letter = rows[1]["answers"][0]["output"][1]
    assert result.records[1] == {
        "uid": "u1_0",
        "video_id": "v1",
        "task": "RC",
        "question": "What moves 0?",
        "options": ["left", "right", "up"],
        "prompt": "What moves 0?\nA. left\nB. right\nC. up\n"
        "Answer with the option's letter from the given choices directly and only give the best option.",
        "output": f"({letter})",
        "parsed": letter,
        "answer": "B",
        "correct": letter == "B",
    }
    right = sum(row["parsed"] == row["answer"] for row in result.records)
    assert result.score.accuracy["all"] == pytest.approx(100 * right / 6)
    assert result.score.total == {"all": 6, "MR": 3, "LM": 0, "CM": 0, "MO": 0, "AO": 0, "RC": 3}
    assert result.chance == pytest.approx({"all": 100 / 3, "MR": 100 / 3, "RC": 100 / 3})


def test_killed_in_the_last_line(loaded, data, tmp_path, asked):
    first = run(loaded, data, tmp_path)
    whole, last = store(tmp_path).read_bytes(), asked[-1]
    start = whole[:-1].rfind(b"\n") + 1
    for length in (start, start + 1, start + 40, start + 400, len(whole) - 2, len(whole) - 1):
        store(tmp_path).write_bytes(whole[:length])
        asked.clear()
        again = run(loaded, data, tmp_path)
        assert asked == [last], f"cut at byte {length}"
        assert again.records == first.records and again.resumed == 5
    asked.clear()
    assert run(loaded, data, tmp_path).score == first.score and asked == []
    store(tmp_path).write_bytes(whole[:100])  # inside the header: no answer yet
    assert run(loaded, data, tmp_path).records == first.records and len(asked) == 6


def test_stopped_in_the_middle(reopen, data, tmp_path, asked, monkeypatch):
    straight = run(reopen(), data, tmp_path / "straight")
    everything = sorted(asked)
    asked.clear()
    answer, out = asking.answer, tmp_path / "stopped"

    def stop(*given, **options):
        for one in answer(*given, **options):
            yield one
            if len(asked) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(asking, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        run(reopen(), data, out)
    assert uids(out) == ["u0_0", "u1_0", "u1_1"]
    monkeypatch.setattr(asking, "answer", answer)
    resumed = run(reopen(), data, out)
    assert sorted(asked) == everything  # each question once
    assert resumed.table() == straight.table() and resumed.records == straight.records


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_share_the_videos_and_the_last_one_has_the_table(reopen, data, tmp_path, asked, processes):
    straight = run(reopen(), data, tmp_path / "straight")
    everything = sorted(asked)
    asked.clear()
    for rank in reversed(range(processes)):
        result = run(reopen(), data, tmp_path, shard=Shard(rank, processes))
        there = len(read_answers(tmp_path / "answers", QUESTION_SCHEMA).answers)
        assert result.pending == 6 - there == 6 - len(result.records)
    assert result.table() == straight.table() and sorted(asked) == everything
    files = [f"{rank:02d}-of-{processes:02d}.jsonl" for rank in range(processes)]
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == files
    asked.clear()
    assert (
        run(reopen(), data, tmp_path).records == straight.records and asked == []
    )  # by one process: nothing


def test_overwriting_drops_what_other_numbers_of_processes_wrote(loaded, data, tmp_path, asked):
    for rank in range(2):
        run(loaded, data, tmp_path, shard=Shard(rank, 2))
    run(loaded, data, tmp_path, replace(PROTOCOL, still=True), overwrite=True)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["00-of-01.jsonl"] and len(asked) == 12


def test_a_file_has_one_writer(loaded, data, answered):
    before = store(answered).read_bytes()
    with AnswerFile(answered / "answers", lines(answered)[0]["header"], Shard()):
        with pytest.raises(BlockingIOError, match="00-of-01.jsonl: another run writes to it; wait for it"):
            run(loaded, data, answered, overwrite=True)
    assert store(answered).read_bytes() == before


def test_missing_and_unreadable_videos_are_named_at_once_or_count_as_wrong(loaded, data, tmp_path, asked):
    for name in ("video_info.meta.jsonl", "self-collected/v0.mp4", "self-collected/v1.mp4"):
        (tmp_path / "self-collected").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((data / name).read_bytes())
    (tmp_path / "self-collected" / "v2.mp4").write_bytes(b"")
    videos = read_motionbench(tmp_path, tmp_path, allow_missing=True)
    for rank in range(2):  # each tells all
        with pytest.raises(ValueError, match="^videos missing or unreadable: 2\n") as told:
            ask(loaded, videos, tmp_path, shard=Shard(rank, 2))
    assert asked == [] and "v3: video 'v3.mp4' is in none of the folders" in str(told.value)
    assert "v2.mp4: the file is empty (0 bytes)" in str(told.value) and "--allow-missing" in str(told.value)
    result = ask(loaded, videos, tmp_path, allow_missing=True)
    assert result.score.total["all"] == 6 and result.score.answered["all"] == len(asked) == 3
    assert set(result.failed) == {"v2", "v3"} and result.pending == 0
    assert "2 videos missing or unreadable: their 3 questions count as wrong" in result.table().notes
    assert [r["correct"] for r in result.records if r["video_id"] in ("v2", "v3")] == [False] * 3
    stored = read_answers(tmp_path / "answers", QUESTION_SCHEMA)
    strict = collect(stored, Questions(MOTIONBENCH, videos), PROTOCOL)
    assert strict.pending == 3 and not strict.failed
    for name in ("v2", "v3"):  # they are asked about once they are there
        file = tmp_path / "self-collected" / f"{name}.mp4"
        file.write_bytes((data / "self-collected" / f"{name}.mp4").read_bytes())
    asked.clear()
    mended = ask(loaded, read_motionbench(tmp_path, tmp_path), tmp_path)
    assert len(asked) == 3 and not mended.failed and mended.score.answered["all"] == 6


def copied(data, tmp_path):
    return shutil.copytree(data, tmp_path / "copied")


def test_a_video_replaced_between_two_runs_is_noticed(reopen, data, tmp_path, asked, monkeypatch):
    data, out = copied(data, tmp_path), tmp_path / "out"
    run(reopen(), data, out, limit=2)
    video, kept = data / "self-collected" / "v1.mp4", tmp_path / "kept.mp4"
    before = store(out).read_bytes()
    video.rename(kept)
    shutil.copyfile(data / "self-collected" / "v3.mp4", video)
    told = rf"changed since they were asked about: 1\n  v1: .*v1\.mp4 was {kept.stat().st_size:,} bytes of 2"
    for limit in (2, None):  # also where nothing is left to ask
        with pytest.raises(
            ValueError, match=f"{told}.*, is .*\nput the earlier files back, or evaluate again"
        ):
            run(reopen(), data, out, limit=limit)
    assert store(out).read_bytes() == before and len(asked) == 2
    video.unlink()
    module = script("motionbench", None, monkeypatch)
    module.main(["--data", str(data), "--out", str(out), "--merge", "--limit", "2"])  # where no video is
    shutil.copyfile(kept, video)  # with a time of its own
    moved = data.rename(tmp_path / "moved")
    assert len(run(reopen(), moved, out).records) == 6 and len(asked) == 6
    overwritten = run(reopen(), moved, out, overwrite=True)
    assert overwritten.records and len(asked) == 12


def test_a_video_that_changes_while_it_is_read_is_another_one_after_it(loaded, data, tmp_path, asked):
    data, out = copied(data, tmp_path), tmp_path / "out"

    def read(path, **how):
        clip = read_clip(path, **how)
        if path.endswith("v2.mp4"):
            shutil.copyfile(data / "self-collected" / "v3.mp4", path)
        return clip

    run(loaded, data, out, read=read, workers=0)
    with pytest.raises(ValueError, match="asked about: 1\n  v2: "):
        run(loaded, data, out)


@pytest.mark.parametrize("after", [2, 6])  # in the middle, and once all is answered
def test_a_folder_removed_in_an_evaluation_ends_it(loaded, data, tmp_path, asked, monkeypatch, after):
    module, out, answer = script("motionbench", loaded, monkeypatch), tmp_path / "out", asking.answer

    def remove(*given, **options):
        for one in answer(*given, **options):
            yield one
            if len(asked) >= after:
                shutil.rmtree(out, ignore_errors=True)

    monkeypatch.setattr(asking, "answer", remove)
    with pytest.raises(SystemExit, match="^error: .*00-of-01.jsonl is gone: .* start the run again"):
        module.main(["--data", str(data), "--out", str(out), "--short-side-px", "84"])
    assert len(asked) == {2: 5, 6: 6}[after] and not out.exists()  # one video more


def test_other_settings_beside_a_living_run_ask_nothing(loaded, data, tmp_path, asked, monkeypatch):
    module = script("motionbench", loaded, monkeypatch)
    run(loaded, data, tmp_path / "other")
    header = lines(tmp_path / "other")[0]["header"]
    asked.clear()
    given = ["--data", str(data), "--out", str(tmp_path / "out"), "--short-side-px"]
    with AnswerFile(tmp_path / "out" / "answers", header, Shard(0, 2)):
        with pytest.raises(SystemExit, match="^error: .*00-of-02.jsonl: another run .* has other settings"):
            module.main([*given, "56"])
        with pytest.raises(SystemExit, match="^error: .*would lose its answers by --overwrite; wait for"):
            module.main([*given, "84", "--overwrite", "--limit", "2"])
    assert asked == []


def test_every_file_at_the_end_is_named_when_the_disk_is_full(loaded, data, tmp_path, asked, monkeypatch):
    module, limits = script("motionbench", loaded, monkeypatch), resource.getrlimit(resource.RLIMIT_FSIZE)
    given = ["--data", str(data), "--split", "all", "--out", str(tmp_path), "--short-side-px", "84"]
    module.main(given)
    for name, left in (("submission.json", 10), ("result.json", 100)):
        (tmp_path / name).unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))  # the answers are complete
        try:
            with pytest.raises(SystemExit) as ended:
                module.main(given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(ended.value).startswith(f"error: {tmp_path / name} cannot be written (File too large)")
        module.main(given)


def test_option_likelihood_is_a_protocol_of_its_own(loaded, data, tmp_path):
    protocol = replace(MOTIONBENCH.protocols["likelihood"], short_side_px=84)
    result = run(loaded, data, tmp_path, protocol)
    for record in result.records:
        scores = record["log_likelihood"]
        assert list(scores) == ["A", "B", "C"] and max(scores.values()) < 0
        assert record["output"] == record["parsed"] == max(scores, key=scores.get)
    assert result.table().notes[0].startswith("protocol likelihood (option likelihood, nothing is generated)")


TEXT = replace(MOTIONBENCH.protocols["option_text"], short_side_px=84)


def test_the_likeliest_text_is_stored_stopped_resumed_shared_out_and_merged(
    reopen, data, tmp_path, monkeypatch
):
    straight = run(reopen(), data, tmp_path / "straight", TEXT)
    for record in straight.records:
        losses = record["mean_loss"]
        assert list(losses) == ["A", "B", "C"] and len(set(losses.values())) == 3
        assert record["parsed"] == min(losses, key=losses.get)
        assert record["output"] == record["options"]["ABC".index(record["parsed"])]
        assert record["correct"] == (record["parsed"] == record["answer"])
    assert straight.score.answered["all"] == 6 and straight.header["generation"] == {}
    assert (
        straight.table().notes[0].startswith("protocol option_text (mean loss per token of an option's text")
    )
    choosing, out = asking.choose_text, tmp_path / "stopped"

    def stop(*given, **options):
        yield next(choosing(*given, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(asking, "choose_text", stop)
        with pytest.raises(KeyboardInterrupt):
            run(reopen(), data, out, TEXT, batch_size=1)
    assert uids(out) == ["u0_0"]
    with pytest.raises(ValueError, match="another run .protocol.name was option_text, is letter"):
        run(reopen(), data, out)
    for rank in (1, 0):
        result = run(reopen(), data, out, TEXT, shard=Shard(rank, 2))
    assert result.resumed == 4 and result.table() == straight.table()
    for one, other in zip(result.records, straight.records, strict=True):
        assert one["mean_loss"] == pytest.approx(other["mean_loss"], rel=1e-5)
        assert {**one, "mean_loss": 0} == {**other, "mean_loss": 0}
    args = argparse.Namespace(out=out, limit=None, allow_missing=False)
    merged, _ = command.merge(args, read_motionbench(data, data), MOTIONBENCH)
    assert merged.table() == straight.table() and merged.records == result.records


@pytest.mark.parametrize("name", ["letter", "likelihood", "option_text"])
def test_broken_weights_have_no_answer_and_cost_none_given_before(reopen, data, tmp_path, name):
    broken, protocol = reopen(), replace(MOTIONBENCH.protocols[name], short_side_px=84)
    weights = broken.model.get_input_embeddings().weight

    def reads_then_breaks(path, **given):
        if path.endswith("v1.mp4"):
            weights.data[:] = float("nan")
        return read_clip(path, **given)

    told = (
        r"checkpoint .* has no answer to question 'u1_0' about .*v1.mp4: its numbers are not finite \(nan\)"
    )
    with pytest.raises(RunStopped, match=told):
        run(broken, data, tmp_path, protocol, batch_size=1, read=reads_then_breaks, workers=0)
    assert uids(tmp_path) == ["u0_0"]


@pytest.mark.parametrize("benchmark", [MOTIONBENCH, FAVOR_BENCH], ids=lambda one: one.name)
def test_every_kind_of_options_gets_its_losses(loaded, data, tmp_path, benchmark):
    """Of one text twice, the first; 26; the start of another; some hundred words."""
    long = " ".join(["moves left and up"] * 80)
    kinds = [
        ("left", " left", "left ", "up"),
        ("left", "left and up", long),
        [f"{n} times" for n in range(26)],
    ]
    task, right = next(iter(benchmark.tasks)), [tuple(options)[1] for options in kinds]
    answers = ["B"] * 3 if benchmark is MOTIONBENCH else right
    questions = tuple(
        Question(f"q{n}", task, "What moves?", tuple(options), answer, "What moves?")
        for n, (options, answer) in enumerate(zip(kinds, answers, strict=True))
    )
    protocol = replace(benchmark.protocols["option_text"], short_side_px=84)
    (video, *_) = read_motionbench(data, data)

    def ask_about(*questions):
        videos = [replace(video, questions=questions)]
        return evaluate(
            loaded, look_over(benchmark, videos, protocol.prompt), protocol, out=tmp_path, overwrite=True
        )

    for record, options in zip(ask_about(*questions).records, kinds, strict=True):
        losses = record["mean_loss"]
        assert list(losses) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)])
        place = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(min(losses, key=losses.get))
        assert record["output"] == options[place].strip()
        assert record["parsed"] == (
            min(losses, key=losses.get) if benchmark is MOTIONBENCH else record["output"]
        )
        if options is kinds[0]:
            assert losses["A"] == losses["B"] == losses["C"] != losses["D"]
    with pytest.raises(ValueError, match="a choice is empty; every choice needs a word"):  # readers refuse it
        ask_about(replace(questions[0], options=("left", "\t")))


def test_what_a_process_draws_is_not_in_the_fingerprint(reopen):
    """peft keeps an untrained MOSS beside the trained one."""
    one, other = reopen().model, reopen().model
    with_moss = any(".moss." in key for key in trained_state(one))
    again = other.state_dict()
    drawn = [key for key, value in one.state_dict().items() if not torch.equal(value, again[key])]
    assert all(".moss.original_module." in key for key in drawn) and bool(drawn) == with_moss
    weights, before = answering_weights(one), fingerprint(answering_weights(other))
    assert fingerprint(weights) == before and trained_state(one).keys() < weights.keys()
    parts = ["lora_A", "lora_B", "projector", "vision_model.encoder", "embed_tokens", "lm_head"]
    for part in [*parts, *(["moss", "running_mean", "num_batches_tracked"] if with_moss else [])]:
        key = next(key for key in weights if part in key)
        assert fingerprint({**weights, key: weights[key] + 1}) != before, key


def test_a_checkpoint_that_was_copied_or_whose_base_moved_goes_on(loaded, data, answered, asked):
    moved = replace(loaded, name="copied", run={**loaded.run, "base_model": "/elsewhere/base"})
    assert len(run(moved, data, answered).records) == 6 and asked == []


def test_what_decides_answers_beside_the_weights_is_in_a_fingerprint(reopen):
    """The scale of LoRA, where MOSS is tapped, how pixels and turns are written: none of it is a weight."""
    one, other = reopen(), reopen()
    before = settings_fingerprint(one.model, one.processor)
    one.processor.tokenizer(["a", "a a"], padding=True, truncation=True, max_length=8)
    assert settings_fingerprint(one.model, one.processor) == before
    assert settings_fingerprint(other.model, other.processor) == before
    base = other.model.get_base_model()
    for part, name, value in (
        (other.model.peft_config["default"], "lora_alpha", 64),
        (base.config.text_config, "rms_norm_eps", 0.1),
        (base.config.vision_config, "moss_after_layer", 2),
        (other.processor.video_processor, "image_mean", [0.1, 0.5, 0.5]),
        (other.processor, "chat_template", "{{ messages }}"),
    ):
        if not hasattr(part, name):  # no MOSS
            continue
        was = getattr(part, name)
        setattr(part, name, value)
        assert settings_fingerprint(other.model, other.processor) != before, name
        setattr(part, name, was)
    assert settings_fingerprint(other.model, other.processor) == before


def test_another_runs_answers_are_refused_and_kept(loaded, data, answered, asked):
    before = store(answered).read_bytes()
    changed = build(loaded.processor.tokenizer).eval()
    changed.load_state_dict(loaded.model.state_dict())
    with torch.no_grad():
        next(changed.parameters()).mul_(1.5)
    others = {
        "protocol.sample_fps was 2.0, is 1.0": (loaded, replace(PROTOCOL, sample_fps=1.0)),
        "protocol.still was False, is True": (loaded, replace(PROTOCOL, still=True)),
        "weights was ": (replace(loaded, model=changed), PROTOCOL),
    }
    for message, (model, protocol) in others.items():
        with pytest.raises(
            ValueError, match=f"{message}.*; evaluate again with --overwrite, or into another --out"
        ):
            run(model, data, answered, protocol)
    with pytest.raises(ValueError, match="questions was 6, is 2, data was"):
        videos = read_motionbench(data, data, split="test")
        ask(loaded, videos, answered)
    assert store(answered).read_bytes() == before and asked == []
    run(loaded, data, answered, replace(PROTOCOL, still=True), overwrite=True)
    assert len(asked) == 6 and lines(answered)[0]["header"]["protocol"]["still"] is True


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_question_with_a_special_token_is_named_before_any_is_asked(
    loaded, data, tmp_path, asked, monkeypatch, split
):
    shutil.copytree(data, tmp_path / "data")
    meta = tmp_path / "data" / "video_info.meta.jsonl"
    text = meta.read_text().replace("What moves 1?", "What <|video_pad|> moves?")
    meta.write_text(text.replace("C. up", "C. <|im_end|>", 1))
    module = script("motionbench", loaded, monkeypatch)
    monkeypatch.setattr(command, "load", lambda *_, **__: pytest.fail("a model for data without use"))
    given = ["--data", str(meta.parent), "--split", split, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as told:
        module.main(given)
    named = [line.split(":")[0].strip() for line in str(told.value).splitlines()[1:-1]]
    assert named == (["u0_0", "u1_1", "u2_1"] if split == "dev" else ["u3_1"])
    assert str(told.value).startswith(f"error: questions with a special token of the chat: {len(named)}\n")
    assert "  u1_1: '<|video_pad|> moves?" in str(told.value) or split == "test"
    assert str(told.value).endswith("or these questions out of the annotation")
    videos = read_motionbench(meta.parent, meta.parent, split=split)
    for question in [question for video in videos for question in video.questions]:  # chat.py's rule
        if question.uid in named:
            with pytest.raises(ValueError, match="special token"):
                conversation_text([Turn(PROTOCOL.prompt(question))], video_token=None)
        else:
            conversation_text([Turn(PROTOCOL.prompt(question))], video_token=None)


EDITS = {  # by hand, in a line of answers: what is put in place of what
    "its 'video_id' is None": (b'"video_id": "v1"', b'"video_id": null'),
    "its 'answers' is None": (b'"answers": [', b'"answers": null, "b": ['),
    "it holds a int where an object": (b'"answers": [', b'"answers": [7, '),
    "its 'uid' is 3": (b'"uid": "u1_0"', b'"uid": 3'),
    "its 'output' is None": (b'"output": "', b'"output": null, "b": "'),
    "its 'parsed' is 1": (b'"parsed": "', b'"parsed": 1, "b": "'),
    "it has no 'task'": (b'"task"', b'"kind"'),
    "its 'options' is 'left'": (b'"options": [', b'"options": "left", "b": ['),
    "question 'u1_0' has 'parsed' '.', 'answer' 'B', 'correct' None": (
        b'"correct": ',
        b'"correct": null, "b": ',
    ),
    "question 'u1_0' has 'parsed' '.', 'answer' None, ": (b'"answer": "B"', b'"answer": null'),
    "question 'u1_0' has .*, 'options' ..": (b'"options": [', b'"options": [], "b": ['),
    "its 'seconds' is None": (b'"seconds": {', b'"seconds": null, "b": {'),
    "None is no number of seconds": (b'"encode": 0.5', b'"encode": null'),
    "it holds a str where an object": None,
}
HEADER_EDITS = {
    "it has no 'header'": (b'{"header"', b'{"head"'),
    "its 'questions' is None": (b'"questions": 6', b'"questions": null'),
    "its 'protocol' is None": (b'"protocol": {', b'"protocol": null, "b": {'),
    "its 'name' is None": (b'"name": "letter"', b'"name": null'),
    "its 'sample_fps' is None": (b'"sample_fps": 2.0', b'"sample_fps": null'),
    "its 'versions' is \\[\\]": (b'"versions": {', b'"versions": [], "b": {'),
}


@pytest.mark.parametrize(
    ("line", "edits", "reason"),
    [*((3, EDITS, reason) for reason in EDITS), *((1, HEADER_EDITS, reason) for reason in HEADER_EDITS)],
)
def test_a_line_edited_by_hand_is_named(loaded, data, answered, asked, line, edits, reason):
    rows = store(answered).read_bytes().split(b"\n")
    rows[line - 1] = rows[line - 1].replace(*edits[reason], 1) if edits[reason] else b'"text"'
    store(answered).write_bytes(b"\n".join(rows))
    end = r".*\); remove it, to ask its" if line == 3 else r"\); evaluate again with --over"
    told = rf"00-of-01\.jsonl: line {line} is no line of an answer store \({reason}{end}"
    for read in (lambda: run(loaded, data, answered), lambda: read_evaluation(answered)):
        with pytest.raises(ValueError, match=told):
            read()
    if line == 3:
        store(answered).write_bytes(b"\n".join(rows[:2] + rows[3:]))  # as the message says
        assert len(run(loaded, data, answered).records) == 6 and len(asked) == 2


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"uid": ', b'{"a": 1}', b"[1]"])
def test_a_damaged_line_is_named_and_nothing_is_cut(loaded, data, answered, asked, damage):
    file = store(answered)
    rows = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*rows[:2], damage, *rows[3:]]) + b"torn")
    with pytest.raises(ValueError, match=r"00-of-01\.jsonl: line 3 is no line of an answer store"):
        run(loaded, data, answered)
    assert file.read_bytes().endswith(b"\ntorn")
    file.write_bytes(b"\n".join([*rows[:2], rows[1], *rows[2:]]))  # as a process left behind may write
    assert len(run(loaded, data, answered).records) == 6 and asked == []


def test_settings_may_change_before_the_first_answer(loaded, data, tmp_path, asked, monkeypatch):
    with pytest.raises(ValueError, match="short_side_px"):
        run(loaded, data, tmp_path, replace(PROTOCOL, short_side_px=1))
    assert len(run(loaded, data, tmp_path).records) == 6
    assert lines(tmp_path)[0]["header"]["protocol"]["short_side_px"] == 84


def test_a_run_given_up_before_its_first_answer_is_not_in_the_way_of_the_next(loaded, data, answered):
    header = {**lines(answered)[0]["header"], "checkpoint": "another"}
    AnswerFile(answered / "answers", header, Shard(0, 4)).close()
    AnswerFile(answered / "answers", header, Shard(0, 0)).close()
    assert len(run(loaded, data, answered).records) == len(read_evaluation(answered).stored.answers) == 6
    assert read_answers(answered / "answers", QUESTION_SCHEMA).header["checkpoint"] == "tiny"


def test_merging_refuses_answers_to_other_data(loaded, data, tmp_path, asked, monkeypatch):
    module = script("motionbench", loaded, monkeypatch)
    given = ["--data", str(data), "--out", str(tmp_path / "out"), "--short-side-px", "84"]
    module.main(given)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(
        (data / "video_info.meta.jsonl").read_text().replace('"answer": "A"', '"answer": "B"', 1)
    )
    merge = [*given[:4], "--merge"]
    assert module.main(merge).score.total["all"] == 6
    with pytest.raises(
        SystemExit, match="to 6 questions of MotionBench-Dev .digest .*, and these are 6 .*--prompt"
    ):
        module.main([*merge, "--annotation", str(changed)])


@pytest.mark.parametrize("name", ["motionbench", "favor_bench", "favor_captions"])
def test_flags_of_a_model_are_refused_where_stored_answers_are_merged(name, loaded, monkeypatch, capsys):
    module = script(name, loaded, monkeypatch)
    with pytest.raises(SystemExit) as stopped:  # also with the value of the default
        module.main("--merge --out out --short-side-px 84 --batch-size 16 --no-compress --still".split())
    assert stopped.value.code == 2
    flags = "--batch-size, --short-side-px, --compress-tokens, --still"
    told = f"error: {flags} have no effect with --merge, which opens no model; leave them out\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("name", ["motionbench", "favor_bench", "favor_captions"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(
    name, loaded, tmp_path, monkeypatch
):
    module = script(name, loaded, monkeypatch)
    monkeypatch.setattr(module, "ensure_world", lambda: pytest.fail("data for a folder of no use"))
    (tmp_path / "file").touch()
    for out, why in (("/proc/x", "/proc: No such file or directory"), (tmp_path / "file", ".* is a file")):
        told = rf"^error: --out {out} is not a folder that can be written to \({why}\); name another"
        with pytest.raises(SystemExit, match=told):
            module.main(["--out", str(out)])


def test_a_limit_of_no_cache_is_refused(loaded, data, tmp_path, monkeypatch):
    module = script("motionbench", loaded, monkeypatch)
    monkeypatch.setattr(command, "load", lambda *_, **__: pytest.fail("a model for options without use"))
    with pytest.raises(SystemExit, match="^error: --cache-gib 5 needs --cache, the folder it limits"):
        module.main(["--data", str(data), "--cache-gib", "5"])


def test_a_write_that_takes_a_part_is_completed(tmp_path):
    class Narrow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(bytes(data[:5]))

        def close(self):
            self.file.close()

    with AnswerFile(tmp_path, {"a": 1}, Shard()) as file:
        file.file = Narrow(file.file)
        file.add({"video_id": "v", "answers": []})
    text = (tmp_path / "00-of-01.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()][1] == {"video_id": "v", "answers": []}


def test_the_one_frame_control_shows_the_middle_frame_at_every_time(loaded, data, tmp_path, monkeypatch):
    clip = read_clip(data / "self-collected" / "v1.mp4", Sampling(sample_fps=2.0, short_side_px=84))
    still = hold_middle_frame(clip)
    assert len(clip.frames) == 6 and (clip.frames[0] != clip.frames[3]).any()
    assert (still.frames == clip.frames[3]).all() and still.frames.shape == clip.frames.shape
    assert still.frame_times_s.tolist() == clip.frame_times_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert hold_middle_frame(Clip(clip.frames[:1], clip.frame_times_s[:1])).frames.shape[0] == 1

    seen = {}
    for name in ("moving", "still"):
        shown = seen[name] = []

        def answer(loaded, videos, shown=shown, **_):
            for given in videos:
                shown.append(given)
                yield said(["A"] * len(given.ids))

        monkeypatch.setattr(asking, "answer", answer)
        protocol = replace(PROTOCOL, still=name == "still", compress_tokens=False)
        run(loaded, data, tmp_path / name, protocol)
    for moving, still in zip(seen["moving"], seen["still"], strict=True):
        frames = int(moving.video["video_grid_thw"][0, 0])
        before, after = (e.video["pixel_values_videos"].unflatten(0, (frames, -1)) for e in (moving, still))
        assert torch.equal(after, before[frames // 2].expand_as(after)) and not torch.equal(before, after)
        assert all(map(torch.equal, moving.ids, still.ids))  # the same times and questions


def test_a_video_that_proves_corrupt_is_named_and_earlier_answers_are_kept(
    loaded, data, tmp_path, asked, monkeypatch
):
    def read(path, **how):
        if path.endswith("v2.mp4"):
            raise BadVideo(path, "pictures are damaged", "copy it again")
        return read_clip(path, **how)

    with pytest.raises(BadVideo, match=r"self-collected.v2\.mp4"):
        run(loaded, data, tmp_path, read=read)
    assert uids(tmp_path) == ["u0_0", "u1_0", "u1_1"]
    asked.clear()
    lenient = run(loaded, data, tmp_path, read=read, allow_missing=True)
    assert list(lenient.failed) == ["v2"] and len(asked) == 1 and lenient.score.answered["all"] == 4
    assert len(run(loaded, data, tmp_path).records) == 6 and len(asked) == 3
    assert sorted(uids(tmp_path)) == ["u0_0", "u1_0", "u1_1", "u2_0", "u2_1", "u3_0"]


def test_a_limit_is_labelled_partial_and_can_be_lifted(loaded, data, tmp_path, asked):
    part = run(loaded, data, tmp_path, limit=2)
    assert part.partial == "partial: 2 of 6 questions" and part.score.total["all"] == 2
    part.save(tmp_path)
    title = "**MotionBench-Dev, accuracy (%), partial: 2 of 6 questions**"
    assert (tmp_path / "table.md").read_text().splitlines()[0] == title
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["partial"] == "partial: 2 of 6 questions" and saved["asked"] == 2 and saved["questions"] == 6
    whole = run(loaded, data, tmp_path)
    assert whole.partial == "" and whole.score.total["all"] == 6 and len(asked) == 6
    assert run(loaded, data, tmp_path, limit=2).records == part.records
    for wrong in ({"limit": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="is 0; it must be at least 1"):
            run(loaded, data, tmp_path / "b", **wrong)


def test_saved_scores_are_unrounded(loaded, data, tmp_path, asked):
    result = run(replace(loaded, run={"step": 7}), data, tmp_path)
    result.save(tmp_path)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["accuracy_percent"] == result.score.accuracy
    assert (
        saved["counts"]["total"] == result.score.total and saved["counts"]["correct"] == result.score.correct
    )
    assert saved["chance_percent"]["all"] == 100 / 3 and saved["run"] == {"step": 7}
    assert saved["protocol"] == PROTOCOL.settings and saved["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_videos_are_read_ahead_in_order_and_no_further_than_there_are_threads(workers):
    videos = [BenchmarkVideo(f"v{n}", None, (Question(f"q{n}", "MR", "?", (), None, "?"),)) for n in range(9)]
    begun, threads, taken = [], set(), []

    def read(video):
        begun.append(video.video_id)
        threads.add(threading.current_thread().name)
        time.sleep(0.01 if video.video_id == "v0" else 0)
        return f"{video.video_id} read"

    for video, found in asking._read_ahead(read, videos, workers):
        taken.append((video.video_id, found))
        assert len(begun) <= len(taken) + workers
    assert taken == [(f"v{n}", f"v{n} read") for n in range(9)]
    assert len(threads) <= max(1, workers) and ("MainThread" in threads) == (workers == 0)


def test_there_is_a_reader_for_each_processor_of_the_process(monkeypatch):
    for processors, local, expected in ((1, 1, 1), (8, 1, 8), (64, 1, 16), (64, 8, 8), (4, 8, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: range(n), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        assert choose_workers() == expected


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(
    loaded, data, tmp_path, asked, capsys, monkeypatch
):
    run(loaded, data, tmp_path)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run(loaded, data, tmp_path / "b")
    told = capsys.readouterr().err.splitlines()
    asked = [line.split(", ")[0] for line in told if "questions" in line]  # videos are measured first
    assert asked == [f"{n} of 6 questions" for n in (1, 3, 5, 6)]


def script(name, loaded, monkeypatch):
    module = load_script(ROOT / "eval" / f"{name}.py")
    monkeypatch.setattr(command, "load", lambda ckpt, device, dtype: loaded)
    return module


def test_motionbench_script(loaded, data, tmp_path, asked, monkeypatch, capsys):
    module = script("motionbench", replace(loaded, run={"protocol": {"short_side_px": 84}}), monkeypatch)
    monkeypatch.chdir(tmp_path)
    result = module.main(["--data", str(data), "--device", "cpu", "--max-frames", "4"])
    out = tmp_path / "runs" / "eval" / "motionbench" / "tiny-4frames"
    assert sorted(path.name for path in out.iterdir()) == ["answers", "result.json", "table.md", "table.tex"]
    assert json.loads((out / "result.json").read_text())["protocol"]["max_frames"] == 4
    assert result.protocol.short_side_px == 84 and result.protocol.sample_fps == 2.0
    shown = capsys.readouterr().out
    assert (
        "+ FAVOR-Train + MOSS (paper)" in shown
        and "number of questions" in shown
        and "motion world" not in shown
    )
    assert "6 questions scored; the published benchmark has 4,018" in shown
    with pytest.raises(
        SystemExit, match="^error: .*00-of-01.jsonl holds answers of another run.*--overwrite"
    ):
        module.main(["--data", str(data), "--device", "cpu", "--max-frames", "5", "--out", str(out)])
    module.main(["--data", str(data), "--device", "cpu", "--still"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny-4frames", "tiny-still"]


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ("", "runs/eval/favor_bench/tiny"),
        ("--ckpt a/step-000200/", "runs/eval/favor_bench/tiny-step-000200"),
        ("--protocol favor_official", "runs/eval/favor_bench/tiny"),
        ("--protocol letter", "runs/eval/favor_bench/tiny-letter"),
        ("--ckpt a/step-000200 --protocol letter --still",
         "runs/eval/favor_bench/tiny-step-000200-letter-still"),
        ("--sample-fps 0.5 --short-side-px 84", "runs/eval/favor_bench/tiny-0.5fps-84px"),
        ("--max-frames 8 --no-compress-tokens", "runs/eval/favor_bench/tiny-8frames-no-compress"),
        ("--split test --clip-settings paper --compress-tokens",
         "runs/eval/favor_bench/tiny-test-paper-compress"),
        ("--split dev", "runs/eval/favor_bench/tiny"),
        ("--ckpt a/step-000200 --still --out there", "there"),
    ],
)  # fmt: skip
def test_runs_that_differ_have_folders_that_differ(flags, folder):
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", default="dev")  # as MotionBench's script has
    add_options(parser, FAVOR_BENCH)
    args = parser.parse_args(flags.split())
    assert choose_folder(args, "favor_bench", "hub/tiny", FAVOR_BENCH) == Path(folder)


@pytest.mark.parametrize(("split", "scored"), [("test", None), ("all", 6)])
def test_submission_has_the_withheld_questions(
    loaded, data, tmp_path, asked, monkeypatch, capsys, split, scored
):
    module = script("motionbench", loaded, monkeypatch)
    result = module.main(
        ["--data", str(data), "--split", split, "--out", str(tmp_path), "--short-side-px", "84"]
    )
    letters = json.loads((tmp_path / "submission.json").read_text())
    assert list(letters) == ["u2_2", "u3_1"] and set(letters.values()) <= set("ABC")
    assert (result.score and result.score.total["all"]) == scored
    shown = capsys.readouterr().out
    assert "submission.json has 2 withheld questions, 0 without a letter" in shown
    assert ("(paper)" in shown) == (split == "all")  # nothing to compare where no answer is public
    assert shown.startswith(
        "MotionBench, answers withheld" if split == "test" else "MotionBench-Dev, accuracy"
    )


def test_a_submission_of_some_questions_is_called_partial(loaded, data, tmp_path, asked, monkeypatch, capsys):
    module = script("motionbench", loaded, monkeypatch)
    given = ["--data", str(data), "--split", "test", "--out", str(tmp_path), "--short-side-px", "84"]
    module.main([*given, "--limit", "1"])
    assert list(json.loads((tmp_path / "submission-partial.json").read_text())) == ["u2_2"]
    assert not (tmp_path / "submission.json").exists()
    assert "submission-partial.json has 1 withheld questions" in capsys.readouterr().out
    module.main(given)
    assert list(json.loads((tmp_path / "submission.json").read_text())) == ["u2_2", "u3_1"]
    module.main([*given, "--limit", "1", "--overwrite"])
    assert not (tmp_path / "submission.json").exists()


def test_the_command_that_merges_is_told_in_full(reopen, data, tmp_path, asked, monkeypatch, capsys):
    module = script("motionbench", None, monkeypatch)
    monkeypatch.setattr(command, "load", reopen)
    monkeypatch.chdir(tmp_path)
    shutil.copy(data / "video_info.meta.jsonl", tmp_path / "my rows.jsonl")
    given = ["--data", str(data), "--annotation", "my rows.jsonl", "--split", "all", "--short-side-px", "84"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = ""  # by the first that ends
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        module.main([*given, "--limit", "7"])
        told = told or capsys.readouterr().err.splitlines()[-1]
    (out,) = (tmp_path / "runs/eval/motionbench").glob("with_*-all-84px")
    expected = (out / "table.md").read_text()
    (out / "table.md").unlink()
    monkeypatch.setattr(command, "load", lambda *_, **__: pytest.fail("merging opens no model"))
    python, _, *options = shlex.split(told.split("and so does: ")[1])
    module.main(options)
    assert python == "python" and (out / "table.md").read_text() == expected and "7 of 8" in expected


def test_favor_script_on_a_motion_world(loaded, data, tmp_path, asked, monkeypatch, capsys):
    folder = tmp_path / "FAVOR" / "videos" / "FAVOR-Bench"
    write(folder / "a.mp4", frames=6, seed=1)
    ask = {"question": "What?", "options": ["left", "right"], "correct_answer": "left", "task_type": "NSM"}
    row = {"video_name": "a.mp4", "questions": [ask, {**ask, "task_type": "AS"}]}
    (tmp_path / "FAVOR" / "video_perspective.json").write_text(json.dumps([row]))
    (tmp_path / "world.json").write_text("{}")
    module = script("favor_bench", loaded, monkeypatch)
    for given in (tmp_path, tmp_path / "FAVOR"):
        module.main(["--data", str(given), "--out", str(tmp_path / "out"), "--short-side-px", "84"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "these data are the motion world: no number compares with the paper's" in shown
        assert "no option could be read from 2 answers" in shown
    assert len(asked) == 2
    given = {"data": tmp_path, "out": tmp_path / "letter", "short_side_px": 84, "protocol": "letter"}
    result = module.main(as_flags(given))
    assert [record["parsed"] in "AB" for record in result.records if record["parsed"]]
    assert list(result.benchmark.tasks) == list(FAVOR_TASKS)


def test_wrong_input_ends_with_one_line_before_any_model_is_loaded(loaded, data, tmp_path, monkeypatch):
    module = script("motionbench", loaded, monkeypatch)
    monkeypatch.setattr(command, "load", lambda *_, **__: pytest.fail("a model for data without use"))
    rows = (data / "video_info.meta.jsonl").read_text().splitlines()
    (tmp_path / "video_info.meta.jsonl").write_text("\n".join(rows[:3]))
    (tmp_path / "self-collected").mkdir()
    (tmp_path / "self-collected" / "v2.mp4").write_bytes(b"")
    monkeypatch.setenv("WORLD_SIZE", "2")
    lists = set()
    for rank, local_rank, status in (("0", "0", None), ("1", "1", 0), ("1", "0", None)):  # the last elsewhere
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as told:
            module.main(["--data", str(tmp_path)])
        lists |= {told.value.code} if status is None else set()
        assert (status is None) or told.value.code == status
    (one,) = lists
    assert [line.split(":")[0] for line in one.splitlines()[1:4]] == ["  v0", "  v1", "  v2"]
    assert one.startswith("error: videos missing or unreadable: 3\n")
    assert "'v0.mp4' is in none of the folders" in one.splitlines()[1]
    with pytest.raises(
        SystemExit, match="^error: .*holds none of video_info.meta.jsonl, MotionBench/video_info"
    ):
        module.main(["--data", str(tmp_path.parent)])


def test_scripts_end_with_one_line():
    for error, told in (
        (BadVideo("a.mp4", "empty", "copy it"), "error: a.mp4: empty (remedy: copy it)"),
        (KeyboardInterrupt(), 130),
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
