"""Owns: what is published is the checkpoint and a true card, in one commit; no key, no path, nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from moss_vllm.commands.scripts import merge, push
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base, moss_to_train
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3ForConditionalGeneration

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
    model = attach_lora(load_base(tiny_base, moss=moss), rank=2, alpha=2, dropout=0.0)
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
        "run": checkpoint.read_run_file(trained),
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
    """As the hub's own parser reads it; it refuses a wrong list of scores."""
    return ModelCard(card).data.to_dict()


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


def test_a_dry_run_writes_a_folder_that_loads(trained, result, tiny_base, tmp_path, capsys, hub, monkeypatch):
    out = tmp_path / "ready"
    push.main(
        [str(trained), "me/moss", "--dry-run", "--out", str(out), "--results", str(result), "--private"]
    )
    assert {path.name for path in out.iterdir()} == PUBLISHED and hub.calls == []
    said = capsys.readouterr().out
    assert "not published, 2: notes.log, state/" in said
    assert f"hf upload me/moss {out} --private" in said and "nothing is uploaded" in said
    listed = {line.split()[-1]: line.split()[0] for line in said.splitlines() if " bytes  " in line}
    assert listed == {path.name: f"{path.stat().st_size:,}" for path in out.iterdir()}
    monkeypatch.chdir(tiny_base.parent)  # where the base is that run.json names, without its path now
    assert checkpoint.load(out).run == {**checkpoint.read_run_file(trained), "base_model": "tiny"}


def test_an_upload_is_one_commit(trained, hub, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert push.main([str(trained), "me/moss", "--private"]) == "https://hub.example/me/moss"
    created, committed = hub.calls
    assert created == ("create_repo", "me/moss", {"private": True, "exist_ok": True})
    assert committed[:2] == ("create_commit", "me/moss") and set(committed[2]) == PUBLISHED
    assert committed[2]["tokenizer.json"] == str(trained / "tokenizer.json")
    assert json.loads(committed[2]["run.json"])["step"] == 360
    assert committed[2]["README.md"].startswith(b"---\nlibrary_name: ")
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


def test_a_base_is_not_published(tiny_base, hub):
    refused([tiny_base, "me/moss"], r"tiny has no run\.json and no merged\.json")
    assert hub.calls == []


@pytest.mark.parametrize("weights", ["classifier.safetensors", "detector.safetensors"])
def test_checkpoints_of_other_tasks_are_refused(tmp_path, hub, weights):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / weights).touch()
    refused(
        [tmp_path, "me/moss"], "is a checkpoint of a classifier or detector; this command publishes those of"
    )
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


def test_nothing_in_a_record_acts_as_markup_in_the_card(copy, result, tmp_path):
    record = json.loads((copy / "run.json").read_text())
    record["settings"]["note"] = "[a](http://x.example) ![p](b) a\\|b <i>"
    record["command"] = "recipes/favor_lora.py --data '```x'"
    (copy / "run.json").write_text(json.dumps(record))
    told = {**json.loads(result.read_text()), "run": {**record, "base_model": "/moved/tiny"}}
    result.write_text(json.dumps({**told, "benchmark": "[M](http://x.example)"}))
    push.main([str(copy), "me/moss", "--dry-run", "--out", str(tmp_path / "o"), "--results", str(result)])
    card = (tmp_path / "o" / "README.md").read_text().split("---", 2)[2]
    assert all(text in card for text in (r"\[a\](", r"!\[p\](b)", r"\[M\]("))
    assert r"a\\\|b \<i\>" in card
    assert "````bash\nrecipes/favor_lora.py --data '```x'\n````" in card


# ---- bases that are not the miniature


