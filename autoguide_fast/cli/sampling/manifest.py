"""`manifest.json`: all that it takes to sample the images beside it once more.

    manifest: "autoguide_fast sample", and the version of this form
    settings: nets, by name and checksum, guidance, sampler: the same for all images
    images: channels, size, encoder, and how samples were rounded to bytes
    jobs: of each command that added images: seeds, classes, the rule by which images got theirs,
        batch size, and `made_with`, each of the environments in which it ran: versions of package,
        torch and Python, processor, threads

It lies in the folder of images; in a ZIP file and an .npz it is a file among the others.
"""

from __future__ import annotations

import json
import math
import platform
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ..arguments import integer_ranges
from .job import Job, changes
from .options import Sampling

MANIFEST = "manifest.json"
KIND, VERSION = "autoguide_fast sample", 1
_ASKED = ("seeds", "classes", "balanced", "batch_size")  # tell jobs of the same settings apart
_EARLIER = "settings.json"  # the settings alone, as earlier versions wrote them


def environment(device: str) -> dict[str, Any]:
    """What samples here: versions, processor, threads."""
    import numpy
    import PIL
    import torch

    from ... import cpu
    from ..._extension import build_info

    on_gpu = torch.device(device).type == "cuda"
    return {
        "autoguide_fast": build_info()["version"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "processor": cpu.processor(),
        "instruction_set": cpu.isa(),
        "threads": torch.get_num_threads(),
    }


def extended(
    before: dict[str, Any] | None, job: Job, made_with: dict[str, Any] | None
) -> dict[str, Any]:
    """The manifest `before`, or a new one, with this job and, if any, this environment in it."""
    manifest = dict(before or {})
    manifest |= {
        "manifest": KIND,
        "version": VERSION,
        "settings": manifest.get("settings", job.settings),
        "images": job.images,
        "jobs": [dict(each) for each in manifest.get("jobs", [])],
    }
    asked = job.request
    for each in manifest["jobs"]:
        if not asked_otherwise(each, asked):
            break
    else:
        each = asked | {"made_with": []}
        manifest["jobs"].append(each)
    if made_with is not None and made_with not in each["made_with"]:
        each["made_with"] = [*each["made_with"], made_with]
    return manifest


def asked_otherwise(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two jobs of the same settings ask for otherwise: other images, or other batches."""
    return changes(before, {name: now[name] for name in _ASKED})


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder, which takes the place of what an earlier version wrote."""
    text = shown(manifest)
    write_atomically(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    (folder / _EARLIER).unlink(missing_ok=True)


def shown(manifest: dict[str, Any]) -> str:
    """A manifest as the text of its file: JSON, which has no infinity, so churn's is a word."""
    settings = dict(manifest["settings"])
    if settings.get("churn"):
        settings["churn"] = [x if math.isfinite(x) else str(x) for x in settings["churn"]]
    return json.dumps(manifest | {"settings": settings}, indent=1, allow_nan=False) + "\n"


def of_folder(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder of images, without jobs from an earlier version; None without one.

    Raises:
        ValueError: the file is damaged, or of another kind.
    """
    for name in (MANIFEST, _EARLIER):
        path = folder / name
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("it holds no settings")
            if name == _EARLIER:
                return {"settings": found}
            return _checked(found)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ValueError(
                f"sample: {path} must say how the images beside it were sampled, got a damaged "
                f"file ({error}); remove it and them, or choose another --out"
            ) from None
    return None


def of_file(path: Path) -> dict[str, Any] | None:
    """The manifest in a ZIP file or an .npz; None where there is none, or no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _checked(json.loads(archive.read(MANIFEST)))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return None


def _checked(found: Any) -> dict[str, Any]:
    whole = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    if not whole or found.get("manifest") != KIND or not isinstance(found.get("jobs"), list):
        raise ValueError("it is no manifest of `sample`")
    if found.get("version") != VERSION:
        raise ValueError(f"it is of version {found.get('version')}, which is not known here")
    settings = found["settings"]
    if settings.get("churn"):
        settings["churn"] = [float(x) for x in settings["churn"]]
    return found


def read(path: Path) -> dict[str, Any]:
    """The manifest that is meant by a folder of images, a ZIP file, an .npz, or its own file.

    Raises:
        ValueError: there is none.
    """
    manifest = None
    if path.is_dir():
        manifest = of_folder(path)
    elif path.suffix.lower() in (".zip", ".npz"):
        manifest = of_file(path)
    elif path.is_file():
        try:
            manifest = _checked(json.loads(path.read_bytes()))
        except ValueError as error:
            raise ValueError(
                f"sample: --from-manifest must be a manifest that `sample` wrote, got {path} "
                f"({error}); name manifest.json, or the folder or file that it lies in"
            ) from None
    if manifest is None or not manifest.get("jobs"):
        raise ValueError(
            f"sample: --from-manifest must be a manifest, or what `sample` wrote with one, got "
            f"{path} without; name manifest.json, or the folder, ZIP file or .npz that it lies in"
        )
    return manifest


def samplings(
    manifest: dict[str, Any], model: str | None, guide: Sequence[str] | None
) -> list[Sampling]:
    """The options of each job of a manifest; `model` and `guide` say where the nets are now.

    Raises:
        ValueError: the manifest lacks an option.
    """
    settings = manifest["settings"]
    try:
        named = settings["model"]["name"]
        guides = settings["guide"] or []
        guides = [net["name"] for net in (guides if isinstance(guides, list) else [guides])]
        weights = settings["guidance"]
        return [
            Sampling(
                model=model or named,
                guide=guide or guides,
                guidance=weights if isinstance(weights, list) else [weights],
                kind=settings.get("kind"),
                sampler=settings.get("sampler", "heun"),
                schedule=settings.get("schedule", "rho"),
                interval=settings["interval"],
                steps=settings["steps"],
                sigma_min=settings["sigma_min"],
                sigma_max=settings["sigma_max"],
                rho=settings["rho"],
                churn=settings["churn"] or (0.0,),
                compute_dtype=settings["compute_dtype"],
                seeds=integer_ranges(job["seeds"]),
                classes=None if job["classes"] is None else integer_ranges(job["classes"]),
                balanced=job["balanced"],
                batch_size=job["batch_size"],
            )
            for job in manifest["jobs"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"sample: --from-manifest must name every option, got one without {error}; restore it"
        ) from None


def check_repeats(job: Job, manifest: dict[str, Any]) -> None:
    """Raise ValueError where a net, or another setting, is not what the manifest says."""
    changed = changes(manifest["settings"], job.settings)
    if changed:
        raise ValueError(
            "sample: what is repeated must be sampled with the nets and settings of the manifest, "
            f"got changes: {', '.join(changed)}; restore the net's file, or name it by --model or "
            "--guide"
        )


def differences(job: dict[str, Any], made_with: dict[str, Any]) -> list[str]:
    """What is another here than in all environments in which a job ran, as words."""
    before = job.get("made_with") or []
    if made_with in before or not before:
        return []
    return [
        f"{name} {before[0].get(name)} then, {value} now"
        for name, value in made_with.items()
        if value not in [each.get(name) for each in before]
    ]
