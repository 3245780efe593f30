"""Default learning rates, by the family of the network, the optimizer and the batch size, with their sources."""

from typing import NamedTuple

ONLY_HEAD, HEAD = 1e-2, 3e-3  # benchmarks/quality.py
BACKBONE = 1e-3  # of convolutional networks (benchmarks/quality.py), and of all that are trained from random weights
# of pretrained networks with LayerNorm: the recipes of ConvNeXt for fine-tuning (arXiv 2201.03545, appendix A.2) and of
# Hugging Face's image classification for ViT and Swin, both with AdamW
LAYER_NORM_BACKBONE = 5e-5
BATCH_SIZE = 64  # that they are for


class Rates(NamedTuple):
    """``only_head``: of a head that is trained alone; ``head``: of one beside its backbone."""

    only_head: float
    head: float
    backbone: float


def default_rates(*, is_pretrained_with_layer_norm: bool, optimizer: str, batch_size: int) -> Rates:
    """Larger batches take fewer steps that are less noisy: rates grow in proportion with SGD (Goyal et al. 2017, arXiv
    1706.02677), by the square root with AdamW (Malladi et al. 2022, arXiv 2205.10287); after a warm-up either way
    (``train.warmup_ratio``)."""
    larger = max(1.0, batch_size / BATCH_SIZE)
    factor = larger if optimizer == "sgd" else larger**0.5
    low = is_pretrained_with_layer_norm and optimizer == "adamw"
    return Rates(factor * ONLY_HEAD, factor * HEAD, factor * (LAYER_NORM_BACKBONE if low else BACKBONE))
