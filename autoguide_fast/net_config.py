"""`NetConfig`: the one list of a network's options, checked before anything is built of them."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Fits = Callable[[object], bool]

# Options that weaken a net, and their values for one as it was trained.
WEAKENING = {"left_out": (), "attn_temperature": 1.0, "ends_after": ""}
# Options that nets of the reference implementation do not have, and their values for one of those.
BEYOND_REFERENCE = {**WEAKENING, "guidance_range": (), "head_after": ""}
# Options that name one block.
_BLOCKS = ("head_after", "ends_after")


@dataclass(frozen=True)
class NetConfig:
    """The options of a `networks.Precond`, which says what each of them means.

    Values are plain: what numpy's numbers or lists stand for, sequences as tuples.

    Raises:
        TypeError: a value that JSON could not hold.
        ValueError: one that no network has; names option and remedy.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    resample_filter: Sequence[int] = (1, 1)
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256
    sigma_data: float = 0.5
    logvar_channels: int = 128
    use_fp16: bool = False
    left_out: Sequence[str] = ()
    attn_temperature: float = 1.0
    guidance_range: Sequence[float] = ()
    head_after: str = ""
    ends_after: str = ""

    def __post_init__(self) -> None:
        options = {
            name: value if name in _BLOCKS and isinstance(value, str) else _plain(value)
            for name, value in vars(self).items()
        }
        _check(options)
        options["attn_temperature"] = float(options["attn_temperature"])  # 0 is the net of 0.0
        for name, value in options.items():
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """The options by name, ready for JSON, which has lists for tuples.

        What nets of the reference implementation do not have is among them only where it is set, as
        few nets are stored so.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in BEYOND_REFERENCE or value != BEYOND_REFERENCE[name]
        }

    @property
    def widths(self) -> list[int]:
        """Channels of each level, highest resolution first."""
        return [self.model_channels * multiple for multiple in self.channel_mult]

    @property
    def noise_channels(self) -> int:
        """Width of the Fourier features."""
        return self._multiple(self.channel_mult_noise, self.widths[0])

    @property
    def emb_channels(self) -> int:
        """Width of the embedding."""
        return self._multiple(self.channel_mult_emb, max(self.widths))

    def _multiple(self, multiple: int | None, default: int) -> int:
        return default if multiple is None else self.model_channels * multiple


def _plain(value: object) -> Any:
    """`value` as JSON would give it back: lists for tuples, plain numbers for numpy's."""
    if isinstance(value, (list, tuple)):
        return [v if isinstance(v, str) else _plain(v) for v in value]  # names of blocks
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"Precond: options must be numbers, lists of numbers, booleans or None, got {value!r}; "
        "pass plain Python values"
    )


def _check(config: Mapping[str, Any]) -> None:
    """Raise ValueError, naming option and remedy, where these are not the options of a net."""
    for name, (fits, rule, remedy) in _RULES.items():
        if not fits(config[name]):
            raise ValueError(f"Precond: {name} must {rule}, got {config[name]!r}; {remedy}")
    factor = 1 << min(len(config["channel_mult"]) - 1, 64)
    if config["img_resolution"] % factor:
        raise ValueError(
            f"Precond: img_resolution must be divisible by {factor} for "
            f"{len(config['channel_mult'])} levels, got {config['img_resolution']}; pad the images "
            "or drop a level from channel_mult"
        )


def least_weights(config: NetConfig) -> int:
    """How many tensors a net of this `NetConfig` has at least.

    Each block has four or more. Building a net to count them takes as long as there are layers.
    """
    levels, blocks = len(config.channel_mult), config.num_blocks
    # A decoder that ends early has at least one block at full resolution.
    decoder = levels * (blocks + 2) - (blocks + 1 if config.ends_after else 0)
    return 4 * (levels * (blocks + 1) + decoder)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_width(value: object) -> bool:
    return _is_integer(value) and value > 0


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(fits(v) for v in value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_range_around_1(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(v) and abs(v) < math.inf for v in value)
        and value[0] <= 1 < value[1]
    )


_Rule = tuple[Callable[[Any], bool], str, str]
_WIDTH: _Rule = (_is_width, "be a positive integer", "raise it")
_COUNT: _Rule = (lambda v: _is_integer(v) and v >= 0, "be an integer >= 0", "0 means none")
_MULTIPLE: _Rule = (
    _or_none(_is_width),
    "be a positive integer or None",
    "None takes that of the levels",
)
_BALANCE: _Rule = (
    lambda v: _is_number(v) and 0 <= v <= 1,
    "lie in [0, 1]",
    "0.5 weighs both alike",
)
# By option: whether a value fits, the rule, the remedy.
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(["img_resolution", "img_channels", "model_channels"], _WIDTH),
    **dict.fromkeys(["channels_per_head", "logvar_channels"], _WIDTH),
    **dict.fromkeys(["label_dim", "num_blocks"], _COUNT),
    **dict.fromkeys(["channel_mult_noise", "channel_mult_emb"], _MULTIPLE),
    **dict.fromkeys(["label_balance", "concat_balance", "res_balance", "attn_balance"], _BALANCE),
    "channel_mult": (
        lambda v: _list_of(_is_width)(v) and len(v) > 0,
        "name at least one level, each by a positive integer",
        "try [1, 2]",
    ),
    "attn_resolutions": (_list_of(_is_integer), "be a list of integers", "[] is no attention"),
    "resample_filter": (lambda v: v == [1, 1], "be [1, 1]", "other filters are not supported"),
    "dropout": (lambda v: _is_number(v) and 0 <= v < 1, "lie in [0, 1)", "0 is no dropout"),
    "clip_act": (_or_none(_is_positive), "be a positive number or None", "None is no clip"),
    "sigma_data": (
        lambda v: _is_positive(v) and v < math.inf,
        "be a positive number",
        "0.5 is usual",
    ),
    "left_out": (
        _list_of(lambda v: isinstance(v, str)),
        "be a list of blocks' names",
        "[] leaves none out",
    ),
    "attn_temperature": (
        lambda v: _is_number(v) and (v == 0 or 1 <= v < math.inf),
        "be 0, or 1 or more",
        "1 is attention as it was trained",
    ),
    "guidance_range": (
        lambda v: v == [] or _is_range_around_1(v),
        "be empty, or [lowest, highest] guidance weight around 1",
        "[1, 3] is usual, [] is a net without such an input",
    ),
    **dict.fromkeys(
        _BLOCKS,
        (
            lambda v: isinstance(v, str),
            "be the name of a decoder's block",
            "such as dec.8x8_block0",
        ),
    ),
    "use_fp16": (lambda v: isinstance(v, bool), "be True or False", "pass one of them"),
}
