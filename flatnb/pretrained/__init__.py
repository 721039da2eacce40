"""Nets with their published weights, to be fine-tuned: EfficientNet-Lite0 for images
and MiniLM for sentences. The weights come in packages, by the extras ``pretrained`` and
``sentences``.
"""

from flatnb.pretrained.efficientnet import (
    efficientnet_lite0,
    pretrained_efficientnet_lite0,
    scaled,
)
from flatnb.pretrained.minilm import Encoder, pretrained_minilm, tokens

__all__ = ["efficientnet_lite0", "pretrained_efficientnet_lite0", "scaled"]
__all__ += ["Encoder", "pretrained_minilm", "tokens"]
