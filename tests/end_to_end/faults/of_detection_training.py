"""Settings, data and folders to go on from, of recipes/detection.py.

A setting may hold <tmp>, with the data set <tmp>/thumos.
"""

from detection_layouts import VALIDATION

from faults import engine
from faults.engine import as_settings, cut, edit_weights, to_nan
from moss_vllm.data.world.untrimmed import SETTINGS
from moss_vllm.detection.checkpoint import AVERAGE_FILE, WEIGHTS_FILE

LAST = "run/step-000002"


def fault(title, kind=(ValueError, OSError), **more):
    return engine.fault(f"recipes/detection.py: {title}", kind, ground="detection_run_ground", **more)


def nothing(ground):
    pass


# ---- settings


for flags in (
    "--data charades",
    "--data mini",  # with the root of the small run
    "--data mini --subset validation",
    "--variant g",
    "--encoder videomae_xl",
    "--encoder videomae_mini --weights pretrained",
    "--weights <tmp>/vit.pth",
    "--weights <tmp>/gone.safetensors",
    "--temporal mos",
    "--temporal none",  # with the layers of the small run
    "--temporal-layers 1,1",
    "--temporal-layers 9",
    "--temporal-options '{depth: 3}'",
    "--frames 24",
    "--size-px 40",
    "--stride 0",
    "--epochs 120",
    "--warmup-epochs 100",
    "--videos videos:",
    "--clip-norm 0 --ema-decay 1.5",
    "--precision half",
    "--cache-gib 1",
    "--keep 0",
):

    @fault(f"`{flags}`")
    def _(ground, flags=flags):
        return ground.train(**as_settings(flags, ground.tmp))


# ---- data


for title, damage, given in (
    ("no root", nothing, {"root": None}),
    ("no folder of videos", nothing, {"videos": "<tmp>/gone"}),
    ("a video is missing", lambda ground: (ground.videos / f"{VALIDATION[0]}.mp4").unlink(), {}),
    ("a training subset without videos", nothing, {"train_subset": "train"}),
):

    @fault(title)
    def _(ground, damage=damage, given=given):
        damage(ground)
        return ground.train(**{name: v and v.replace("<tmp>", str(ground.tmp)) for name, v in given.items()})


@fault("drawn videos whose settings are cut short")
def _(ground):
    (ground.tmp / "untrimmed").mkdir()
    (ground.tmp / "untrimmed" / SETTINGS).write_text('{"train_videos": 1')
    return ground.train(data="mini", root=ground.tmp / "untrimmed")


@fault(
    "no video can be read",
    RuntimeError,
    leaves=("run/settings.json", "run/train.jsonl", "run/rejected-0.jsonl"),
)
def _(ground):
    for name in VALIDATION:
        (ground.videos / f"{name}.mp4").write_bytes(b"no video")
    return ground.train()


# ---- going on


def weights(file, change):
    return lambda ground: edit_weights(ground.tmp / LAST / file, change, "detector.head.cls_out.bias")


def in_another_order(ground):
    file = ground.tmp / "thumos" / "annotations" / "category_idx.txt"
    file.write_text("\n".join(reversed(file.read_text().split())))


for title, damage, given in (
    ("an out folder of another run", nothing, {"resume": None}),
    ("another seed", nothing, {"seed": 1}),
    ("another number of windows a step", nothing, {"clips_a_step": 4}),
    ("fewer steps", nothing, {"steps": 1}),
    ("another module", nothing, {"temporal": "none", "temporal_layers": None, "temporal_options": None}),
    ("classes in another order", in_another_order, {}),
    ("other steps of a window", nothing, {"stride": 4}),
    ("an average that is gone", lambda ground: (ground.tmp / LAST / AVERAGE_FILE).unlink(), {}),
    ("an average that is cut short", lambda ground: cut(ground.tmp / LAST / AVERAGE_FILE, 10), {}),
    ("an average that is not finite", weights(AVERAGE_FILE, to_nan), {}),
    ("weights without a bias", weights(WEIGHTS_FILE, lambda tensor: None), {}),
    ("a loss scale that is none",
     lambda ground: (ground.tmp / LAST / "state" / "loss_scale.json").write_text('{"scale": 0.0}'),
     {"precision": "fp16"}),
):  # fmt: skip

    @fault(f"going on: {title}")
    def _(ground, damage=damage, given=given):
        ground.finished_run()
        damage(ground)
        return ground.train(**{"resume": "auto", "steps": 4, **given})
