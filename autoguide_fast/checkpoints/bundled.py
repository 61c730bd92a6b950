"""The networks that come with the package, by name."""

from pathlib import Path

from .presets import preset

PRETRAINED = Path(__file__).parent.parent / "pretrained"

# Name of a network -> name of the guide that was trained for it (None: it is a guide itself).
BUNDLED = {
    "digits": "digits-guide",
    "digits-guide": None,
    "digits-uncond": None,
    "photos": "photos-guide",
    "photos-guide": None,
    "mnist": "mnist-guide",
    "mnist-guide": None,
}


def bundled_path(name: object) -> Path | None:
    """Where the bundled network `name` lies, or None if there is none of that name."""
    return PRETRAINED / f"{name}.safetensors" if name in BUNDLED else None


def bundled_guide(name: object) -> str | None:
    """Name of the guide that belongs to the bundled network or preset `name`, or None."""
    found = preset(name)
    if found is not None:
        return None if found.guide is None else found.guide.file
    return BUNDLED.get(name) if isinstance(name, str) else None


def default_guidance(name: object) -> float:
    """The guidance weight of the preset `name`; 1 for what is none."""
    found = preset(name)
    return 1.0 if found is None else found.guidance
