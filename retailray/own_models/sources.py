"""Where a classifier comes from: a state dict of an architecture, a directory of transformers or of timm."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import pydantic
import torch

from retailray import events, storage
from retailray.config import OwnModelSection
from retailray.errors import ModelError
from retailray.models.backbones import HUGGING_FACE, Backbone, backbone_of, load_state, parse_arch
from retailray.models.hf_backbone import HuggingFaceBackbone, load_pretrained
from retailray.models.hf_directory import CONFIG_NAME, local_directory
from retailray.models.meta import META_NAME, EvalTransform
from retailray.models.positions import fitted_positions
from retailray.models.state_dicts import ENDINGS, misfits, read_state
from retailray.models.timm_backbone import TimmBackbone, transform_of
from retailray.own_models.label_files import check_labels, labels_of_json, mapped, read_labels


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A classifier as it will be served. ``state``: of the network that ``backbone`` builds, float32 on the CPU."""

    backbone: Backbone
    state: dict[str, torch.Tensor]
    labels: list[str]
    transform: EvalTransform


def read_source(section: OwnModelSection) -> OwnModel:
    """What ``bundle.source`` holds, with the labels that it will have.

    Raises:
        ModelError: it is no classifier that can be served; what is wrong and what to do. StorageError.
    """
    try:
        return _read(section)
    except ModelError as error:  # of code that train uses too, which names the settings of train
        text = str(error).replace("model.arch =", "bundle.arch =")
        raise ModelError(text.replace("transform.image_size =", "bundle.transform: crop_size =")) from error


def _read(section: OwnModelSection) -> OwnModel:
    address = section.source
    if address.endswith(ENDINGS):
        backbone = _named_backbone(section)
        return _of_state_dict(section, backbone, address, backbone.eval_transform)
    if storage.exists(storage.join(address, META_NAME)):
        raise ModelError(f"bundle.source = {address}: this is a bundle already")
    with local_directory(address) as folder:
        config = folder.config()
    if isinstance(config.get("architecture"), str) and "model_type" not in config:
        return _of_timm(section, config)
    if section.arch and parse_arch(section.arch)[0] != HUGGING_FACE:
        raise ModelError(f"bundle.arch = {section.arch!r}: {address} is a directory of transformers; leave it out")
    return _of_transformers(section, config)


def _of_transformers(section: OwnModelSection, config: dict[str, object]) -> OwnModel:
    source = section.source
    backbone = HuggingFaceBackbone.of(section.arch or HUGGING_FACE, config, source)
    state = load_pretrained(source).state_dict()
    labels = read_labels(section.labels) if section.labels else _own_labels(config, "id2label", source)
    return _finished(section, backbone, state, labels, backbone.eval_transform)


def _of_timm(section: OwnModelSection, config: dict[str, object]) -> OwnModel:
    """A directory as timm leaves it on the hub: config.json with ``architecture``, model.safetensors."""
    if not section.labels and not config.get("label_names"):
        raise ModelError(f"{section.source}: its {CONFIG_NAME} has no label_names; name a file with bundle.labels")
    labels = [] if section.labels else _own_labels(config, "label_names", section.source)
    arch = f"timm:{config['architecture']}"
    files = [storage.join(section.source, name) for name in ("model.safetensors", "pytorch_model.bin")]
    weights = next((file for file in files if storage.exists(file)), None)
    if not weights:
        raise ModelError(f"{section.source}: neither model.safetensors nor pytorch_model.bin is there")
    facts = config.get("pretrained_cfg", config)
    if not isinstance(facts, dict):
        raise ModelError(f"{section.source}: pretrained_cfg in its {CONFIG_NAME} is not an object")
    if section.arch and section.arch != arch:
        raise ModelError(f"bundle.arch = {section.arch!r}: {section.source} is of {arch}; leave it out")
    own = dict(config.get("model_args") or {})  # type: ignore[call-overload]
    own |= {"global_pool": config["global_pool"]} if config.get("global_pool") else {}
    return _of_state_dict(section, TimmBackbone.of(arch, own), weights, lambda: transform_of(facts, arch), labels)


def _own_labels(config: dict[str, object], key: str, source: str) -> list[str]:
    try:
        labels = labels_of_json(config.get(key))
    except ValueError as error:
        raise ModelError(f"{source}: {key} in its {CONFIG_NAME}: {error}; name a file with bundle.labels") from error
    check_labels(labels, source=f"{source}: {key} in its {CONFIG_NAME}")
    return labels


