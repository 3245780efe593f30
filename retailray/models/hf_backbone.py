"""Networks of Hugging Face's transformers for image classification, with the ``hf`` extra.

What such a network is made of is in the ``config.json`` of its directory, and how pictures are prepared for it in the
``preprocessor_config.json``. Nothing in a directory is run: a config that names code of its own is refused.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.models.backbones import HUGGING_FACE, Weights, optional_package
from retailray.models.blocks import BlockSequence
from retailray.models.hf_directory import CONFIG_NAME, PROCESSOR_NAME, local_directory, processor_of
from retailray.models.meta import EvalTransform

# they interpolate their positions to a picture's size themselves; the config has the size of the positions
_ANY_SIZE = ("dinov2", "dinov2_with_registers")
# what names code of others: transformers would fetch kernels of that name and run them
_OF_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
_OF_LABELS = ("id2label", "label2id", "num_labels", "transformers_version", "_name_or_path")


@dataclasses.dataclass(frozen=True)
class HuggingFaceBackbone:
    """:class:`retailray.models.backbones.Backbone` of a config of transformers, as JSON. ``source``: of its weights.

    ``arch`` is ``hf:`` and a name, that of the network's type where ``model.arch`` has none.
    """

    arch: str
    json: str
    source: str = dataclasses.field(default="", compare=False)

    @classmethod
    def of(cls, arch: str, config: dict[str, object], source: str = "") -> "HuggingFaceBackbone":
        """From what a bundle or a ``config.json`` says. Raises ModelError where that is no config, or names code."""
        if not isinstance(config.get("model_type"), str):
            raise ModelError(
                f"model.arch = {arch!r}: its config has no model_type; model.weights must name a directory of "
                f"transformers ({CONFIG_NAME}, model.safetensors, preprocessor_config.json) or a bundle made of one"
            )
        refuse_code(config, source or arch)
        arch = f"{arch}:{config['model_type']}" if arch == HUGGING_FACE else arch
        kept = {name: value for name, value in _plain(config).items() if name not in _OF_LABELS}
        return cls(arch, json.dumps(kept, sort_keys=True), source)

    @classmethod
    def read(cls, arch: str, source: str) -> "HuggingFaceBackbone":
        """From a directory of transformers, or from the hub by its name there (``hf:NAME``)."""
        with local_directory(source) as folder:
            return cls.of(arch, folder.config(), source)

    @property
    def config(self) -> dict[str, object]:
        return json.loads(self.json)

    def build(self, num_classes: int, *, image_size: int) -> nn.Module:
        from retailray.models.hf_blocks import Classifier

        transformers, values = optional_package("transformers", extra="hf"), self.config
        kind = str(values.pop("model_type"))
        if "image_size" in values and kind not in _ANY_SIZE:
            values["image_size"] = image_size
        try:
            config = transformers.AutoConfig.for_model(kind, **values, num_labels=num_classes)
            with _quiet():
                network = transformers.AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        except Exception as error:  # each network checks its own config
            text = " ".join(str(error).split())[:300]
            raise ModelError(f"{self.arch} ({kind}) cannot be built for {image_size} px: {text}") from error
        return Classifier(network)

    def blocks(self, model: nn.Module) -> BlockSequence:
        from retailray.models.hf_blocks import Classifier, to_blocks

        assert isinstance(model, Classifier)
        return to_blocks(model, self.head_name(model))

    def head_name(self, model: nn.Module) -> str:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        ours = [name for name in names if name.startswith("network.classifier")]
        if len(ours) != 1:
            kind = self.config["model_type"]
            raise ModelError(f"{self.arch} ({kind}): its head is not one layer: {ours or names[-1:]}")
        return ours[0]

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        with local_directory(self.source) as folder:
            return processor_of(optional_package("transformers", extra="hf"), folder).normalization()

    def weights(self, name: str) -> Weights:
        """Those of the directory, whatever its number of classes; ``name`` is not used."""
        return Weights(load_pretrained(self.source, head=False).state_dict(), *self.normalization())

    def eval_transform(self) -> EvalTransform:
        if not self.source:
            raise ModelError(f"{self.arch}: a bundle has no preprocessor_config.json")
        with local_directory(self.source) as folder:
            return processor_of(optional_package("transformers", extra="hf"), folder).transform()

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state


def load_pretrained(source: str, *, head: bool = True) -> nn.Module:
    """The network of a directory with its weights, in eval mode, by transformers' own code, which knows the names that
    older versions gave to layers. ``head``: whether the layer of the logits must be there.

    Raises:
        ModelError: tensors are missing, are not known, or have another shape; or the directory is none of these.
    """
    from retailray.models.hf_blocks import Classifier

    transformers = optional_package("transformers", extra="hf")
    with local_directory(source, weights=True) as folder, _quiet():
        values = folder.config()
        refuse_code(values, source)
        try:
            config = transformers.AutoConfig.for_model(**_plain(values))
            network, loaded = transformers.AutoModelForImageClassification.from_pretrained(
                folder.path,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:  # each network and each file format raises its own
            text = " ".join(str(error).split())[:400]
            raise ModelError(f"{source}: transformers cannot read this directory: {text}") from error
    missing = [name for name in loaded["missing_keys"] if head or not name.startswith("classifier")]
    found = {
        "missing": missing,
        # of pretraining, or of the heads of other tasks
        "that the model does not have": loaded["unexpected_keys"] if head else [],
        "of another shape": [one[0] if isinstance(one, tuple) else one for one in loaded["mismatched_keys"]],
    }
    problems = [f"{len(names)} tensors {what}, first {sorted(names)[0]}" for what, names in found.items() if names]
    if problems:
        raise ModelError(
            f"{source}: the weights do not fit {type(network).__name__}: {'; '.join(problems)}; a directory that "
            "save_pretrained() of an image classifier has written fits"
        )
    return Classifier(network.eval())


def _plain(value: Any) -> Any:
    """A config without what asks for code of others, also in the configs within it."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name not in _OF_KERNELS}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def downloaded(name: str) -> str:
    """The folder of this machine with a directory of the hub: config, processor and weights as safetensors.

    Raises:
        ModelError: it cannot be had; says how to stage it.
    """
    optional_package("transformers", extra="hf")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=[CONFIG_NAME, PROCESSOR_NAME, "*.safetensors", "*.index.json"])
    except Exception as error:  # of the network, of the hub
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.arch = 'hf:{name}': cannot download it ({type(error).__name__}: {text}). Without a network, give "
            "the address of the directory as model.weights"
        ) from error


def refuse_code(config: dict[str, object], source: str) -> None:
    """Raises ModelError where a config asks for code that comes with it."""
    if "auto_map" in config:
        raise ModelError(
            f"{source}: its {CONFIG_NAME} has auto_map = {json.dumps(config['auto_map'])[:200]}, code that comes with "
            "the model; such code is never run. Models of transformers' own need no auto_map"
        )
    if "quantization_config" in config:
        raise ModelError(f"{source}: its {CONFIG_NAME} has quantization_config; give the weights before quantization")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and remarks."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
