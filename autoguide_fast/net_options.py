"""What the options of a net may be: checked before anything is built of them."""

import math
import numbers


def plain(value):
    """`value` as JSON would give it back: lists for tuples, plain numbers for numpy's."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
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


def check_options(config):
    """Raise ValueError, naming option and remedy, where `config` is not one of a net."""
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


def least_weights(config):
    """How many tensors a net with these options has at least; they must have passed the check.

    Each block has four or more. Building a net to count them takes as long as there are layers.
    """
    levels = len(config["channel_mult"])
    return 4 * levels * (2 * config["num_blocks"] + 3)


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_width(value):
    return _is_integer(value) and value > 0


def _or_none(fits):
    return lambda value: value is None or fits(value)


def _list_of(fits):
    return lambda value: isinstance(value, list) and all(fits(v) for v in value)


def _is_positive(value):
    return _is_number(value) and value > 0


_WIDTH = (_is_width, "be a positive integer", "raise it")
_COUNT = (lambda v: _is_integer(v) and v >= 0, "be an integer >= 0", "0 means none")
_MULTIPLE = (_or_none(_is_width), "be a positive integer or None", "None takes that of the levels")
_BALANCE = (lambda v: _is_number(v) and 0 <= v <= 1, "lie in [0, 1]", "0.5 weighs both alike")
# By option: whether a value fits, the rule, the remedy.
_RULES = {
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
    "use_fp16": (lambda v: isinstance(v, bool), "be True or False", "pass one of them"),
}