def _of_state_dict(
    section: OwnModelSection,
    backbone: Backbone,
    address: str,
    transform: Callable[[], EvalTransform],
    labels: Sequence[str] = (),
) -> OwnModel:
    if not section.labels and not labels:
        raise ModelError(f"bundle.labels: {address} has no labels: name a file with them, in the order of the outputs")
    state = backbone.renamed(read_state(address, setting="bundle.source"))
    return _finished(section, backbone, state, list(labels) or read_labels(str(section.labels)), transform)


def _named_backbone(section: OwnModelSection) -> Backbone:
    """What ``bundle.arch`` names, for a file of weights. Raises ModelError."""
    if not section.arch:
        raise ModelError(
            f"bundle.source = {section.source}: a file of weights does not say what they are of: set bundle.arch to a "
            "name of torchvision's or to timm:NAME"
        )
    if parse_arch(section.arch)[0] == HUGGING_FACE:
        raise ModelError(
            f"bundle.source = {section.source}: with bundle.arch = {section.arch} it must be a directory of "
            f"transformers, with {CONFIG_NAME}"
        )
    if section.arch in ("googlenet", "inception_v3"):
        note = (
            "built with transform_input=True, as torchvision builds its pretrained ones; a state dict does not say it"
        )
        events.emit("warning", arch=section.arch, note=note)
    return backbone_of(section.arch)


def _finished(
    section: OwnModelSection,
    backbone: Backbone,
    state: dict[str, torch.Tensor],
    labels: list[str],
    own_transform: Callable[[], EvalTransform],
) -> OwnModel:
    transform = _transform(section, own_transform)
    model = backbone.build(len(labels), image_size=transform.crop_size)
    head = backbone.head_name(model)
    _check_outputs(section, state, head, labels)
    state = _with_positions(section, state, model.state_dict(), transform.crop_size)
    if problems := misfits(state, model.state_dict()):
        raise ModelError(f"bundle.source = {section.source}: does not fit {backbone.arch}: {'; '.join(problems)}")
    load_state(model, state)
    state = model.state_dict()  # float32, and with counters that old files lack
    if section.label_map:
        kept, labels = mapped(labels, section.label_map)
        state |= {name: state[name][kept].clone() for name in (f"{head}.weight", f"{head}.bias") if name in state}
    if not all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point()):
        raise ModelError(f"bundle.source = {section.source}: some of its weights are not finite (NaN or infinite)")
    return OwnModel(backbone, state, labels, transform)


def _check_outputs(section: OwnModelSection, state: dict[str, torch.Tensor], head: str, labels: list[str]) -> None:
    outputs = state[f"{head}.weight"].shape[0] if f"{head}.weight" in state else len(labels)
    if outputs != len(labels):
        where = f"bundle.labels = {section.labels}" if section.labels else "its config"
        raise ModelError(
            f"bundle.source = {section.source}: the model has {outputs} outputs ({head}.weight), and {where} has "
            f"{len(labels)} labels; they must be as many, in the order of the outputs"
        )


def _with_positions(
    section: OwnModelSection, state: dict[str, torch.Tensor], own: dict[str, torch.Tensor], size_px: int
) -> dict[str, torch.Tensor]:
    """With positions for pictures of this size, where somebody has said that it is another than that of training."""
    fitted = fitted_positions(state, own)
    for name, tensor in fitted.items():
        if tensor is state[name]:
            continue
        was, needs = tuple(state[name].shape), tuple(own[name].shape)
        if "crop_size" not in section.transform:
            raise ModelError(
                f"bundle.source = {section.source}: {name} is {was}, and pictures of {size_px} px need {needs}: the "
                "model saw pictures of another size; say which by bundle.transform (resize_size and crop_size)"
            )
        events.emit("warning", interpolated=name, note=f"positions of {was} were interpolated to {needs}")
    return fitted


def _transform(section: OwnModelSection, own: Callable[[], EvalTransform]) -> EvalTransform:
    """The library's own, or what ``bundle.transform`` says in its place, key by key."""
    given = section.transform
    try:
        found = own().model_dump()
    except ModelError as error:
        if missing := {"resize_size", "crop_size", "resize", "interpolation", "mean", "std"} - given.keys():
            way = f"; with bundle.transform that has {', '.join(sorted(missing))} too it can be" if given else ""
            raise ModelError(f"{error}{way}") from error
        found = {}
    try:
        transform = EvalTransform.model_validate(found | given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"bundle.transform: {where}: {first['msg']}; it was {json.dumps(given)}") from error
    if transform.crop_size > transform.resize_size:
        raise ModelError(
            f"bundle.transform: crop_size = {transform.crop_size} is more than resize_size = {transform.resize_size}: "
            "pictures are not padded"
        )
    return transform
