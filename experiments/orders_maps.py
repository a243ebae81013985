"""What each order sees of the clips of `experiments/orders.py`, in maps and in a number.

    python experiments/orders_maps.py                     # a minute: with g = flattening, as in Figs. 3 and 7
    python experiments/orders_maps.py --runs runs/orders  # and with the MOSS that orders.py trained there

Order n compares what order n - 1 gives out, order 1 the tower's tokens. A patch is taken as the query, and
all other patches of its frame are sorted by similarity to it. The number is how often a patch that moves as
the query does stands before one that does not (area under the ROC curve): 50 is chance, 100 all of the
segment first.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE

RESULTS, PICTURE = Path("benchmarks/results/orders-maps-mini.json"), Path("docs/orders_maps.png")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--test", type=FROM_ONE, default=64, help="test clips, all with shapes")
    parser.add_argument("--base", default="miniature", help="folder of the miniature whose tower is used")
    parser.add_argument("--runs", type=Path, help="--out of orders.py: every seed's trained MOSS")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the numbers")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="maps of one clip, a .png")
    return parser


if __name__ == "__main__":
    answer_help(options)

import numpy as np
import torch
import torch.nn.functional as F
from measuring import prepare_json, write_json
from numpy.typing import NDArray
from orders_runs import WEIGHTS, WINDOW, Tower, build, pixels
from safetensors.torch import load_file
from torch import Tensor

from moss_vllm.core.stss import stss
from moss_vllm.data.world import segments
from moss_vllm.report.plots import DOTS_PER_INCH
from moss_vllm.report.stss_figure import Marked, draw_sheet, lay_out
from moss_vllm.report.stss_maps import OrderView, Query, largest_window
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.tables import Table, mean_and_spread
from moss_vllm.runtime.versions import versions
from moss_vllm.video.clip import Clip

SEED = 2  # orders.py draws its training clips with 0 and its test clips with 1
SHOWN = "two side by side, alike"
QUERIES = ("a shape's patch", "the wall's patch")
COLOURS = ("#e41a1c", "#00a6d6")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, draw, and print the table; returns what `--json` writes."""
    parser = options()
    args = parser.parse_args(argv)
    prepare_json(parser, args.json)
    if args.picture.suffix != ".png" or not args.picture.parent.is_dir():
        parser.error(f"--picture {args.picture}: name a .png in a folder that exists")
    tower, rng = Tower(args.base), np.random.default_rng(SEED)
    names = [name for name, group in segments.SEGMENT_CLASSES.items() if group != "direction"]
    scenes = [segments.draw_segments(rng, names[i % len(names)]) for i in range(args.test)]
    ladders = trained_ladders(args.runs, tower) if args.runs else {}
    found: dict[str, list[dict[str, float]]] = {}
    for scene in show_progress(scenes, len(scenes), "clips measured"):
        tokens, moves_as = tokens_of(tower, scene), motion_map(scene)
        for name, features in compared(tokens, ladders):
            found.setdefault(name, []).append(told_apart(features, moves_as))
    rows = {name: {"moves alike": mean_and_spread(numbers)} for name, numbers in found.items()}
    notes = [f"{len(scenes)} clips that orders.py has not drawn; ± is the sample sd over clips; chance is 50"]
    console = Screen(width=130)
    console.print(Table("Patches sorted by similarity (%)", {"moves alike": list(QUERIES)}, rows, notes))
    draw_maps(tower, segments.draw_segments(np.random.default_rng(SEED), SHOWN), args.picture)
    say(f"maps are in {args.picture}")
    command = shlex.join(["python", "experiments/orders_maps.py", *(sys.argv[1:] if argv is None else argv)])
    means = {n: {q: float(np.mean([one[q] for one in all_])) for q in QUERIES} for n, all_ in found.items()}
    record = {"command": command, "versions": versions(), "clips": len(scenes), "chance": 50, "rows": means}
    write_json(args.json, record, console)
    return record


def tokens_of(tower: Tower, scene: segments.SegmentScene) -> Tensor:
    """The tower's tokens that MOSS reads: (1, T, H, W, d_in)."""
    side = segments.SQUARE_PX
    clip = torch.from_numpy(segments.render_segments(scene)[:, ::side, ::side])
    return tower(pixels(clip))[0].unflatten(1, (segments.SEGMENT_GRID,) * 2)[None]


