"""Owns: what is published is the checkpoint and a true card, in one commit; no optimizer state, no token."""

import json
import shutil

import push
import pytest
import yaml

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.card import model_card

RUN = {
    "moss": None,
    "protocol": {"sample_fps": 2.0, "short_side_px": 84},
    "settings": {"data": "FAVOR", "lr_moss": 1e-3, "note": "a|b"},
    "processes": 2,
    "step": 360,
    "command": "recipes/favor_lora.py --data FAVOR",
}


@pytest.fixture(scope="module")
def trained(tiny_base, moss, processor, tmp_path_factory):
    """A checkpoint with MOSS and everything a run leaves in its folder."""
    model = checkpoint.attach_lora(checkpoint.load_base(tiny_base, moss=moss), rank=2, alpha=2, dropout=0.0)
    folder = tmp_path_factory.mktemp("run") / "step-000360"
    checkpoint.save(folder, model, processor, {**RUN, "moss": moss})
    (folder / "state").mkdir()
    (folder / "state" / "optimizer.bin").write_bytes(b"state")
    (folder / "notes.log").write_text("private")
    return folder


@pytest.fixture
def result(trained, tmp_path):
    """A result.json of the checkpoint."""
    told = {
        "benchmark": "MotionBench-Dev",
        "protocol": {"name": "letter", "sample_fps": 2.0},
        "run": checkpoint.read_run(trained),
        "asked": 1200,
        "questions": 4018,
        "accuracy_percent": {"all": 51.26, "MR": 40.0},
        "chance_percent": {"all": 25.0},
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(told))
    return file


class Hub:
    """Stands for HfApi."""

    calls: list = []

    def create_repo(self, repo_id, **settings):
        self.calls.append(("create_repo", repo_id, settings))
        return f"https://hub.example/{repo_id}"

    def create_commit(self, repo_id, operations, **settings):
        contents = {o.path_in_repo: o.path_or_fileobj for o in operations}
        self.calls.append(("create_commit", repo_id, contents))


@pytest.fixture
def hub(monkeypatch):
    """The hub as if there were a network, with what was asked of it."""
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(push, "HfApi", Hub)
    monkeypatch.setattr(push, "is_offline_mode", lambda: False)
    return Hub


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


PUBLISHED = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "run.json",
    "chat_template.jinja",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
}


def test_a_dry_run_writes_a_folder_that_loads(trained, result, tmp_path, capsys, hub):
    out = tmp_path / "ready"
    push.main(
        [str(trained), "me/moss", "--dry-run", "--out", str(out), "--results", str(result), "--private"]
    )
    assert {path.name for path in out.iterdir()} == PUBLISHED and hub.calls == []
    said = capsys.readouterr().out
    assert "not published, 2: notes.log, state/" in said
    assert f"hf upload me/moss {out} --private" in said and "nothing is uploaded" in said
    loaded = checkpoint.load(out)
    assert loaded.run == checkpoint.read_run(trained)


def test_the_card_says_what_it_is(trained, result, tmp_path, tiny_base):
    out = tmp_path / "ready"
    push.main([str(trained), "me/moss", "--dry-run", "--out", str(out), "--results", str(result)])
    card = (out / "README.md").read_text()
    assert front_matter(card) == {
        "license": "other",
        "library_name": "moss_vllm",  # peft would open it without MOSS
        "pipeline_tag": "video-text-to-text",
        "tags": ["video", "motion", "moss"],
    }
    run = checkpoint.read_run(trained)
    for text in (
        "# me/moss\n",
        "LoRA on the language model, MOSS and the projector. The base model is not in it.",
        f"`{tiny_base}`; fingerprint `{run['base_fingerprint']}`",
        'loaded = load("me/moss")',
        "as `base_model` into DIR/run.json",
        "| moss_d_fuse | 12 |",
        "```bash\nrecipes/favor_lora.py --data FAVOR\n```",
        "Data: `FAVOR`.",
        "| step | 360 |",
        "| lr_moss | 0.001 |",
        "| note | a\\|b |",
        "| short_side_px | 84 |",
        "MotionBench-Dev, 1,200 questions. **Partial: of 4,018.** Protocol: name=letter, sample_fps=2.0.",
        "| all | 51.3 | 25.0 |",
        "| MR | 40.0 | - |",
        f"| torch | {run['versions']['torch']} |",
        "title = {Exploring High-Order Self-Similarity for Video Understanding}",
    ):
        assert text in card, text


