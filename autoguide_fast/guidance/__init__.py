"""How several denoisers become one: weights, kinds of guidance, the unlabelled guide.

A kind is one class in one file, with its equation and its paper; `Guidance` says what it owes.
"""

from .apg import APG
from .cads import CADS
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero import CFGZero
from .combination import dot, norm, remembered, std
from .damping import MagnitudeAware
from .denoisers import (
    Cond,
    Denoiser,
    Unlabelled,
    bare,
    evaluated,
    guide_roles,
    module_of,
    told_guidance,
    unlabelled,
    unwrapped,
)
from .disturbed import Disturbance, Disturbed, disturbed, undisturbed_net
from .evaluation import Batch, Evaluation
from .feedback import Feedback
from .frequency import FrequencyDecoupled
from .guided import guided, guided_denoiser
from .intermediate_head import intermediate_head
from .kind import Guidance, OneGuide
from .names import KINDS, guide_of_model, is_of_model, named_kind
from .one_of import OneOf
from .rescaled import Rescaled
from .reused import Reused
from .saved import AUTO, SavedWeights, fingerprint, saved_weights, weights_of
from .several import Linear, blend
from .tangential import Tangential
from .weakened import weakened
from .weights import AnyWeight, PerClass, Weight, guides_at, table, weight_at

__all__ = [
    "APG",
    "AUTO",
    "CADS",
    "KINDS",
    "AnyWeight",
    "Batch",
    "CFGPlusPlus",
    "CFGZero",
    "Cond",
    "Denoiser",
    "Disturbance",
    "Disturbed",
    "Evaluation",
    "Feedback",
    "FrequencyDecoupled",
    "Guidance",
    "Linear",
    "MagnitudeAware",
    "OneGuide",
    "OneOf",
    "PerClass",
    "Rescaled",
    "Reused",
    "SavedWeights",
    "Tangential",
    "Unlabelled",
    "Weight",
    "bare",
    "blend",
    "disturbed",
    "dot",
    "evaluated",
    "fingerprint",
    "guide_of_model",
    "guide_roles",
    "guided",
    "guided_denoiser",
    "guides_at",
    "intermediate_head",
    "is_of_model",
    "module_of",
    "named_kind",
    "norm",
    "remembered",
    "saved_weights",
    "std",
    "table",
    "told_guidance",
    "undisturbed_net",
    "unlabelled",
    "unwrapped",
    "weakened",
    "weight_at",
    "weights_of",
]
