"""The group of each action class: Something-Something's 50 groups, FineGym's events, or those of a csv.

Reference: Fig. 8 and Sec. D of the paper, whose groups are those of Goyal et al. (2017), Table 8.
"""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from moss_vllm.data.actions.datasets import SOMETHING_CLASSES, SOMETHING_SWAPS, left_right_swaps
from moss_vllm.data.actions.files import plain_name, read_text
from moss_vllm.data.rows import BadRow
from moss_vllm.data.world import actions

HEADERS = (["name", "group"], ["id", "group"])
FINEGYM = ("gym99", "gym288")
# Class ids by group; V1 and V2 have the same 174 classes, numbered as their sorted names.
SOMETHING = {
    "Attaching/Trying to attach": "1 161",
    "Bending something": "2-3 162",
    "Burying or digging something": "4 7",
    "Camera motions": "0 32 41 44 165-168",
    "Collisions of objects": "131-133",
    "Covering": "6 171",
    "Crowd of things": "114 146",
    "Dropping something": "8-12",
    "Filming objects, without any actions": "125-127",
    "Folding something": "14 172",
    "Hitting something with something": "15",
    "Holding something": "16-20",
    "Lifting and (not) dropping something": "27-28 30-31",
    "Lifting/Tilting objects with other objects": "29 156-157",
    "Moving something": "43 45",
    "Moving two objects relative to each other": "36-37 40 42",
    "Moving/Touching a part of something": "33 160",
    "Opening or closing something": "5 46 66-67",
    "Picking something up": "47 68",
    "Piles of stuff": "48",
    "Plugging something into something": "49-50",
    "Poking something": "51-58 69",
    "Pouring something": "59-62 70 163",
    "Pulling something": "85-89",
    "Pulling two ends of something": "90-92",
    "Pushing something": "93-96 98-101",
    "Putting something somewhere": "74 109",
    "Putting something upright/on its side": "21 117 119",
    "Putting/Taking objects into/out of/next to/other objects": (
        "13 71-73 75-76 82 103-107 110 112-113 118 120-121 148"
    ),
    "Rolling and sliding something": "22-26 108 111 115-116 122",
    "Scooping something up": "77 123",
    "Showing objects and photos of objects": "124 128",
    "Showing that something is full/empty": "129-130",
    "Something (not) falling over an edge": "34-35",
    "Something falling": "134-135",
    "Something passing/hitting another thing": "38-39",
    "Spilling something": "136-138",
    "Spinning something": "97 139-140",
    "Spreading something onto something": "78 141",
    "Sprinkling something onto something": "79 142",
    "Squeezing something": "80 143",
    "Stacking or placing N things": "102 144",
    "Stuffing/Taking out": "145",
    "Taking something": "81 147",
    "Tearing something": "65 149-150",
    "Throwing something": "83 151-155",
    "Tipping something over": "158-159",
    "Turning something upside down": "84 164",
    "Twisting something": "64 169-170",
    "Wiping something off of something": "63 173",
}


def something_groups() -> dict[int, str]:
    """The group of each of Something-Something's classes, by class id."""
    groups: dict[int, str] = {}
    for group, numbers in SOMETHING.items():
        for part in numbers.split():
            first, _, last = part.partition("-")
            groups |= dict.fromkeys(range(int(first), int(last or first) + 1), group)
    return dict(sorted(groups.items()))


def find_groups(data: str, classes: Mapping[int, str]) -> dict[int, str]:
    """The group of each class by its id, for datasets whose groups need no file.

    Args:
        data: as the recipe names it; a list with Something-Something's classes in order counts as that.
        classes: names by class id, as far as they are known.

    Raises:
        ValueError: a dataset without groups, or Something-Something's classes in another order.
    """
    if data == "mini":
        return dict(enumerate(actions.CLASSES.values()))
    if data in FINEGYM:  # "(VT) round-off, ...": vault, floor, beam, uneven bars
        events = {number: re.match(r"\((\w+)\)", name) for number, name in classes.items()}
        return {number: event[1] for number, event in events.items() if event}
    names = tuple(classes.get(number, "") for number in range(SOMETHING_CLASSES))
    if len(classes) == SOMETHING_CLASSES and left_right_swaps(names) == SOMETHING_SWAPS:
        return something_groups()
    if data in ("ssv1", "ssv2"):
        raise ValueError(
            f"the {len(classes)} classes of {data} are not Something-Something's {SOMETHING_CLASSES} in the "
            "order of their names; use its own label file, or name a csv 'name,group' with --groups"
        )
    raise ValueError(f"no action groups are known of {data!r}; name a csv 'name,group' with --groups")


def read_groups(file: Path, classes: Mapping[int, str]) -> dict[int, str]:
    """The group of each class by its id, from a csv with the header `name,group` or `id,group`.

    Raises:
        BadRow: the file is missing or has another form, or a class has two groups.
    """
    lines = csv.reader(io.StringIO(read_text(file), newline=""), skipinitialspace=True)
    header, groups = [field.strip() for field in next(lines)], dict[str, str]()
    if header not in HEADERS:
        reason, remedy = f"{','.join(header)[:80]!r} is not the header 'name,group' or 'id,group'", "add it"
        raise BadRow(str(file), "line 1", reason, remedy)
    for fields in lines:
        where = f"line {lines.line_num}"
        name, group = [field.strip() for field in fields] if len(fields) == 2 else ("", "")
        if not fields:
            continue
        if not name or not group or (header[0] == "id" and not name.isdecimal()):
            reason = f"{','.join(fields)[:80]!r} is not '{','.join(header)}'"
            raise BadRow(str(file), where, reason, 'repair it; a name with a comma needs "quotes"')
        key = plain_name(name) if header[0] == "name" else str(int(name))
        # A dataset's names may repeat; only a second group shows that different classes are meant.
        if groups.setdefault(key, group) != group:
            reason = f"has class {name!r} in group {group!r}, above it is in {groups[key]!r}"
            raise BadRow(
                str(file), where, reason, "keep one; classes of one name are told apart by 'id,group'"
            )
    keys = {
        number: plain_name(name) if header[0] == "name" else str(number) for number, name in classes.items()
    }
    return {number: groups[key] for number, key in keys.items() if key in groups}
