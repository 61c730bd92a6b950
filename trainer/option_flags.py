"""The options of a run as flags of a command line: their groups, their help, their units."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from .options import DEVICES, PRECISIONS, TrainOptions

# Option of TrainOptions -> (flag's metavar, help). The defaults come from the dataclass.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "data": {
        "data": ("DATA", "'digits', 'photos' or 'mnist', or a folder or ZIP file"),
        "split": ("S", "of what is bundled: 'train' holds a part out, 'all' does not"),
        "resolution": ("N", "that the data must have; 0: any"),
        "img_channels": ("N", "that the data must have; 0: any"),
        "label_dropout": (
            "P",
            "share of images whose label is dropped; without its label the net is then its own "
            "guide for CFG: guide=unlabelled(net)",
        ),
    },
    "network": {
        "channels": ("N", "base width"),
        "channel_mult": ("M", "width of each level, in multiples of the base width"),
        "noise_channels": ("M", "width of the Fourier features, likewise; 0: as the first level"),
        "emb_channels": ("M", "width of the embedding, likewise; 0: as the widest level"),
        "num_blocks": ("N", "encoder blocks per level"),
        "attn_resolutions": ("R", "resolutions with self-attention"),
        "channels_per_head": ("N", "width of an attention head; narrower levels have none"),
        "label_balance": ("T", "weight of the label in the embedding"),
        "concat_balance": ("T", "weight of the encoder's map in a concatenation"),
        "res_balance": ("T", "weight of the residual branch"),
        "attn_balance": ("T", "weight of attention"),
        "clip_act": ("A", "bound on activations; 0: none"),
        "logvar_channels": ("N", "Fourier features of the uncertainty"),
        "dropout": ("P", "dropout probability in the residual branches"),
        "sigma_data": ("S", "standard deviation that the data are taken to have"),
        "head_after": (
            "BLOCK",
            "block of the decoder, such as dec.8x8_block0, after which a second output is trained; "
            "the net is then its own guide: self:head",
        ),
    },
    "training": {
        "duration": ("N", "length of the run in images; a multiple of the batch"),
        "batch": ("N", "images per step, of all processes together"),
        "microbatch": ("N", "images per pass and process, to save memory; 0: all of its share"),
        "lr": ("A", "reference learning rate alpha_ref"),
        "decay": ("T", "steps after which the rate falls as 1/sqrt(t); 0: never"),
        "rampup": ("N", "images over which the rate rises from 0"),
        "betas": ("B", "of Adam"),
        "eps": ("E", "of Adam"),
        "P_mean": ("M", "mean of ln sigma"),
        "P_std": ("S", "standard deviation of ln sigma"),
        "head_weight": ("W", "of the second output's error in the loss"),
        "precision": (
            "P",
            f"of the U-Net: {', '.join(PRECISIONS)} (the faster of fp32 and bf16, measured where "
            "the run begins); weights stay fp32",
        ),
        "loss_scale": ("S", "where the scaling of the loss begins with fp16"),
        "seed": ("N", "of first weights, data order, noise and dropout"),
    },
    "execution": {
        "device": ("D", f"that trains: {', '.join(DEVICES)}; each process has a GPU of its own"),
        "shard": (
            "",
            "split weights, moments and averages among the processes, where one cannot "
            "hold them (FSDP2)",
        ),
        "compile": ("", "run the net through torch.compile"),
        "graph": ("", "record a step as CUDA graphs and replay them, on a GPU; not with --shard"),
    },
    "averages": {
        "ema": ("S", "sigma_rel of each average that is tracked"),
        "snapshots": ("N", "how often the averages are stored, evenly over the run"),
    },
}
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def add_options(
    parser: argparse.ArgumentParser, names: Sequence[str], defaults: dict[str, Any]
) -> None:
    """Adds some of the options of a run to another command, with defaults of its own.

    One that is not given is None, as for `train`.
    """
    fields = {f.name: f.default for f in dataclasses.fields(TrainOptions)} | defaults
    for title, options in GROUPS.items():
        chosen = {name: text for name, text in options.items() if name in names}
        group = parser.add_argument_group(title)
        for name, (metavar, text) in chosen.items():
            add_option(group, name, fields[name], metavar, text)


def add_option(
    group: argparse._ArgumentGroup, name: str, default: Any, metavar: str, text: str
) -> None:
    """Adds one option; None stands for "not given", so that presets and --resume can tell."""
    if isinstance(default, bool):
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
        return
    several = isinstance(default, tuple)
    shown = " ".join(map(str, default)) if several else default
    shown = "none" if shown == "" else shown
    group.add_argument(
        "--" + name.lower().replace("_", "-"),
        dest=name,
        type=value_type(default),
        nargs="+" if several else None,
        metavar=metavar,
        help=f"{text} (default: {shown})",
    )


def value_type(default: Any) -> Callable[[str], Any]:
    """What reads a value like this default from a command line, of one or each of several."""
    kind = type(default[0]) if isinstance(default, tuple) else type(default)
    return _integer if kind is int else kind


def _integer(text: str) -> int:
    """Parses `4096`, `200k`, `1.5M`, `8Mi`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]i?|Ki)?", text)
    value = float(match[1]) * _UNITS["Ki" if match[2] == "ki" else match[2] or ""] if match else 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(
            f"must be a whole number, perhaps with k, M, G, Ki, Mi or Gi, got {text!r}"
        )
    return int(value)
