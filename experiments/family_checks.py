"""Does MOSS hold in every Video-LLM that it attaches to? A list of checks on tiny random models of each.

    python experiments/family_checks.py                       # a minute on one idle core
    python experiments/family_checks.py --hosts qwen2_5_vl --checks grid save
    python experiments/family_checks.py --processes           # with DDP and ZeRO-2, two processes
    python experiments/family_checks.py --json benchmarks/results/families.json

Prints a table of hosts and checks, and the reason of each check that fails; the exit status is 1 then. A host
that `attach` refuses on this version of transformers has "-". Models are a few thousand random numbers in
transformers' own classes: nothing here says whether MOSS helps a model.
Results are of the installed version of transformers. The json keeps those of other versions: install another
one beside the package's environment, and name it first in PYTHONPATH:

    pip install --target OTHER transformers==5.17.0
    PYTHONPATH=OTHER python experiments/family_checks.py --json benchmarks/results/families.json
"""

import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say

PASSES, REFUSED = "passes", "refused"


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--hosts", nargs="+", metavar="MODEL_TYPE", help="some of the hosts (default: all)")
    parser.add_argument("--checks", nargs="+", metavar="CHECK", help="some of the checks (default: all)")
    parser.add_argument("--processes", action="store_true", help="also the checks that start processes")
    parser.add_argument("--json", type=Path, help="file to add the results to")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
import transformers
from host_checks import CHECKS
from host_processes import PROCESS_CHECKS
from measuring import prepare_json, quietly, write_json
from tiny_hosts import TINY_HOSTS, TinyHost

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.versions import versions
from moss_vllm.vlm.fit import describe_error


def try_check(name: str, tiny: TinyHost) -> str:
    """`PASSES`, or why not; it begins with `REFUSED` where `attach` refuses the model on this version."""
    check = {**CHECKS, **PROCESS_CHECKS}[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with quietly():
                check(tiny, Path(folder))
        except Exception as error:  # of any kind, by the check and the version of transformers
            reason = describe_error(error)
            return f"{REFUSED}: {reason}" if reason.startswith("MOSS cannot be attached") else reason
    return PASSES


def is_refused(result: str) -> bool:
    """Whether `attach` refused the model."""
    return result.startswith(REFUSED)


def show(found: dict[str, dict[str, str]], console: Screen) -> None:
    """The table, and the reasons."""
    checks = list(dict.fromkeys(check for row in found.values() for check in row))
    width = max(map(len, found))
    console.print(f"transformers {transformers.__version__}, torch {torch.__version__}", soft_wrap=True)
    console.print(" " * width, *checks, soft_wrap=True)
    for host, row in found.items():
        signs = [
            "+" if row[check] == PASSES else "-" if is_refused(row[check]) else "FAILS" for check in checks
        ]
        cells = [sign.center(len(check)) for sign, check in zip(signs, checks, strict=True)]
        console.print(host.ljust(width), *cells, soft_wrap=True)
    for host, row in found.items():
        for reason in dict.fromkeys(row.values()):
            if reason != PASSES:
                failed = ", ".join(check for check in row if row[check] == reason)
                console.print(f"{host}, {failed}: {reason}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Run the checks; returns for each host and check `PASSES` or the reason."""
    parser = options()
    args = parser.parse_args(argv)
    known = {"hosts": [tiny.name for tiny in TINY_HOSTS], "checks": [*CHECKS, *PROCESS_CHECKS]}
    for flag, names in known.items():
        if unknown := [name for name in getattr(args, flag) or () if name not in names]:
            parser.error(
                f"argument --{flag}: invalid choice: {unknown[0]!r} (choose from {', '.join(names)})"
            )
    prepare_json(parser, args.json)
    checks = args.checks or [*CHECKS, *(PROCESS_CHECKS if args.processes else ())]
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    for tiny in TINY_HOSTS:
        if not args.hosts or tiny.name in args.hosts:
            found[tiny.name] = {name: try_check(name, tiny) for name in checks}
            failed = sum(result != PASSES for result in found[tiny.name].values())
            say(
                f"{tiny.name}: {len(checks) - failed} of {len(checks)} checks pass",
                file=sys.stderr,
                flush=True,
            )
    console = Screen(width=150)
    show(found, console)
    if args.json:
        record = read_json(args.json, "name another file") if args.json.is_file() else {}
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        before = record.get(transformers.__version__, {}).get("hosts", {})
        hosts = {**before, **{host: {**before.get(host, {}), **row} for host, row in found.items()}}
        record[transformers.__version__] = {"machine": machine, "versions": versions(), "hosts": hosts}
        write_json(args.json, json.loads(json.dumps(record, sort_keys=True)), console)
    return found


if __name__ == "__main__":
    with errors_in_one_line("nothing was kept; run it again"):
        result = main()
        reasons = [reason for row in result.values() for reason in row.values() if reason != PASSES]
        raise SystemExit(any(not is_refused(reason) for reason in reasons))
