"""The paper's Tables 3, 4, 6 and 8 to 10, read from recipes/configs/paper_tables.yaml."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from moss_vllm.core.presets import LadderPreset
from moss_vllm.recognition.build import find_preset

FILE = Path(__file__).parents[1] / "recipes" / "configs" / "paper_tables.yaml"
UNITS = ("FLOPs", "TP", "Mem")
SCORES = ("ssv1", "d48", "ssv2", "thumos14", "kinetics_gebd", "tapos")


@dataclass(frozen=True)
class Row:
    """One row: the paper's numbers and the model's settings; the file's head explains the fields."""

    name: str
    cost: str
    set: dict[str, Any]
    ssv1: float | None = None
    d48: float | None = None
    ssv2: float | None = None
    thumos14: float | None = None
    kinetics_gebd: float | None = None
    tapos: float | None = None
    mini: dict[str, Any] | str | None = None
    views: int = 1
    ladder: dict[str, Any] = field(default_factory=dict)
    added: bool = False
    note: str = ""

    @property
    def paper(self) -> dict[str, str]:
        """FLOPs, TP and Mem as the paper prints them."""
        return dict(zip(UNITS, self.cost.split(), strict=True))

    @property
    def host(self) -> str:
        """The model that MOSS sits in."""
        return str(self.set.get("host", "ladder"))

    @property
    def preset(self) -> LadderPreset:
        """The variant's preset, with the row's own image encoder if it names one."""
        preset = replace(find_preset(self.set.get("variant", "s")), **self.ladder)
        return replace(preset, backbone=self.set.get("backbone", preset.backbone))

    @property
    def options(self) -> dict[str, Any]:
        """The temporal module, its layers and arguments where they differ from the preset; all hashable."""
        options = {"temporal": self.set["temporal"]} if "temporal" in self.set else {}
        if "temporal_layers" in self.set:
            options["temporal_layers"] = tuple(int(layer) for layer in self.set["temporal_layers"].split(","))
        named = yaml.safe_load(self.set.get("temporal_options", "{}"))
        return options | {name: _hashable(value) for name, value in named.items()}

    @property
    def batch(self) -> int:
        """The number of clips with which the paper measures memory."""
        return 32 if self.preset.patch_size == 16 else 16


def read_tables(file: Path = FILE) -> dict[str, list[Row]]:
    """Rows by table, "3" to "10e", "detection" and "boundaries".

    Raises:
        ValueError: an invalid row, named by file, table and row.
    """
    try:
        tables = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: cannot be read as YAML ({error})") from error
    if not isinstance(tables, dict) or not all(isinstance(rows, list) for rows in tables.values()):
        raise ValueError(f"{file}: it must hold a list of rows under each table's name")
    read = {
        str(table): [
            _read_row(row, f"{file}: table {table}, row {number}") for number, row in enumerate(rows, 1)
        ]
        for table, rows in tables.items()
    }
    for table, rows in read.items():
        names = [row.name for row in rows]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{file}: table {table} has {', '.join(sorted(twice))} twice; rename one")
    return read


def _read_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {row!r}, not names with values")
    where = f"{where} ({row.get('name')})"
    allowed = {item.name for item in fields(Row)}
    if unknown := sorted(set(map(str, row)) - allowed):
        raise ValueError(f"{where} has {', '.join(unknown)}; it may have {', '.join(sorted(allowed))}")
    kinds: dict[str, Any] = {
        "name": str,
        "cost": str,
        "set": dict,
        "note": str,
        "views": int,
        "ladder": dict,
        "added": bool,
    }
    kinds |= {name: float for name in SCORES} | {"mini": (dict, str)}
    for name, value in row.items():
        if not isinstance(value, kinds[name]):
            raise ValueError(f"{where}: {name} is {value!r}; it must be of another type, see the file's head")
    if missing := [name for name in ("name", "cost", "set") if name not in row]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}")
    if len(row["cost"].split()) != len(UNITS):
        raise ValueError(f"{where}: cost is {row['cost']!r}; write {' '.join(UNITS)}, '-' for none")
    return Row(**row)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


TABLES = read_tables()
# Of Tables 8 and 9, whose costs the paper does not print.
DETECTION_ROWS, BOUNDARY_ROWS = TABLES.pop("detection"), TABLES.pop("boundaries")


if __name__ == "__main__":
    raise SystemExit("experiments/paper_tables.py is a part of ablate.py and efficiency.py, not a command")
