"""The model card of a checkpoint or a merged model, from its record and from result.json files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from moss_vllm.evaluation.scoring import OFFICIAL_COUNTS
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.screen import plain
from moss_vllm.runtime.tables import format_cell, in_markdown, markdown_table
from moss_vllm.runtime.versions import without_absent
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.fit import shorten
from moss_vllm.vlm.places import MINIATURES, is_hub_id

HUB_DATA = {"FAVOR-Bench": "zl2048/FAVOR", "MotionBench-Dev": "zai-org/MotionBench"}
TASK = "video-text-to-text"
CITE_MOSS = """@misc{moss,
  title = {Exploring High-Order Self-Similarity for Video Understanding},
  note = {Multi-Order Self-Similarity (MOSS)}
}"""
CITE_VIDEO_LLAMA3 = """@misc{videollama3,
  title = {VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding},
  author = {Zhang, Boqiang and others},
  year = {2025},
  eprint = {2501.13106},
  archivePrefix = {arXiv}
}"""


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
        run: run.json of a checkpoint or merged.json of a merged model; `moss` has MOSS's sizes, None without.
        merged: whether this is a full model and not an adapter.
        licence: the hub's id of the licence.
        results: result.json files of `eval/`.
    """
    base, moss = run["base_model"], run.get("moss")
    has_moss = moss is not None
    kind = _family(run) + " with MOSS" * has_moss
    what = (
        f"{kind}, fine-tuned and merged into one full model."
        if merged
        else f"A fine-tuning of {kind}: LoRA on the language model"
        + (", MOSS" if has_moss else "")
        + " and the projector. The base model is not in it."
    )
    about_moss = (
        " MOSS (Multi-Order Self-Similarity) reads an early layer of the vision encoder and adds what it "
        "finds of motion to the encoder's output."
    )
    revision = f", revision {_cell(run['base_revision'])}" if run.get("base_revision") else ""
    sections = {
        "": what + about_moss * has_moss,
        "Base": f"{_code(base)}{revision}; fingerprint {_code(run['base_fingerprint'])}.",
        "How to load": _how_to_load(repo_id, run, merged=merged),
        "MOSS": "None: the same training without MOSS." if moss is None else _table(moss),
        "Training": _training(run),
        "Clips": _table(run.get("protocol", {})),
        "Scores": "\n\n".join(map(_score, results)) or "None were given.",
        "Versions": _table(without_absent(run.get("versions", {}))),
        "Licence": (
            "That of the code it was made with (moss_vllm) is Apache-2.0. The terms of the base model and of "
            "the training data hold for these weights too; read them before use."
        ),
        "Citation": _citation(run),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    matter = _front_matter(repo_id, run, merged=merged, licence=licence, results=results)
    return f"---\n{matter.to_yaml()}\n---\n\n# {repo_id}\n\n{body}\n"


def _citation(run: Mapping[str, Any]) -> str:
    """BibTeX of the method and of the base, whose own page has it for other bases than the paper's."""
    if _family(run) == VIDEO_LLAMA3.title:
        return f"```bibtex\n{CITE_MOSS}\n{CITE_VIDEO_LLAMA3}\n```"
    return f"```bibtex\n{CITE_MOSS}\n```\n\nCite {_family(run)} as the page of the base model says."


def merged_readme(name: str, run: Mapping[str, Any]) -> str:
    """README.md of a merged folder called `name`, because transformers' own error would mislead."""
    has_moss = run.get("moss") is not None
    needs = "moss_vllm, which puts MOSS into the model" if has_moss else "transformers alone"
    return (
        f"{_family(run)}{' with MOSS' * has_moss}, merged by moss_vllm. It needs {needs}. "
        f"Beside this folder:\n\n```python\n{loading_code(name, run, merged=True)}\n```\n"
    )


def loading_code(name: str, run: Mapping[str, Any], *, merged: bool) -> str:
    """The Python that opens the model from the folder or hub id `name`."""
    has_moss = run.get("moss") is not None
    if not merged or (has_moss and _family(run) != VIDEO_LLAMA3.title):  # transformers would drop MOSS
        return (
            "from moss_vllm.vlm.checkpoint import load\n\n"
            f'loaded = load("{name}")  # {"" if merged else "on its base, "}ready to generate'
        )
    register = "import moss_vllm.vlm  # registers the model with transformers\n"
    return (
        f"{register * has_moss}"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'model = AutoModelForImageTextToText.from_pretrained("{name}")\n'
        f'processor = AutoProcessor.from_pretrained("{name}")'
    )


def _family(run: Mapping[str, Any]) -> str:
    """The title of a model's family; records of earlier versions are all VideoLLaMA3's."""
    return str(run.get("family", VIDEO_LLAMA3.title))


def read_result(file: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """A result.json of the model whose record is `run`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or is of another model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not a file; give the result.json of an evaluation")
    result = read_json(file, "evaluate again")
    needed = ("benchmark", "protocol", "run", "asked", "questions", "accuracy_percent", "chance_percent")
    if missing := [name for name in needed if name not in result]:
        raise ValueError(f"{file}: has no {', '.join(missing)}; give a result.json of eval/*.py")
    _check_result(file, result)
    theirs, ours = ({**one, "base_model": None} for one in (result["run"], run))  # the base may have moved
    if theirs != ours:
        raise ValueError(f"{file}: is of another model than this one; evaluate this one, or leave it out")
    return result


def _check_result(file: Path, result: Mapping[str, Any]) -> None:
    """ValueError unless the entries that the card needs have the types that `Result.save` writes."""
    kinds: dict[str, Any] = {"benchmark": str, "protocol": dict, "run": dict, "asked": int, "questions": int}
    kinds |= {"accuracy_percent": dict, "chance_percent": dict, "notes": list, "counts": dict}
    kinds |= {"interval_95_percent": dict, "failed": dict}
    wrong = [name for name, kind in kinds.items() if name in result and type(result[name]) is not kind]
    if not wrong:
        spans = result.get("interval_95_percent", {})
        wrong = [name for name, span in spans.items() if not (isinstance(span, list) and len(span) == 2)]
        percents = [*result["accuracy_percent"].items(), *result["chance_percent"].items()]
        percents += [(name, end) for name, span in spans.items() if name not in wrong for end in span]
        wrong += [
            name
            for name, value in percents
            if type(value) not in (int, float, type(None)) or not 0 <= (value or 0) <= 100
        ]
        counts = result.get("counts", {})
        wrong += [
            f"counts.{name}"
            for name, count in counts.items()
            if not isinstance(count, dict) or any(type(n) is not int or n < 0 for n in count.values())
        ]
        wrong += [name for name in ("asked", "questions") if result[name] < 0]
        wrong += ["notes"] * any(not isinstance(note, str) for note in result.get("notes", ()))
    if wrong:
        names = ", ".join(shorten(name, quoted=False) for name in dict.fromkeys(wrong))
        raise ValueError(f"{file}: its {names} is not what an evaluation writes; evaluate again")


def _front_matter(
    repo_id: str,
    run: Mapping[str, Any],
    *,
    merged: bool,
    licence: str,
    results: Sequence[Mapping[str, Any]],
) -> ModelCardData:
    has_moss, on_hub = run.get("moss") is not None, is_hub_id(run["base_model"])
    scores = [entry for result in results for entry in _entries(result)]
    return ModelCardData(
        license=licence,
        # Under "peft" the hub would show peft's code to open an adapter, which does not work with MOSS.
        library_name="transformers" if merged and not has_moss else "moss_vllm",
        base_model=run["base_model"] if on_hub else None,
        base_model_relation=("finetune" if merged else "adapter") if on_hub else None,
        pipeline_tag=TASK,
        tags=["video", "motion", *["moss"] * has_moss],
        model_name=repo_id.split("/")[-1] if scores else None,
        eval_results=scores or None,
    )


def _entries(result: Mapping[str, Any]) -> list[EvalResult]:
    """The scores that the hub lists: of a whole published benchmark, with its clips.

    A reader of the list sees a benchmark's name and a number and no note, so scores of a part, of generated
    clips and of the one-frame control stand in the card's text alone.
    """
    benchmark, protocol = result["benchmark"], result["protocol"]
    if benchmark not in HUB_DATA or _difference(result) or protocol.get("still"):
        return []
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=HUB_DATA[benchmark],
            dataset_name=benchmark,
            metric_type="accuracy",
            metric_value=round(value, 2),
            metric_name=f"accuracy (%), {task}, protocol {protocol.get('name', '')}",
        )
        for task, value in result["accuracy_percent"].items()
        if value is not None
    ]


def _difference(result: Mapping[str, Any]) -> str:
    """How the questions differ from the benchmark's; empty if they do not."""
    official, asked = OFFICIAL_COUNTS.get(result["benchmark"]), f"{result['asked']:,} questions"
    counts = result.get("counts", {}).get("total", {})
    if _of_motion_world(result):
        return f"{asked} of the motion world, not comparable"
    if result["asked"] != result["questions"]:
        return f"partial: {asked} of {result['questions']:,}"
    if official and {task: n for task, n in counts.items() if task != "all" and n} != official:
        return f"{asked}; the published benchmark has {sum(official.values()):,}"
    return ""


def _of_motion_world(result: Mapping[str, Any]) -> bool:
    """Whether its questions were drawn here; earlier versions said so in a note alone."""
    return result.get("motion_world") is True or any("not comparable" in n for n in result.get("notes", ()))


def _how_to_load(repo_id: str, run: Mapping[str, Any], *, merged: bool) -> str:
    code = f"```python\n{loading_code(repo_id, run, merged=merged)}\n```"
    if merged:
        return code
    text = f'{code}\n\nor `python scripts/ask.py VIDEO "question" --ckpt {repo_id}`.'
    if run.get("moss") is not None:
        text += " Not through peft: it knows no MOSS, and refuses."
    base = run["base_model"]
    if not is_hub_id(base) and base not in MINIATURES:
        text += (
            f" The base is not on the hub. A folder {_code(base)} of the same base is looked for where the "
            f"code runs, and the fingerprint above is checked. If yours is elsewhere: `hf download {repo_id} "
            "--local-dir DIR`, write where it is as `base_model` into DIR/run.json, and give DIR in place of "
            "the name."
        )
    return text


def _training(run: Mapping[str, Any]) -> str:
    settings = run.get("settings", {})
    counts = {name: run[name] for name in ("step", "processes", "seed") if name in run}
    parts = []
    if "command" in run:
        command = str(run["command"])
        alone = run.get("processes", 1) == 1 and command.split(" ")[0].endswith(".py")
        parts.append(_code(f"python {command}" if alone else command, "bash"))
    if "data" in settings:
        source = (
            _code(str(settings["data"]))
            if settings["data"]
            else "the motion world, generated clips of moss_vllm"
        )
        parts.append(f"Data: {source}.")
    if table := {**counts, **settings}:
        parts.append(_table(table))
    return "\n\n".join(parts) or "Not recorded."


def _score(result: Mapping[str, Any]) -> str:
    accuracy, chance = result["accuracy_percent"], result["chance_percent"]
    spans, counts = result.get("interval_95_percent", {}), result.get("counts", {})
    rows = []
    for task in accuracy:
        span = " to ".join(format_cell(end) for end in spans.get(task, ())) or "-"
        some = [format_cell(counts.get(name, {}).get(task)) for name in ("answered", "total")]
        rows.append([_cell(task), format_cell(accuracy[task]), format_cell(chance.get(task)), span, *some])
    heads = ["task", "accuracy %", "chance %", "95 % interval", "answered", "questions"]
    notes = list(result.get("notes", ()))
    if failed := result.get("failed"):
        notes.append(f"{len(failed)} videos missing or unreadable: their questions count as wrong")
    if (difference := _difference(result)) and not _of_motion_world(result):
        notes.append(difference)
    protocol = ", ".join(f"{name}={value}" for name, value in result["protocol"].items())
    partial = (
        ""
        if result["asked"] == result["questions"]
        else f" **Partial: of {result['questions']:,} questions.**"
    )
    summary = f"{_cell(result['benchmark'])}, {result['asked']:,} questions.{partial}"
    head = f"{summary} Protocol: {_cell(protocol)}.\n"
    told = [*(f"- **{_cell(note)}**" for note in notes), *[""] * bool(notes)]
    return "\n".join([head, *told, *markdown_table(heads, rows)])


def _table(values: Mapping[str, Any]) -> str:
    if not values:
        return "Not recorded."
    heads, rows = ["setting", "value"], [[_cell(name), _cell(value)] for name, value in values.items()]
    return "\n".join(markdown_table(heads, rows, left=heads))


def _cell(value: Any) -> str:
    text = " ".join(str(value).split())
    numbers_alone = re.fullmatch(r"[\d\s,.\[\]-]+", text)  # needs no escaping, and reads better without
    return text if numbers_alone else in_markdown(text)


def _code(text: str, kind: str = "") -> str:
    """The text as code, between enough backticks; with `kind` as a block in that language."""
    text = plain(text)
    ticks = max(map(len, re.findall("`+", text)), default=0) + 1
    if kind:
        fence = "`" * max(3, ticks)
        return f"{fence}{kind}\n{text}\n{fence}"
    space = " " * ("`" in text)
    return f"{'`' * ticks}{space}{text}{space}{'`' * ticks}"