def test_a_base_of_the_hub_and_a_licence_are_in_the_front_matter(trained):
    run = {**checkpoint.read_run(trained), "base_model": "someone/base", "base_revision": "abc"}
    card = model_card("me/moss", run, merged=False, licence="apache-2.0")
    found = front_matter(card)
    assert (found["license"], found["base_model"], found["base_model_relation"]) == (
        "apache-2.0",
        "someone/base",
        "adapter",
    )
    assert "`someone/base`, revision abc;" in card and "DIR/run.json" not in card
    assert "None were given." in card


def test_a_merged_model_is_told_from_an_adapter(trained):
    run = {**checkpoint.read_run(trained), "base_model": "someone/base"}
    card = model_card("me/moss", run, merged=True)
    assert "import moss_vllm.vlm" in card and 'AutoProcessor.from_pretrained("me/moss")' in card
    assert front_matter(card)["base_model_relation"] == "finetune"
    plain = model_card("me/moss", {**run, "moss": None}, merged=True)
    assert "moss_vllm.vlm" not in plain and front_matter(plain)["library_name"] == "transformers"
    assert "None: the same training without MOSS." in plain


def test_an_upload_is_one_commit(trained, hub, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert push.main([str(trained), "me/moss", "--private"]) == "https://hub.example/me/moss"
    created, committed = hub.calls
    assert created == ("create_repo", "me/moss", {"private": True, "exist_ok": True})
    assert committed[:2] == ("create_commit", "me/moss") and set(committed[2]) == PUBLISHED
    assert committed[2]["run.json"] == str(trained / "run.json")
    assert committed[2]["README.md"].startswith(b"---\nlicense: ")
    assert "uploaded 8 files: https://hub.example/me/moss" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_failed_upload_leaves_a_folder_and_no_token(trained, hub, monkeypatch, tmp_path, capsys):
    def fail(self, repo_id, **settings):
        raise ConnectionError("no route; header: Bearer hf_abcdefghijklmnopqrstuvwxyz")

    monkeypatch.setattr(Hub, "create_repo", fail)
    out = tmp_path / "ready"
    with pytest.raises(SystemExit) as ended:
        push.main([str(trained), "me/moss", "--out", str(out)])
    said = str(ended.value) + "".join(capsys.readouterr())
    assert "error: not uploaded: no route" in said and f"{out} is ready. Upload it: hf auth login" in said
    assert "hf_abc" not in said and {path.name for path in out.iterdir()} == PUBLISHED


def test_offline_it_writes_the_folder(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert push.main([str(trained), "me/moss"]) == "runs/push/moss"
    assert (tmp_path / "runs" / "push" / "moss" / "README.md").is_file()
    assert "HF_HUB_OFFLINE" in capsys.readouterr().out


# ---- what is refused


def refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        push.main([str(each) for each in arguments])


def test_wrong_arguments_end_it_in_one_line(trained, tiny_base, tmp_path, hub):
    refused([trained, "moss"], "REPO_ID is 'moss'; it must be OWNER/NAME")
    refused([tiny_base, "me/moss"], r"tiny has no run\.json and no merged\.json")
    refused([trained, "me/moss", "--dry-run", "--out", trained], "is there and not empty; name another --out")
    assert hub.calls == []


def test_results_of_another_model_are_refused(trained, result, tmp_path):
    told = json.loads(result.read_text())
    told["run"]["step"] = 120
    result.write_text(json.dumps(told))
    arguments = [trained, "me/moss", "--dry-run", "--out", tmp_path / "out", "--results", result]
    refused(arguments, r"result\.json: is of another model than this one")
    result.write_text('{"benchmark": 1}')
    refused(arguments, r"result\.json: has no protocol, run, asked")
    result.write_text("{")
    refused(arguments, r"result\.json: cannot be read as JSON")
    assert not (tmp_path / "out").exists()


def test_tokens_and_pickles_are_refused(trained, tmp_path, hub):
    folder = shutil.copytree(trained, tmp_path / "step-000360")
    run = json.loads((folder / "run.json").read_text())
    run["command"] += " --token hf_abcdefghijklmnopqrstuvwxyz"
    (folder / "run.json").write_text(json.dumps(run))
    refused([folder, "me/moss"], "holds what looks like an access token")
    shutil.copy(trained / "run.json", folder)
    (folder / "adapter_model.bin").touch()
    refused([folder, "me/moss"], r"adapter_model\.bin is a pickle")
    assert hub.calls == []
