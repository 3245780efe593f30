"""A network in 8-bit integers: quantised by NNCF on some images, run by OpenVINO on CPUs."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from retailray.errors import ModelError
from retailray.interrupts import importing
from retailray.models.meta import INT8_NETWORK_NAME

IMAGES = 300  # that ranges of activations are measured on, NNCF's own number


class Int8Network(NamedTuple):
    """OpenVINO's two files: uint8 ``(B, 3, H, W)`` to what enters the head, and logits ``(B, C)``."""

    network: bytes
    numbers: bytes


def openvino() -> Any:
    """The package. Raises ModelError where it or NNCF is not installed."""
    # at its import OpenVINO would report to its makers; without this package it does not
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with importing():
            import nncf  # noqa: F401
            import openvino
    except ImportError as error:
        way = "pip install 'retailray[int8]'"
        raise ModelError(
            f"8-bit integers (score.precision int8) need packages that are not installed: {way} ({error})"
        ) from error
    return openvino


def quantize(network: nn.Module, images: np.ndarray) -> Int8Network:
    """Weights and activations in 8 bits, the ranges of activations as these images have them.

    Args:
        network: in eval mode, from uint8 ``(B, 3, H, W)`` to features and logits. images: uint8 ``(N, 3, H, W)``.

    Raises:
        ModelError: a package is missing, or the network cannot be expressed.
    """
    ov = openvino()
    import nncf

    for name in ("nncf", "torch.utils.cpp_extension"):  # that there is no GPU is no news
        logging.getLogger(name).setLevel(logging.ERROR)
    shape = [-1, *images.shape[1:]]
    try:
        with warnings.catch_warnings(action="ignore"), _quiet():
            model = ov.convert_model(network, example_input=torch.from_numpy(images[:2]), input=shape)
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(images[:IMAGES, None])),
                preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
                fast_bias_correction=False,  # more exact, and twice as long
                subset_size=IMAGES,
            )
    except Exception as error:  # whatever a network's own code raises where it is traced
        first = str(error).strip().splitlines()
        raise ModelError(
            f"score.precision = int8: the network cannot be quantised, leave it out: {first[0] if first else error!r}"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INT8_NETWORK_NAME)
        ov.save_model(quantized, path, compress_to_fp16=False)
        return Int8Network(path.read_bytes(), path.with_suffix(".bin").read_bytes())


@contextlib.contextmanager
def _quiet() -> Any:
    """Without NNCF's progress bars, which it prints on standard output, where our events are."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


class Int8Pass:
    """A forward pass of an :class:`Int8Network`, called like the module that it was quantised from."""

    def __init__(self, files: Int8Network, *, threads: int) -> None:
        ov = openvino()
        core = ov.Core()
        model = core.read_model(files.network, ov.Tensor(np.frombuffer(files.numbers, np.uint8)))
        # predictors side by side must not all be pinned to the same cores
        settings = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.request.infer([images.numpy()])
        features, logits = (torch.from_numpy(values.copy()) for values in found.to_tuple())
        return features, logits
