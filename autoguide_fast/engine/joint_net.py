"""A model and a guide of its own weights, prepared as one net with two results."""

from __future__ import annotations

import copy

from ..guidance import Denoiser, bare
from .joint import begins_alike, common_plan
from .prepared import PreparedNet


def joint_net(
    model: Denoiser, guide: Denoiser, prepared: PreparedNet, prepared_guide: PreparedNet
) -> PreparedNet | None:
    """Both as one net, with results `[2, N, C, H, W]`; None where that saves nothing.

    Only a guide made of the model's tensors, or of some of them, with the same type and told the
    same labels is looked at. One and the same net twice is none of them: it has nothing of its own.
    """
    if prepared.lowered is prepared_guide.lowered or prepared.dtype != prepared_guide.dtype:
        return None
    if prepared.unlabelled != prepared_guide.unlabelled:
        return None
    ours, theirs = ({t.data_ptr() for t in bare(net).parameters()} for net in (model, guide))
    if not theirs <= ours or not begins_alike(prepared.embedding, prepared_guide.embedding):
        return None
    found = common_plan(prepared.lowered, prepared_guide.lowered)
    if found is None:
        return None
    joint = copy.copy(prepared)
    joint.lowered, _ = found
    return joint
