"""The model card of a checkpoint or a merged model, filled from its own record and result.json files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.files import read_json
from moss_vllm.report import format_cell
from moss_vllm.vlm.base import is_hub_id

CITATION = """```bibtex
@misc{moss,
  title = {Exploring High-Order Self-Similarity for Video Understanding},
  note = {Multi-Order Self-Similarity (MOSS)}
}
@misc{videollama3,
  title = {VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding},
  author = {Zhang, Boqiang and others},
  year = {2025},
  eprint = {2501.13106},
  archivePrefix = {arXiv}
}
```"""


def model_card(
    repo_id: str,
    run: Mapping[str, Any],
    *,
    merged: bool,
    licence: str = "other",
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """README.md of a repository on the hub.

    Args:
        repo_id: owner/name.
        run: run.json of a checkpoint, or merged.json of a merged model.
        merged: a full model, not an adapter on its base.
        licence: the hub's id of a licence.
        results: result.json files of `eval/`.
    """
    base, moss = run["base_model"], run.get("moss")
    kind = "VideoLLaMA3 with MOSS" if moss else "VideoLLaMA3"
    what = (
        f"{kind}, fine-tuned and merged into one full model."
        if merged
        else f"A fine-tuning of {kind}: LoRA on the language model"
        + (", MOSS" if moss else "")
        + " and the projector. The base model is not in it."
    )
    about_moss = (
        "MOSS (Multi-Order Self-Similarity) reads an early layer of the vision encoder and adds what it "
        "finds of motion to the encoder's output."
    )
    revision = f", revision {run['base_revision']}" if run.get("base_revision") else ""
    sections = {
        "": f"{what} {about_moss if moss else ''}".rstrip(),
        "Base": f"`{base}`{revision}; fingerprint `{run['base_fingerprint']}`.",
        "How to load": _how_to_load(repo_id, run, merged=merged),
        "MOSS": _table(moss) if moss else "None: the same training without MOSS.",
        "Training": _training(run),
        "Clips": _table(run.get("protocol", {})),
        "Scores": _scores(results),
        "Versions": _table(run.get("versions", {})),
        "Licence": (
            "That of the code it was made with (moss_vllm) is Apache-2.0. The terms of the base model and of "
            "the training data hold for these weights too; read them before use."
        ),
        "Citation": CITATION,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"{_front_matter(run, merged=merged, licence=licence)}\n# {repo_id}\n\n{body}\n"


def read_result(file: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """A result.json of the model whose record is `run`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, or is of another model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not a file; give the result.json of an evaluation")
    result = read_json(file, "evaluate again")
    needed = ("benchmark", "protocol", "run", "asked", "questions", "accuracy_percent", "chance_percent")
    if missing := [name for name in needed if name not in result]:
        raise ValueError(f"{file}: has no {', '.join(missing)}; give a result.json of eval/*.py")
    if result["run"] != run:
        raise ValueError(f"{file}: is of another model than this one; evaluate this one, or leave it out")
    return result


def _front_matter(run: Mapping[str, Any], *, merged: bool, licence: str) -> str:
    plain = merged and not run.get("moss")
    lines = [f"license: {json.dumps(licence)}"]
    # Of an adapter the hub would show peft's own way to open it, which leaves MOSS out in silence.
    lines += [f"library_name: {'transformers' if plain else 'moss_vllm'}"]
    if is_hub_id(run["base_model"]):
        relation = "finetune" if merged else "adapter"
        lines += [f"base_model: {json.dumps(run['base_model'])}", f"base_model_relation: {relation}"]
    lines += ["pipeline_tag: video-text-to-text", "tags:", "- video", "- motion"]
    return "\n".join(["---", *lines, *(["- moss"] if run.get("moss") else []), "---", ""])


def _how_to_load(repo_id: str, run: Mapping[str, Any], *, merged: bool) -> str:
    if merged:
        register = (
            "import moss_vllm.vlm  # registers the model with transformers\n" if run.get("moss") else ""
        )
        return (
            f"```python\n{register}from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained("{repo_id}")\n'
            f'processor = AutoProcessor.from_pretrained("{repo_id}")\n```'
        )
    text = (
        "```python\nfrom moss_vllm.vlm.checkpoint import load\n\n"
        f'loaded = load("{repo_id}")  # on its base, ready to generate\n```\n\n'
        f'or `python scripts/ask.py VIDEO "question" --ckpt {repo_id}`. Not through peft: it would leave out '
        "MOSS without a word."
    )
    if not is_hub_id(run["base_model"]) and run["base_model"] != "miniature":
        text += (
            f" The base was a folder on the machine of the training: `hf download {repo_id} --local-dir DIR`,"
            " write your folder of the same base (the fingerprint above is checked) as `base_model` into "
            "DIR/run.json, and give DIR in place of the name."
        )
    return text


def _training(run: Mapping[str, Any]) -> str:
    settings = run.get("settings", {})
    known = {name: run[name] for name in ("step", "processes", "seed") if name in run}
    parts = []
    if "command" in run:
        parts.append(f"```bash\n{run['command']}\n```")
    if "data" in settings:
        told = (
            f"`{settings['data']}`" if settings["data"] else "the motion world, generated clips of moss_vllm"
        )
        parts.append(f"Data: {told}.")
    if table := {**known, **settings}:
        parts.append(_table(table))
    return "\n\n".join(parts) or "Not recorded."


def _scores(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None were given."
    return "\n\n".join(_score(result) for result in results)


def _score(result: Mapping[str, Any]) -> str:
    accuracy, chance = result["accuracy_percent"], result["chance_percent"]
    lines = ["| task | accuracy % | chance % |", "|---|---:|---:|"]
    for task in accuracy:
        lines.append(f"| {_cell(task)} | {format_cell(accuracy[task])} | {format_cell(chance.get(task))} |")
    protocol = ", ".join(f"{name}={value}" for name, value in result["protocol"].items())
    partial = "" if result["asked"] == result["questions"] else f" **Partial: of {result['questions']:,}.**"
    return (
        f"{result['benchmark']}, {result['asked']:,} questions.{partial} Protocol: {_cell(protocol)}.\n\n"
        + "\n".join(lines)
    )


def _table(values: Mapping[str, Any]) -> str:
    if not values:
        return "Not recorded."
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