def motion_map(scene: segments.SegmentScene) -> NDArray[np.int64]:
    """The number of each patch's motion, 0 for the wall's, one for shapes that move alike: (H, W)."""
    motions = np.zeros((segments.SEGMENT_GRID,) * 2, dtype=np.int64)
    ways = [tuple(one.way.tolist()) for one in scene.segments]
    for way, segment in zip(ways, scene.segments, strict=True):
        motions[segment.mask] = 1 + ways.index(way)
    return motions


def flattened(tokens: Tensor, *, centred: bool) -> list[Tensor]:
    """What orders 1 to 3 compare where g is flattening over (L, U, V): each (1, T, H, W, C).

    Centred, each is less its mean over the clip: what all patches share, whatever they do.
    """
    reads = list[Tensor]()
    for _ in range(3):
        read = stss(reads[-1], WINDOW).flatten(-3) if reads else tokens
        reads.append(read - read.mean((1, 2, 3), keepdim=True) if centred else read)
    return reads


def trained_ladders(runs: Path, tower: Tower) -> dict[str, Any]:
    """The ladders with MOSS that orders.py trained in this folder, by seed.

    Raises:
        ValueError: the folder has none with weights.
    """
    found = {}
    for file in sorted(runs.glob(f"MOSS/seed-*/{WEIGHTS}")):
        ladder = build("MOSS", tower.vision.config.hidden_size)
        ladder.load_state_dict(load_file(file))
        found[file.parent.name.replace("-", " ")] = ladder.eval()
    if not found:
        raise ValueError(f"--runs {runs} has no MOSS/seed-*/{WEIGHTS}; name the --out of orders.py")
    return found


@torch.no_grad()
def compared(tokens: Tensor, ladders: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and features of everything that an order compares, or the last one gives out."""
    for how in ("flattening", "flattening, less the mean"):
        reads = flattened(tokens, centred=how != "flattening")
        yield from ((f"order {order}, {how}", read) for order, read in enumerate(reads, start=1))
    for seed, ladder in ladders.items():
        first, second = ladder.moss.maps(tokens)
        yield f"order 2, trained MOSS, {seed}", first.motion
        yield f"what it gives out, {seed}", second.motion


def told_apart(features: Tensor, motions: NDArray[np.int64]) -> dict[str, float]:
    """Area under the ROC curve in percent: mean over patches of all frames, of shapes and of the wall."""
    cells = F.normalize(features[0].flatten(1, 2), dim=-1)  # (T, H*W, C)
    similarity = cells @ cells.transpose(1, 2)
    kinds = torch.from_numpy(motions.ravel())
    areas: dict[str, list[Tensor]] = {name: [] for name in QUERIES}
    for query, kind in enumerate(kinds.tolist()):
        alike = kinds == kind
        alike[query] = False
        of_alike, of_others = similarity[:, query, alike], similarity[:, query, kinds != kind]
        gap = of_alike[:, :, None] - of_others[:, None]
        areas[QUERIES[kind == 0]].append(100 * ((gap > 0).float() + (gap == 0).float() / 2).mean())
    return {name: float(torch.stack(values).mean()) for name, values in areas.items()}


def draw_maps(tower: Tower, scene: segments.SegmentScene, file: Path) -> None:
    """Frames of a clip, and below them each order's similarity to a patch of a shape and one of the wall."""
    tokens, motions, middle = tokens_of(tower, scene), motion_map(scene), segments.SEGMENT_FRAMES // 2
    whole = (3, *largest_window(tokens)[1:])
    reads = enumerate(flattened(tokens, centred=True), start=1)
    views = [OrderView(order, stss(read, whole)[0], torch.zeros(read.shape[1:4])) for order, read in reads]
    mask = scene.segments[0].mask
    of_shape = np.argwhere(mask)[mask.sum() // 2]
    of_wall = np.argwhere(motions == 0)[(motions == 0).sum() // 2]
    places = [Query(middle, int(y), int(x)) for y, x in (of_shape, of_wall)]
    marked = [Marked(*one) for one in zip(QUERIES, places, COLOURS, strict=True)]
    clip = Clip(segments.render_segments(scene), np.arange(segments.SEGMENT_FRAMES) / 2)
    how = f"g = flattening over {' x '.join(map(str, WINDOW))}, less the mean"
    title = f"{SHOWN}: similarity to a patch in the whole frame\ntower's tokens, {how}"
    sheet = lay_out(clip, views, marked, title=title, strength=None)
    with whole_file(file) as part:
        draw_sheet(sheet).savefig(part, dpi=DOTS_PER_INCH // 2)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
