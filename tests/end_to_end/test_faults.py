"""Owns: the fault list - what a user can get wrong, the exact words they are told, and what is left on disk.

Every fault of `faults/` is really made. Each gives one message and one exit status, changes nothing that was
there, and leaves nothing half-written. The messages stand in docs/faults.md alone; run as a script, this
makes every fault and writes them anew: read the difference.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

# As pytest has it; where this file is a script, its own folder is not enough.
sys.path += [str(Path(__file__).parents[1])]

from faults import engine, of_data
from faults.engine import FAULTS, MEMORY, edit_weights, pattern, snapshot, to_nan
from killing import begin, limit_files
from launching import ROOT, environment

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.batches import TrainingSet

RECIPE = ROOT / "recipes" / "favor_lora.py"
SECTIONS = (
    "of_data",
    "of_training",
    "of_models",
    "of_scripts",
    "of_actions",
    "of_detection",
    "of_detection_training",
    "of_detection_tests",
    "of_boundaries",
    "of_boundary_training",
    "of_boundary_tests",
)  # as in the list
for name in SECTIONS:
    importlib.import_module(f"faults.{name}")


@pytest.mark.parametrize("one", FAULTS, ids=[re.sub(r"\W+", "-", one.title) for one in FAULTS])
def test_a_fault_is_told_and_nothing_is_lost(one, request, capsys, monkeypatch):
    ground = request.getfixturevalue(one.ground)
    start = one.start(ground)
    monkeypatch.chdir(ground.tmp)  # a message may name what is below runs/ here
    before = snapshot(ground.tmp)
    capsys.readouterr()
    is_status = isinstance(one.kind, int)
    with pytest.raises(SystemExit if is_status else one.kind) as caught:
        start()
    told = str(caught.value).removeprefix("error: ") if is_status else str(caught.value)
    if is_status:
        code = caught.value.code
        assert one.kind == (code if isinstance(code, int) else 1)  # Python prints a text and exits with 1
        if isinstance(code, int):  # argparse has printed the message
            told = capsys.readouterr().err.split(": error: ", 1)[-1].strip()
    message = engine.read_list().get(one.title)
    if engine.written is not None:
        engine.written[one.title] = engine.template(told, caught.value, ground.places, message)
    else:
        assert message and re.fullmatch(pattern(message, ground.places), told), f"{told}\n{ANEW}"
    after = snapshot(ground.tmp)
    assert {name for name in before if after.get(name) != before[name]} - {MEMORY} == set(one.changes)
    allowed = {str(path) for name in one.leaves for path in (Path(name), *Path(name).parents)}
    assert after.keys() - before.keys() == allowed - before.keys() - {"."}


ANEW = "python tests/end_to_end/test_faults.py writes the list anew"


def test_the_list_in_the_docs_has_each_fault_once():
    assert len({one.title for one in FAULTS}) == len(FAULTS)
    messages = engine.read_list()
    assert list(messages) == [one.title for one in FAULTS], ANEW
    assert engine.LIST.read_text() == engine.as_markdown(messages), ANEW


@pytest.mark.parametrize(
    "earlier, told, cause, message",
    [
        (None, "/d/a.json: bad", None, "<tmp>/a.json: bad"),
        ("<tmp>: <n> rows (<...>)", "/d: 3 rows (such words)", None, "<tmp>: <n> rows (<...>)"),
        ("<tmp>: <n> rows left (<...>); mend", "/d: 3 rows kept (such words); repair", None,
         "<tmp>: <n> rows kept (<...>); repair"),
        ("<tmp>: <...>", "another text", None, "another text"),
        (None, "it cannot be read (invalid literal)", ValueError, "it cannot be read (<...>)"),
    ],
)  # fmt: skip
def test_a_message_written_anew_keeps_what_stands_for_other_words(earlier, told, cause, message):
    error = RuntimeError(told)
    if cause:
        try:
            exec(compile("raise ValueError('invalid literal')", "library.py", "exec"))
        except cause as raised:
            error.__cause__ = raised
    assert engine.template(told, error, {"tmp": "/d"}, earlier) == message


def test_the_rows_of_a_loss_that_is_nan_are_written(ground):
    edit_weights(ground.base() / "model.safetensors", to_nan)
    with pytest.raises(RuntimeError) as caught:
        ground.train(model=ground.tmp / "base")()
    found = json.loads((ground.tmp / "run" / "not-finite-step-000001-0.json").read_text())
    assert found["step"] == 1 and found["loss"] == "nan" and len(found["row_ids"]) == 2
    assert f"batch: {', '.join(found['row_ids'])} (in" in str(caught.value)
    assert set(found["row_ids"]) < {Path(row["video_name"]).stem for row in ground.rows}


def test_rejected_rows_come_in_one_error_and_are_written_with_their_reasons(ground):
    ground.clip(3).write_bytes(b"")
    ground.rows[4]["video_name"] = "/etc/x.mp4"
    ground.clip(7).unlink()
    ground.write()
    with pytest.raises(RuntimeError, match=r"3 of 12 rows \(25\.0%\) .*\n  2 bad: .*\n  1 missing: "):
        ground.train()()
    lines = (ground.tmp / "run" / "rejected.jsonl").read_text().splitlines()
    found = {row["row_id"]: (row["source"], row["kind"]) for row in map(json.loads, lines)}
    bad, missing = ("FAVOR", "bad"), ("FAVOR", "missing")
    rows = ("row 4 (video '/etc/x.mp4')", "world_train_00003", "row 7 (video 'world_train_00007.mp4')")
    assert found == dict(zip(rows, (bad, bad, missing), strict=True))


def test_below_the_limit_bad_rows_are_named_and_all_others_used(ground, monkeypatch):
    of_data.overwrite_pictures(ground.clip(3))
    ground.rows[7]["caption"] = "It moves.<|im_end|>"
    ground.write()
    used, collate = [], TrainingSet.collate

    def record(self, rows):
        batch = collate(self, rows)
        used.extend(batch["row_ids"])
        return batch

    monkeypatch.setattr(TrainingSet, "collate", record)
    lines = ground.train(steps=3, batch_size=4, max_rejected_share=0.1, max_bad_share=0.1)()
    assert sum(line["clips"] for line in lines) == 11  # 12 places, an epoch of the 11 rows kept and one more
    every = [Path(row["video_name"]).stem for row in ground.rows]
    assert set(used) == set(every) - {every[3], every[7]}
    files = ("rejected.jsonl", "rejected-0.jsonl")  # found before the run, and in it
    rejected = [json.loads(line)["row_id"] for name in files for line in (ground.tmp / "run" / name).open()]
    assert sorted(rejected) == [every[3], every[7]]


def test_resume_auto_into_nothing_is_a_new_run(ground):
    assert [line["step"] for line in ground.train(resume="auto", steps=1)()] == [1]
    assert (ground.tmp / "run" / "step-000001" / "run.json").is_file()


def test_a_video_deleted_in_training_is_counted_and_named(ground):
    ground.delete_before("train", 3)
    lines = ground.train(batch_size=12, max_bad_share=0.1, steps=1)()
    assert lines[0]["clips"] == 11
    (line,) = (ground.tmp / "run" / "rejected-0.jsonl").read_text().splitlines()
    reason = f"{ground.clip(3)}: No such file or directory (remedy: check the path, and that you may read it)"
    assert json.loads(line) == {"row_id": "world_train_00003", "reason": reason}


# ---- as processes


@pytest.fixture
def run_limited(ground, tmp_path_factory):
    """A function that runs a script where no file may grow beyond the limit, as on a full disk."""
    folder = tmp_path_factory.mktemp("said")
    os.mkfifo(folder / "output-0.txt")  # to which no limit applies; it holds 64 KiB
    said = os.open(folder / "output-0.txt", os.O_RDONLY | os.O_NONBLOCK)

    def run(limit_kib, script, *words, timeout_s=120):
        process = begin(script, list(map(str, words)), folder, partial(limit_files, limit_kib, ground.tmp))
        process.join(timeout_s)
        return process.exitcode, os.read(said, 2**16).decode()

    yield run
    os.close(said)


def last_line(told):
    return told.strip().splitlines()[-1]


FULL = "<...>File too large<...>"


@pytest.mark.slow
def test_a_disk_that_is_full_while_saving_costs_no_earlier_checkpoint(ground, run_limited):
    folder = ground.checkpoint()
    before = snapshot(ground.tmp)
    status, told = run_limited(100, RECIPE, *ground.words(resume="auto"))
    message = (
        f"error: <tmp>/run/step-000002 could not be written: {FULL} (<n> GiB are free there). Nothing "
        "half-written is left and the last whole checkpoint is <tmp>/run/step-000001; mend the cause (a "
        "full disk: "
        "make room) and run again with --resume auto"
    )
    assert status == 1 and re.fullmatch(pattern(message, ground.places), last_line(told)), told
    after = snapshot(ground.tmp)
    changed = {name for name in before if after.get(name) != before[name]} - {MEMORY}
    assert before.keys() - after.keys() == {"run/finished"} and not after.keys() - before.keys()
    assert changed - {"run/finished"} == {"run/train.jsonl", "run/settings.json"}
    checkpoint.load(folder)
    assert [line["step"] for line in ground.train(resume="auto")()] == [2]  # once there is room


@pytest.mark.slow
def test_a_disk_that_is_full_while_planning_is_named(ground, run_limited):
    status, told = run_limited(1, RECIPE, *ground.words())
    message = f"<...><tmp>/run/measured.jsonl{FULL}"
    assert status == 1 and re.fullmatch(pattern(message, ground.places), last_line(told)), told


@pytest.mark.slow
def test_a_disk_that_is_full_while_merging_leaves_nothing(ground, run_limited):
    folder = ground.checkpoint()
    before = snapshot(ground.tmp)
    status, told = run_limited(1000, ROOT / "scripts" / "merge.py", folder, ground.tmp / "out")
    assert snapshot(ground.tmp) == before
    assert status == 1 and "Traceback" not in told
    assert re.fullmatch(pattern(f"error: {FULL}", ground.places), last_line(told))


@pytest.mark.slow
@pytest.mark.parametrize("limit_kib, more, status", [(100, [], 2), (10**6, ["--cache-gib", "0.0005"], 0)])
def test_a_cache_that_takes_no_more_ends_the_script(ground, run_limited, limit_kib, more, status):
    words = ["--data", ground.favor, "--cache", ground.tmp / "cache", "--workers", "1", *more]
    ended, told = run_limited(limit_kib, ROOT / "scripts" / "cache_frames.py", *words, timeout_s=25)
    assert ended == status and "the cache took no more (the reason is above)" in told
    assert "nothing is added any more, other clips are decoded each time" in told
    assert not list(ground.tmp.rglob("*.part"))


@pytest.mark.slow
def test_the_recipe_ends_with_one_line_and_status_1(ground):
    """In a process of its own, as users start it."""
    command = [sys.executable, str(RECIPE), *map(str, ground.words(precision="half"))]
    done = subprocess.run(command, env=environment(), cwd=ground.tmp, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last_line(done.stderr) == "error: precision is 'half'; it must be one of fp32, bf16"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(ground):
    (ground.tmp / "run").mkdir(mode=0o500)
    with pytest.raises((ValueError, OSError), match=re.escape(str(ground.tmp / "run"))):
        ground.train()()


if __name__ == "__main__":
    engine.written = {}
    if status := pytest.main(
        [__file__, "-q", "-p", "no:xdist", "-k", "test_a_fault_is_told_and_nothing_is_lost"]
    ):
        sys.exit(status)
    engine.LIST.write_text(engine.as_markdown(engine.written))
