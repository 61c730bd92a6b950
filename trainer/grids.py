"""Grids of samples, drawn from the averages while training goes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoguide_fast import plots, sample
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.checkpoints.run_folder import SAMPLES
from autoguide_fast.files import reason
from autoguide_fast.networks import Precond

from .runlog import RunLog
from .trainer import Trainer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NUM_STEPS = 16


class Grids:
    """Draws `samples/NET-NIMG.png`: without guidance and, beside it, with.

    The main net's average is the shortest that is tracked, the guide's the longest, as suits
    autoguidance (arXiv 2406.02507, table 1). The seeds are the same every time.

    Args:
        out: folder of the job.
        log: shown the pictures.
        count: images in a grid; 0 draws none.
        guidance: weight of the guided grid.

    guide: the net that guides, once there is one. guide_from: instead, the image count at which the
    main net becomes its own guide.
    """

    def __init__(self, out: Path, log: RunLog, count: int, guidance: float) -> None:
        self.out, self.log, self.count, self.guidance = out, log, count, guidance
        self.guide: Precond | None = None
        self.guide_from: int | None = None

    def drawer(self, net: str) -> Callable[[Trainer], None] | None:
        """What is to be called after each snapshot of a net, in every process."""
        if not self.count:
            return None
        return lambda trainer: self._draw(net, trainer)

    def _draw(self, net: str, trainer: Trainer) -> None:
        average = trainer.average(0)  # which takes all processes; the first has it
        if average is None:
            return
        since = self.guide_from
        try:
            if self.guide is None and since is not None and trainer.nimg >= since:
                longest = max(trainer.ema.sigma_rels)
                self.guide = Snapshots(self.out).net(since, longest).to(trainer.device)
            picture = self._picture(average, self.guide if net == "main" else None)
            folder = self.out / SAMPLES
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"{net}-{trainer.nimg:09d}.png")
            self.log.picture(net, trainer.nimg, picture)
        except (FloatingPointError, OSError, ValueError) as error:  # a picture is not worth a run
            print(
                f"train: no samples drawn at {trainer.nimg} images: {reason(error)}",
                file=sys.stderr,
            )

    def _picture(self, net: Precond, guide: Precond | None) -> Picture:
        from PIL import Image

        grids = [self._grid(net, None, 1.0)]
        if guide is not None:
            grids.append(self._grid(net, guide, self.guidance))
        gap = 8 * (len(grids) - 1)
        width = sum(grid.width for grid in grids) + gap
        picture = Image.new(grids[0].mode, (width, grids[0].height), "white")
        for i, grid in enumerate(grids):
            picture.paste(grid, (i * (grid.width + gap), 0))
        return picture

    def _grid(self, net: Precond, guide: Precond | None, guidance: float) -> Picture:
        pixels = getattr(net.encoder, "name", None) == "pixels"
        images = sample(
            net, guide, guidance, seeds=range(self.count), num_steps=NUM_STEPS, raw=not pixels
        )
        if not pixels:  # three channels of the latents stand for colours
            images = (images[:, :3] * 127.5 + 128).clamp(0, 255).byte()
        return plots.image_grid(images)
