"""The published training configurations of EDM2 (arXiv 2312.02696), as options of a run."""

from __future__ import annotations

MI = 2**20

# Durations in Mi images; lr is alpha_ref, decay t_ref in steps; P_mean, P_std of ln sigma. All with
# batch 2048, a ramp over 10 M images, four levels of 3 blocks and attention at 16 and 8.
_COLUMNS = ("duration", "channels", "lr", "decay", "dropout", "P_mean", "P_std")
_ROWS = {
    "edm2-img512-xxs": (2048, 64, 0.0170, 70_000, 0.0, -0.4, 1.0),
    "edm2-img512-xs": (2048, 128, 0.0120, 70_000, 0.0, -0.4, 1.0),
    "edm2-img512-s": (2048, 192, 0.0100, 70_000, 0.0, -0.4, 1.0),
    "edm2-img512-m": (2048, 256, 0.0090, 70_000, 0.1, -0.4, 1.0),
    "edm2-img512-l": (1792, 320, 0.0080, 70_000, 0.1, -0.4, 1.0),
    "edm2-img512-xl": (1280, 384, 0.0070, 70_000, 0.1, -0.4, 1.0),
    "edm2-img512-xxl": (896, 448, 0.0065, 70_000, 0.1, -0.4, 1.0),
    "edm2-img64-xs": (1024, 128, 0.0120, 35_000, 0.0, -0.8, 1.6),
    "edm2-img64-s": (1024, 192, 0.0100, 35_000, 0.0, -0.8, 1.6),
    "edm2-img64-m": (2048, 256, 0.0090, 35_000, 0.1, -0.8, 1.6),
    "edm2-img64-l": (1024, 320, 0.0080, 35_000, 0.1, -0.8, 1.6),
    "edm2-img64-xl": (640, 384, 0.0070, 35_000, 0.1, -0.8, 1.6),
}

_COMMON = {
    "resolution": 64,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "channels_per_head": 64,
    "batch": 2048,
    "rampup": 10e6,
}
# ImageNet at 512 x 512 as latents of 64 x 64, and at 64 x 64 as pixels.
_IMG_CHANNELS = {"edm2-img512": 4, "edm2-img64": 3}
# [EDM2] stores the averages every 8 Mi images.
_SNAPSHOT_MI = 8

PRESETS = tuple(_ROWS)
SIZES = ("xxs", "xs", "s", "m", "l", "xl", "xxl")


def preset(name: str) -> dict:
    """Options of `TrainOptions` that make up the preset `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _ROWS:
        raise ValueError(
            f"train: preset must be one of {', '.join(PRESETS)}, got {name!r}; pick one, or set "
            "the options yourself"
        )
    row = dict(zip(_COLUMNS, _ROWS[name], strict=True))
    mi = row.pop("duration")
    channels = _IMG_CHANNELS[name.rpartition("-")[0]]
    return {
        **_COMMON,
        **row,
        "img_channels": channels,
        "duration": mi * MI,
        "snapshots": mi // _SNAPSHOT_MI,
    }


def sibling(name: str, size: str) -> str:
    """The preset of another size on the same data as the preset `name`."""
    return f"{name.rpartition('-')[0]}-{size}"
