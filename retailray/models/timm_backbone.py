"""Networks of timm (PyTorch image models) by name, with the ``timm`` extra."""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from retailray.errors import ModelError
from retailray.models.backbones import TIMM, Weights, optional_package
from retailray.models.blocks import BlockSequence
from retailray.models.meta import EvalTransform

# arguments of create_model that load or change more than the network
_NOT_OURS = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "no_jit")
)


@dataclasses.dataclass(frozen=True)
class TimmBackbone:
    """:class:`retailray.models.backbones.Backbone` of a name of timm's, with or without the tag of its weights."""

    name: str
    json: str = "{}"

    @classmethod
    def of(cls, arch: str, config: Mapping[str, Any]) -> "TimmBackbone":
        """``config``: arguments of ``timm.create_model``, as a directory that timm saved and bundles keep them.

        Raises:
            ModelError: they ask for other weights, or for pictures that are none in RGB.
        """
        if strange := sorted(config.keys() & _NOT_OURS) or (config.get("in_chans", 3) != 3 and ["in_chans"]):
            raise ModelError(f"{arch}: its config has {strange[0]} = {config[strange[0]]!r}, which is not taken")
        return cls(arch.partition(":")[2], json.dumps(dict(config), sort_keys=True))

    @property
    def arch(self) -> str:
        return f"{TIMM}:{self.name}"

    @property
    def config(self) -> dict[str, object]:
        return json.loads(self.json)

    def build(self, num_classes: int, *, image_size: int) -> nn.Module:
        timm, facts = optional_package("timm", extra="timm"), self._facts()
        options = {name: value for name, value in self.config.items() if name not in ("num_classes", "img_size")}
        options |= {"img_size": image_size} if facts.fixed_input_size else {}
        try:
            if facts.fixed_input_size:
                with torch.device("meta"):  # some find out in their first pass only; there it computes nothing
                    tried = timm.create_model(self.name, pretrained=False, num_classes=num_classes, **options)
                    tried.eval()(torch.zeros(1, 3, image_size, image_size))
            return timm.create_model(self.name, pretrained=False, num_classes=num_classes, **options)
        except NotImplementedError:  # of an operation that has no form without data
            return timm.create_model(self.name, pretrained=False, num_classes=num_classes, **options)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"transform.image_size = {image_size}: {self.arch} cannot be built for it ({error})"
            ) from error

    def _facts(self) -> Any:
        """What timm knows of the weights of that name. Raises ModelError where it knows no such name."""
        timm = optional_package("timm", extra="timm")
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(self.name, timm.list_models(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(f'timm:{one}' for one in near)}?" if near else "see timm.list_models()"
            raise ModelError(f"model.arch = {self.arch!r}: timm has no such model; {hint}")
        facts = timm.get_pretrained_cfg(self.name)
        if facts is None:
            raise ModelError(f"model.arch = {self.arch!r}: timm says nothing of its input, so that it cannot be served")
        if not isinstance(facts.classifier or "head", str):
            raise ModelError(
                f"model.arch = {self.arch!r}: it has several heads ({', '.join(facts.classifier)}); a bundle has one"
            )
        return facts

    def blocks(self, model: nn.Module) -> BlockSequence:
        from retailray.models.timm_blocks import to_blocks

        return to_blocks(model, self.head_name(model))

    def head_name(self, model: nn.Module) -> str:
        head: Any = model.get_classifier()  # type: ignore[operator]  # every network of timm has it
        names = [name for name, module in model.named_modules() if module is head]
        if not names or not isinstance(head, nn.Linear | nn.Conv2d):
            raise ModelError(f"model.arch = {self.arch!r}: its head is a {type(head).__name__}, not a layer of logits")
        return names[0]

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        facts = self._facts()
        return tuple(facts.mean), tuple(facts.std)

    def weights(self, name: str) -> Weights:
        self._facts()
        tagged = self.name if name == "DEFAULT" else f"{self.name.partition('.')[0]}.{name}"
        try:
            model = optional_package("timm", extra="timm").create_model(tagged, pretrained=True)
        except Exception as error:  # of the network, of the hub, of timm
            text = " ".join(str(error).split())[:300]
            raise ModelError(
                f"model.weights = {name!r}: cannot get timm's weights {tagged} ({type(error).__name__}: {text}). "
                "Without a network, give the address of their .safetensors or .pth file as model.weights"
            ) from error
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        return Weights(model.state_dict(), tuple(mean), tuple(std))

    def eval_transform(self) -> EvalTransform:
        return transform_of(dataclasses.asdict(self._facts()), self.arch)

    def renamed(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state


def transform_of(facts: Mapping[str, Any], arch: str) -> EvalTransform:
    """What timm does before it evaluates, by what a config of its says. Raises ModelError where that cannot be said."""
    try:
        _, height, width = facts["input_size"]
        crop_mode, crop_pct = facts.get("crop_mode"), facts.get("crop_pct") or 0.875
        if height != width or crop_mode not in (None, "center", "squash"):
            raise ModelError(
                f"{arch}: its transform (crop_mode {crop_mode}, {height} x {width} px) cannot be expressed: give "
                "bundle.transform"
            )
        return EvalTransform.model_validate(
            {
                "resize_size": math.floor(height / crop_pct),
                "crop_size": height,
                "resize": "stretch" if crop_mode == "squash" else "shorter_side",
                "interpolation": facts.get("interpolation") or "bicubic",
                "mean": facts["mean"],
                "std": facts["std"],
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{arch}: its pretrained_cfg does not say how pictures are prepared ({error})") from error