@pytest.fixture(scope="module")
def other_base(tiny_base, tmp_path_factory):
    """A base that names no sizes of MOSS, as every base but the miniature."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("models") / "VideoLLaMA3-native")
    (folder / "miniature.json").unlink()
    return folder


@pytest.fixture(scope="module", params=["paper", "sizes", "plain", "merged base"])
def published(request, other_base, moss, processor, tmp_path_factory):
    """A checkpoint on such a base and the same merged, with what their MOSS is."""
    root = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    asked = {"paper": moss_to_train(other_base), "plain": None}.get(request.param, moss)

    def train(base, settings, name):
        model = attach_lora(load_base(base, moss=settings), rank=2, alpha=2, dropout=0)
        folder = root / name / "step-000360"
        checkpoint.save(folder, model, processor, {**RUN, "moss": settings})
        merge.main([str(folder), str(root / f"{name}-merged"), "--dtype", "fp32"])
        return folder, root / f"{name}-merged"

    folder, merged = train(other_base, asked, "run")
    if request.param == "merged base":
        folder, merged = train(merged, moss_to_train(merged), "second")
    paper = {"moss_d_hidden": 256, "moss_d_similarity": 256, "moss_d_fuse": 256, "moss_window": [7, 11, 11]}
    paper |= {"moss_after_layer": 6, "moss_orders": [1, 2], "moss_input_fc": True}
    return folder, merged, {"paper": paper, "plain": None}.get(request.param, paper | moss)


def test_the_records_and_the_card_say_what_moss_was(published, tmp_path, other_base):
    folder, merged, moss = published
    record = json.loads((merged / "merged.json").read_text())
    assert checkpoint.read_run_file(folder)["moss"] == record["moss"] == moss
    for source, is_merged in ((folder, False), (merged, True)):
        out = tmp_path / source.name
        push.main([str(source), "me/model", "--dry-run", "--out", str(out)])
        card = (out / "README.md").read_text()
        has_moss = moss is not None
        assert ("moss" in front_matter(card)["tags"]) is has_moss is ("VideoLLaMA3 with MOSS" in card)
        assert ("None: the same training without MOSS." in card) is not has_moss
        for name, value in (moss or {}).items():
            assert f"| {name} | {value} |" in card
        library = "transformers" if is_merged and not has_moss else "moss_vllm"
        assert front_matter(card)["library_name"] == library
        assert ("import moss_vllm.vlm" in card) is (is_merged and has_moss)
        if is_merged:
            model = checkpoint.load(out).model
            assert isinstance(model, MossVideoLlama3ForConditionalGeneration) is has_moss
        for file in out.iterdir():
            assert str(other_base.parent.parent).encode() not in file.read_bytes(), file


def python_of(text):
    """The Python that a card or a README.md prints."""
    return text.split("```python\n")[1].split("```")[0]


def run_python(code, cwd):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("published", ["paper", "plain"], indirect=True)
def test_what_is_printed_opens_the_model(published, tmp_path, other_base, monkeypatch, capsys):
    folder, merged, moss = published
    monkeypatch.chdir(tmp_path)
    (tmp_path / other_base.name).symlink_to(other_base)
    push.main([str(folder), "me/adapter", "--dry-run", "--out", "me/adapter"])
    push.main([str(merged), "me/merged", "--dry-run", "--out", "me/merged"])
    wanted = f"{'Moss' * (moss is not None)}VideoLlama3ForConditionalGeneration"
    printed = [(Path("me/merged/README.md"), tmp_path, "model")]
    if moss is not None:
        printed = [(merged / "README.md", merged.parent, "model")]
        printed.append((Path("me/adapter/README.md"), tmp_path, "loaded.model.get_base_model()"))
    for file, where, name in printed:
        status, said, errors = run_python(
            f"{python_of(file.read_text())}\nprint(type({name}).__name__)", where
        )
        assert status == 0 and said.split()[-1] == wanted, errors


# ---- what is not published


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "step-000360")


def test_only_what_this_package_writes_goes_out(copy, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.json").write_text("{}")
    for name in "todo.txt notes.json other.safetensors merges.txt config.json .env.txt .a.json".split():
        (copy / name).write_text("hf_abcdefghijklmnopqrstuvwxyz")
    (copy / "link.txt").symlink_to(outside / "private.json")
    (copy / "special_tokens_map.json").symlink_to(outside / "private.json")
    (copy / "chat_template.jinja").rename(copy / "real.jinja")
    (copy / "chat_template.jinja").symlink_to("real.jinja")
    (copy / "folder").symlink_to(outside)
    os.mkfifo(copy / "added_tokens.json")
    push.main([str(copy), "me/moss", "--dry-run", "--out", str(tmp_path / "ready")])
    assert {path.name for path in (tmp_path / "ready").iterdir()} == PUBLISHED - {"chat_template.jinja"}
    said = capsys.readouterr().out.splitlines()[0]
    links = [f"{name} (a link)" for name in ("link.txt", "folder", "chat_template.jinja")]
    assert all(name in said for name in ("todo.txt", ".env.txt", *links))
    (copy / "adapter_model.safetensors").rename(tmp_path / "weights")
    (copy / "adapter_model.safetensors").symlink_to(tmp_path / "weights")
    refused([copy, "me/moss"], r"has no adapter_model\.safetensors; .*links are not followed")


HEX = "0123456789abcdef0123456789abcdef01234567"


def test_a_key_stops_it_wherever_it_stands(copy, hub):
    before = (copy / "run.json").read_text()
    places = (("run.json", "command"), ("tokenizer_config.json", "note"), ("adapter_config.json", "x"))
    for name, field in places:
        kept = (copy / name).read_text()
        (copy / name).write_text(json.dumps({**json.loads(kept), field: f"a.py --wandb-key {HEX} --steps 3"}))
        with pytest.raises(SystemExit, match=rf"would be published: .*{name}: line 1: ") as ended:
            push.main([str(copy), "me/moss"])
        assert HEX not in str(ended.value)
        (copy / name).write_text(kept)
    (copy / "chat_template.jinja").write_text(f"{{# --wandb-key {HEX} #}}")
    refused([copy, "me/moss"], r"chat_template\.jinja: line 1")
    assert hub.calls == [] and (copy / "run.json").read_text() == before


def test_notes_in_a_header_of_weights_are_refused(copy):
    weights = load_file(copy / "adapter_model.safetensors")
    save_file(weights, copy / "adapter_model.safetensors", {"format": "pt", "made_on": "/home/jane"})
    refused([copy, "me/moss"], r"adapter_model\.safetensors: its header has notes \(made_on\)")


def test_paths_of_the_machine_stay(copy, tmp_path, result):
    run = checkpoint.read_run_file(copy)
    run |= {
        "base_model": "/home/jane/VideoLLaMA3-native",
        "command": "recipes/favor_lora.py --data '/home/jane/my data/FAVOR' --out=/scratch/jane/run "
        "--lr-moss 0.001 --config recipes/configs/a.yaml --cache ../../jane/cache --model zl2048/base "
        "--videos node7:/export/v",
        "settings": {"data": "/home/jane/my data/FAVOR", "out": "~jane/run", "lr_moss": 1e-3, "seed": 0},
    }
    (copy / "run.json").write_text(json.dumps(run))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "name_or_path": "/home/jane/base"}))
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    push.main([str(copy), "me/moss", "--dry-run", "--out", str(tmp_path / "ready")])
    for file in (tmp_path / "ready").iterdir():
        assert not any(word in file.read_bytes() for word in (b"jane", b"/home", b"node7", b"/scratch"))
    went = json.loads((tmp_path / "ready" / "run.json").read_text())
    assert went["command"] == (
        "recipes/favor_lora.py --data FAVOR --out=run --lr-moss 0.001 --config recipes/configs/a.yaml "
        "--cache cache --model zl2048/base --videos v"
    )
    assert went["settings"] == {"data": "FAVOR", "out": "run", "lr_moss": 1e-3, "seed": 0}
    adapter = json.loads((tmp_path / "ready" / "adapter_config.json").read_text())
    assert went["base_model"] == adapter["base_model_name_or_path"] == "VideoLLaMA3-native"
    assert before == {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
