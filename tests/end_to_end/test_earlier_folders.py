"""Owns: folders that an earlier commit wrote still open, resume and end (tests/data_of_earlier/README.md)."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from launching import ROOT, load_script, logged

from moss_vllm.recognition import checkpoint as classifier
from moss_vllm.vlm import checkpoint

pytestmark = pytest.mark.usefixtures("one_process")

# Losses of the steps 3 and 4, as the commit that wrote the folders went on from step 2 itself.
LOSSES = {"run": [5.871606, 5.875866], "classes": [2.107328, 1.605747]}
FAVOR = (
    "--model=base --data=favor --batch-size=2 --lora-rank=2 --lora-alpha=2 --lora-dropout=0.2 --lr-llm=1e-2"
)
ACTIONS = "--data=list --root=actions --variant=mini --host=aim --temporal=moss --size-px=28 --frames=3"
ACTIONS += " --clips-a-step=2 --batch-size=2 --repeats=2 --eval-every=1"
SMALL_MOSS = "--temporal-options={d_hidden: 8, d_similarity: 8, d_fuse: 8, window: [3, 3, 3]}"
EVERY = "--workers=0 --tracker=none --resume=auto --steps=4 --save-every=2 --log-every=1"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A copy of the folders; their paths are relative."""
    shutil.copytree(ROOT / "tests" / "data_of_earlier", tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def stored(out):
    """The file of answers, as if today's versions had written it here: others are refused, rightly."""
    (file,) = Path(out, "answers").glob("*.jsonl")
    first, rest = file.read_text().replace("<here>", str(Path.cwd())).split("\n", 1)
    header = json.loads(first)["header"]
    if "versions" in header:
        header["versions"] = {name: version(name) for name in header["versions"]}
    file.write_text(json.dumps({"header": header}) + "\n" + rest)
    return file


def check_went_on(file, before, uids):
    """What stood in whole lines still does, and each question is answered once."""
    whole = before[: before.rfind("\n") + 1]
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert file.read_text().startswith(whole) and 1 < whole.count("\n") < len(rows) + 1
    assert sorted(answer["uid"] for row in rows for answer in row["answers"]) == sorted(uids)


def test_a_checkpoint_with_moss_opens():
    loaded = checkpoint.load("run/step-000002")
    assert loaded.name == "run" and loaded.run["step"] == 2
    assert loaded.run["moss"]["moss_window"] == [3, 3, 3] and loaded.run["moss"]["moss_orders"] == [1, 2]
    assert loaded.run["protocol"]["short_side_px"] == 84


@pytest.mark.slow
def test_a_run_goes_on_to_the_losses_that_its_commit_came_to():
    before = Path("run/train.jsonl").read_text()
    load_script(ROOT / "recipes" / "favor_lora.py").main([*FAVOR.split(), *EVERY.split(), "--out=run"])
    assert Path("run/train.jsonl").read_text().startswith(before)
    assert [line["loss"] for line in logged(Path("run"))[2:]] == pytest.approx(LOSSES["run"], rel=1e-3)
    assert checkpoint.load("run/step-000004").run["step"] == 4


def test_an_evaluation_goes_on():
    file = stored("answers")
    before = file.read_text()
    argv = "--data=motionbench --ckpt=run/step-000002 --device=cpu --out=answers --batch-size=2 --workers=0"
    result = load_script(ROOT / "eval" / "motionbench.py").main(argv.split())
    assert not result.pending and result.resumed == 2 and len(result.records) == 5
    check_went_on(file, before, [record["uid"] for record in result.records])


def test_a_classifier_opens():
    loaded = classifier.load(Path("classes/step-000002"))
    assert loaded.run["step"] == 2 and len(loaded.classes) == 4 and loaded.run["model"]["host"] == "aim"


@pytest.mark.slow
def test_a_run_of_a_classifier_goes_on_to_the_losses_that_its_commit_came_to():
    before = Path("classes/train.jsonl").read_text()
    argv = [*ACTIONS.split(), SMALL_MOSS, *EVERY.split()]
    argv = [flag for flag in argv if not flag.startswith("--save-every")]
    result = load_script(ROOT / "recipes" / "action_recog.py").main([*argv, "--out=classes"])
    assert Path("classes/train.jsonl").read_text().startswith(before) and len(result.rows) == 2
    assert [line["loss"] for line in logged(Path("classes"))[2:]] == pytest.approx(
        LOSSES["classes"], rel=1e-3
    )
    evals = [json.loads(line)["step"] for line in Path("classes/evals.jsonl").open()]
    assert evals == [2, 4] and classifier.load(Path("classes/best")).run["step"] in evals


def test_a_test_of_a_classifier_goes_on():
    file = stored("class_answers")
    before = file.read_text()
    argv = "--ckpt=classes/step-000002 --out=class_answers --workers=0 --device=cpu"
    found = load_script(ROOT / "eval" / "action_recog.py").main(argv.split())
    check_went_on(file, before, ["clip 4.mp4", "clip_5.webm"])
    assert not found.pending and len(found.rows) == 2
