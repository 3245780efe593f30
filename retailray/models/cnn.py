"""Small networks trained from scratch: baselines of 'Deep learning in retail product classification: a use case'."""

import itertools

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.models.blocks import BlockSequence, children

NUM_CONVOLUTIONS = {"cnn1": 1, "cnn2": 2, "cnn3": 3}
CHANNELS = (32, 64, 128)
DENSE_UNITS = 64


class SmallCNN(nn.Module):
    """``num_convolutions`` times [3 x 3 convolution, ReLU, 2 x 2 max pooling], 64 dense units, logits.

    The dense layer sees every position, as in the article (Keras' ``Flatten``), so the model has one image size [px].
    """

    def __init__(self, num_convolutions: int, num_classes: int, *, image_size: int) -> None:
        super().__init__()
        widths = (3, *CHANNELS[:num_convolutions])
        side = image_size
        for _ in range(num_convolutions):
            side = (side - 2) // 2
        if side < 1:
            raise ModelError(f"transform.image_size = {image_size}: too small for {num_convolutions} convolutions")
        self.convolutions = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(before, after, 3), nn.ReLU(), nn.MaxPool2d(2))
                for before, after in itertools.pairwise(widths)
            ]
        )
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * side**2, DENSE_UNITS), nn.ReLU())
        self.head = nn.Linear(DENSE_UNITS, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dense(self.convolutions(x)))

    def blocks(self) -> BlockSequence:
        return BlockSequence(
            [*children("convolutions", self.convolutions), ("dense", self.dense)], nn.Sequential(self.head)
        )
