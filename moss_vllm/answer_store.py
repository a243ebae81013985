"""Every answer of an evaluation on disk, so that a run that was stopped asks no question twice.

A store is a jsonl file: a header that says what was run, then one line per question. A run that was killed
goes on behind the last whole line; a run of anything else refuses the file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from moss_vllm.data.rows import Question
from moss_vllm.vlm.checkpoint import Loaded, versions

RECORDED_VERSIONS = ("moss_vllm", "torch", "transformers", "peft")


def open_store(path: Path, header: dict[str, Any], *, overwrite: bool) -> dict[str, dict[str, Any]]:
    """Answers by uid; writes the header of a new store and cuts off the line a killed run left unfinished.

    Raises: ValueError for a file with another header, or with a whole line that is no answer; it is kept.
    """
    remedy = "pass --overwrite to start again, or another --out"
    head = (json.dumps({"header": header}) + "\n").encode()
    data = b"" if overwrite or not path.exists() else path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and head.startswith(data):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head)
        return {}
    answered: dict[str, dict[str, Any]] = {}
    old: Any = None
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            if number == 1:
                old = row["header"]
            elif row["uid"] in answered:
                raise ValueError(f"uid {row['uid']!r} was answered before")
            else:
                answered[row["uid"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: line {number} is no line of an answer store ({error}); {remedy}"
            ) from None
    was, now = _flat(old), _flat(json.loads(head)["header"])
    changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
    if changed:
        told = ", ".join(f"{key} was {was.get(key)}, is {now.get(key)}" for key in changed)
        raise ValueError(f"{path} holds answers of another run ({told or 'no header'}); {remedy}")
    os.truncate(path, len(whole))
    return answered


def describe_run(
    loaded: Loaded,
    questions: Sequence[Question],
    *,
    settings: Mapping[str, Any],
    prompt: Callable[[Question], str],
) -> dict[str, Any]:
    """The store's header: whatever could change an answer; `settings` and `prompt` are the protocol's."""
    data = json.dumps([[q.uid, q.task, prompt(q), q.answer] for q in questions])
    found = versions()
    return {
        "checkpoint": loaded.name,
        "weights": fingerprint(loaded.model),
        "protocol": settings,
        "questions": len(questions),
        "data": hashlib.sha256(data.encode()).hexdigest()[:16],
        "versions": {package: found[package] for package in RECORDED_VERSIONS},
    }


def fingerprint(model: nn.Module) -> str:
    """A digest of some numbers of every tensor: tells two trainings apart that have one name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 16)].double().cpu().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
