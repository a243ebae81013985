"""Stores of answers as another environment, or an earlier version, would have begun them."""

import json


def edit_environment(folder, change):
    """Let `change` edit the header of the only store in `folder`; returns its environment before."""
    (file,) = (folder / "answers").glob("*.jsonl")
    first, rest = file.read_text().split("\n", 1)
    header = json.loads(first)["header"]
    before = dict(header["environment"])
    change(header)
    file.write_text(json.dumps({"header": header}) + "\n" + rest)
    return before
