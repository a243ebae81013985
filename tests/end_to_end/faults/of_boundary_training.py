"""Settings, data and folders to go on from, of recipes/boundaries.py.

A setting may hold <tmp>, with the data set <tmp>/kinetics.
"""

import shutil

from boundary_layouts import GROUND_TRUTH, TRAIN

from faults import engine
from faults.engine import as_settings, cut, edit_weights, to_nan
from moss_vllm.boundaries.checkpoint import WEIGHTS_FILE
from moss_vllm.data.world.boundaries import BOUNDARIES_SETTINGS

LAST = "run/step-000002"


def fault(title, kind=(ValueError, OSError), **more):
    return engine.fault(f"recipes/boundaries.py: {title}", kind, ground="boundary_run_ground", **more)


def nothing(ground):
    pass


# ---- settings


for flags in (
    "--data soccernet",
    "--data mini",  # with the root of the small run
    "--data mini --subset validation",
    "--variant r18",
    "--weights pretrained",
    "--weights <tmp>/resnet50.pth",
    "--weights <tmp>/gone.safetensors",
    "--temporal mos",
    "--temporal none --temporal-layers 2",
    "--temporal-layers 5",
    "--temporal-options '{depth: 3}'",
    "--frames 0 --size-px -1",
    "--raters 3",
    "--labels soft",
    "--optimizer lion",
    "--optimizer adamw --milestones 6,8",
    "--optimizer adamw --warmup-epochs 15",
    "--milestones 8,6",
    "--threshold 30",
    "--clip-norm -1",
    "--chunk-frames -1",
    "--videos images:",
    "--precision half",
    "--cache-gib 1",
):

    @fault(f"`{flags}`")
    def _(ground, flags=flags):
        return ground.train(**as_settings(flags, ground.tmp))


@fault("`--temporal atm --checkpoint-moss`")
def _(ground):
    return ground.train("--checkpoint-moss", temporal="atm", temporal_options=None)


# ---- data


for title, damage, given in (
    ("no root", nothing, {"root": None}),
    ("no folder of clips", nothing, {"videos": "<tmp>/gone"}),
    ("an annotation of one split", nothing, {"annotation": f"<tmp>/kinetics/{GROUND_TRUTH.format('val')}"}),
    ("a clip is missing",
     lambda ground: shutil.rmtree(ground.clips / f"{TRAIN[0]}_000003_000013"), {}),
    ("no ground truth to test with",
     lambda ground: (ground.tmp / "kinetics" / GROUND_TRUTH.format("val")).unlink(), {}),
):  # fmt: skip

    @fault(title)
    def _(ground, damage=damage, given=given):
        damage(ground)
        return ground.train(**{name: v and v.replace("<tmp>", str(ground.tmp)) for name, v in given.items()})


@fault("drawn clips whose settings are cut short")
def _(ground):
    (ground.tmp / "drawn").mkdir()
    (ground.tmp / "drawn" / BOUNDARIES_SETTINGS).write_text('{"train_clips": 1')
    return ground.train(data="mini", root=ground.tmp / "drawn")


@fault(
    "no clip can be read",
    RuntimeError,
    leaves=("run/settings.json", "run/train.jsonl", "run/rejected-0.jsonl"),
)
def _(ground):
    for folder in ground.clips.iterdir():
        (folder / "frame7.jpg").unlink()
    return ground.train()


# ---- going on


def weights(change):
    return lambda ground: edit_weights(ground.tmp / LAST / WEIGHTS_FILE, change, "head.project.bias")


for title, damage, given in (
    ("an out folder of another run", nothing, {"resume": None}),
    ("another seed", nothing, {"seed": 1}),
    ("another number of clips a step", nothing, {"clips_a_step": 4}),
    ("fewer steps", nothing, {"steps": 1}),
    ("another module", nothing, {"temporal": "none", "temporal_options": None}),
    ("another optimizer", nothing, {"optimizer": "adamw"}),
    ("one rater a clip", nothing, {"raters": 1}),
    ("more frames of a clip", nothing, {"frames": 30}),
    ("weights that are gone", lambda ground: (ground.tmp / LAST / WEIGHTS_FILE).unlink(), {}),
    ("weights that are cut short", lambda ground: cut(ground.tmp / LAST / WEIGHTS_FILE, 10), {}),
    ("weights that are not finite", weights(to_nan), {}),
    ("weights without a bias", weights(lambda tensor: None), {}),
):

    @fault(f"going on: {title}")
    def _(ground, damage=damage, given=given):
        ground.finished_run()
        damage(ground)
        return ground.train(**{"resume": "auto", "steps": 4, **given})
