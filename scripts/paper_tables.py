"""The cost columns of the paper's Tables 3, 4, 6 and 10, and how each row is built."""

from dataclasses import dataclass, field, replace
from typing import Any

from moss_vllm.core.presets import LADDERS, LadderPreset

# Side4Video's own network beside ViT-L, which Table 3 compares with, is wider than MOSS-L's ladder.
PRESETS = {**LADDERS, "Side4Video-L": replace(LADDERS["MOSS-L"], d_out=512, heads=8)}
UNITS = ("FLOPs", "TP", "Mem")


@dataclass(frozen=True)
class Row:
    """One row of a table: what the paper prints ("FLOPs TP Mem", "-" for nothing) and how it is built."""

    name: str
    paper: str = "- - -"
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "MOSS-S"
    views: int = 1
    encoder: str | None = None
    note: str = ""
    host: str = "ladder"

    @property
    def preset(self) -> LadderPreset:
        """The preset, with another image encoder if the row names one."""
        preset = PRESETS[self.model]
        return preset if self.encoder is None else replace(preset, backbone=self.encoder)

    @property
    def batch(self) -> int:
        """Clips at which the paper measures memory."""
        return 32 if self.preset.patch_size == 16 else 16


BASE: dict[str, Any] = {"temporal": "none"}
# From 768 channels to 768, MOSS is 1.29 M and 3.43 G if order 2 reads the FC's output, 1.21 and 3.30 if not.
NO_FC = "here order 2 reads M^(1), before the FC that starts as zero: 0.08 M and 0.13 G less"
WINDOWS = {length: (length, 9, 9) for length in (3, 5, 7)}
TABLES = {
    "3": [
        Row("B/16 Side4Video", "528 21 18.8", BASE, "MOSS-B", 3),
        Row(
            "B/16 MOSS-S", "453 6 9.9", views=3, note="453 is 3 x Table 6's 151; 3 x Table 4's 151.5 is 454.5"
        ),
        Row("B/16 MOSS-B", "538 22 21.6", {}, "MOSS-B", 3),
        Row("L/14 Side4Video", "2611 102 37.0", BASE, "Side4Video-L", 3),
        Row("L/14 MOSS-M", "2120 24 17.9", {}, "MOSS-M", 3),
        Row(
            "L/14 MOSS-L",
            "2500 82 36.5",
            {},
            "MOSS-L",
            3,
            note="2500 is 3 x 833.3; Table 6 prints 833, ours is 832.5",
        ),
    ],
    "4a": [
        Row("none", "148.4 4.5 8.0", BASE),
        Row("n=1", "150.0 5.1 9.0", {"orders": (1,)}),
        Row("n=2", "151.5 5.6 9.9", {"orders": (2,)}),
        Row("n=3", "152.9 6.1 10.7", {"orders": (3,)}),
        Row("n=4", "154.4 6.6 11.5", {"orders": (4,)}),
    ],
    "4b": [
        Row("n=1,2", "151.5 5.6 9.9"),
        Row("n=1,3", "152.9 6.1 10.7", {"orders": (1, 3)}),
        Row("n=1,4", "154.4 6.6 11.5", {"orders": (1, 4)}),
        Row("n=2,3", "152.9 6.1 10.7", {"orders": (2, 3)}),
        Row("n=1,2,3", "152.9 6.1 10.7", {"orders": (1, 2, 3)}),
    ],
    "4c": [
        Row("1st STSS only", options={"orders": (1,)}),
        Row("MLP", options={"fusion": "mlp"}),
        Row("conv", options={"fusion": "conv"}),
        Row("addition", options={"fusion": "addition"}),
        Row("no-fusion"),
    ],
    "4d": [
        Row("1st STSS only", "150.0 5.1 9.0", {"orders": (1,)}),
        Row("+ R(2+1)D", "151.1 5.8 9.7", {"second": "r2plus1d"}),
        Row("+ Fact Attn.", "151.2 5.8 11.0", {"second": "factorised_attention"}),
        Row("+ Diff.", "151.5 5.6 9.7", {"second": "difference"}),
        Row("+ 2nd STSS", "151.5 5.6 9.9", {"second": "stss"}),
    ],
    "6": [
        Row("MOSS-S", "151 6 -", {}, "MOSS-S"),
        Row("MOSS-B", "179 22 -", {}, "MOSS-B"),
        Row("MOSS-M", "707 24 -", {}, "MOSS-M"),
        Row("MOSS-L", "833 82 -", {}, "MOSS-L", note="832.4997, rounded up"),
    ],
    "10a": [
        Row("L=3, 5", "150.9 5.4 9.8", {"window": (WINDOWS[3], WINDOWS[5])}),
        Row("L=5, 5", "151.5 5.6 9.9"),
        Row("L=7, 5", "152.0 5.7 10.5", {"window": (WINDOWS[7], WINDOWS[5])}),
        Row("L=5, 3", "150.9 5.4 9.8", {"window": (WINDOWS[5], WINDOWS[3])}),
        Row("L=5, 7", "152.0 5.7 10.5", {"window": (WINDOWS[5], WINDOWS[7])}),
    ],
    "10b": [
        Row("k=2", "151.5 5.6 9.9", {"temporal_layers": (2,)}),
        Row("k=4", "151.5 5.6 9.9"),
        Row("k=6", "151.5 5.6 9.9", {"temporal_layers": (6,)}),
        Row("k=8", "151.5 5.6 9.9", {"temporal_layers": (8,)}),
        Row("k=4,6", "154.5 6.7 11.9", {"temporal_layers": (4, 6)}),
    ],
    "10c": [
        Row("baseline", "148.4 4.5 8.0", BASE),
        Row("R(2+1)D", "151.4 6.4 9.6", {"temporal": "r2plus1d"}),
        Row(
            "Fact Attn.",
            "151.8 6.6 11.5",
            {"temporal": "factorised_attention"},
            note="the paper prints no layout; three blocks of the ladder's width are near on both counts",
        ),
        Row(
            "Local Attn.",
            "150.6 5.6 11.0",
            {"temporal": "local_attention"},
            note="ours multiplies whole frames under a mask; the window's products alone make it 150.6",
        ),
        Row("SELFY", "151.1 5.1 11.2", {"temporal": "selfy"}),
        Row("ATM", "153.2 6.0 12.1", {"temporal": "atm"}),
        Row("MOSS", "151.5 5.6 9.9"),
    ],
    "10d": [
        Row("full FT ViT-B", "140.7 86.4 28.3", BASE, host="full"),
        Row("full FT + MOSS", "144.1 87.6 30.3", host="full", note=NO_FC),
        Row("AIM ViT-B", "207.9 14.3 38.6", BASE, host="aim"),
        Row("AIM + MOSS", "211.3 15.6 40.9", host="aim", note=NO_FC),
        Row(
            "DiST",
            "163.1 19.0 11.1",
            BASE,
            host="dist",
            note="162.1 and MOSS's 3.4 make the 165.5 of the next row; 163.1 does not",
        ),
        Row("DiST + MOSS", "165.5 20.3 12.8", host="dist", note=NO_FC),
        Row("Side4Video", "148.4 4.5 8.0", BASE),
        Row("Side4Video + MOSS", "151.5 5.6 9.9"),
    ],
    "10e": [
        Row(f"{label} {what}", paper, options, encoder=encoder)
        for label, encoder in (
            ("MAE", "vit_base_patch16_224.mae"),
            ("DINO", "vit_base_patch16_224.dino"),
            ("CLIP", None),
        )
        for what, paper, options in (
            ("baseline", "148.4 4.5 8.0", BASE),
            ("+ 1st STSS", "150.0 5.1 9.0", {"orders": (1,)}),
            ("+ MOSS", "151.5 5.6 9.9", {}),
        )
    ],
}
