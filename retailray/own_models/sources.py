"""Where a classifier comes from: a state dict of an architecture, a directory of transformers or of timm."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import pydantic
import torch

from retailray import storage
from retailray.config import OwnModelSection
from retailray.errors import ModelError
from retailray.models.backbones import HUGGING_FACE, Backbone, backbone_of, load_state, parse_arch
from retailray.models.hf_backbone import HuggingFaceBackbone, load_pretrained
from retailray.models.hf_directory import CONFIG_NAME, local_directory
from retailray.models.meta import META_NAME, EvalTransform
from retailray.models.positions import fitted_positions
from retailray.models.state_dicts import ENDINGS, misfits, read_state
from retailray.models.timm_backbone import transform_of
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
    address = section.source
    if address.endswith(ENDINGS):
        return _of_state_dict(section, section.arch, address)
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
    weights, arch = storage.join(section.source, "model.safetensors"), f"timm:{config['architecture']}"
    facts = config.get("pretrained_cfg", config)
    assert isinstance(facts, dict)
    return _of_state_dict(section, arch, weights, lambda: transform_of(facts, arch), labels)


def _own_labels(config: dict[str, object], key: str, source: str) -> list[str]:
    try:
        labels = labels_of_json(config.get(key))
    except ValueError as error:
        raise ModelError(f"{source}: {key} in its {CONFIG_NAME}: {error}; name a file with bundle.labels") from error
    check_labels(labels, source=f"{source}: {key} in its {CONFIG_NAME}")
    return labels


def _of_state_dict(
    section: OwnModelSection,
    arch: str | None,
    address: str,
    transform: Callable[[], EvalTransform] | None = None,
    labels: Sequence[str] = (),
) -> OwnModel:
    if not arch:
        raise ModelError(
            f"bundle.source = {address}: a file of weights does not say what they are of: set bundle.arch to a name of "
            "torchvision's or to timm:NAME"
        )
    if parse_arch(arch)[0] == HUGGING_FACE:
        raise ModelError(
            f"bundle.source = {address}: with bundle.arch = {arch} it must be a directory of transformers, with "
            f"{CONFIG_NAME}"
        )
    if not section.labels and not labels:
        raise ModelError(f"bundle.labels: {address} has no labels: name a file with them, in the order of the outputs")
    backbone = backbone_of(arch)
    state = backbone.renamed(read_state(address, setting="bundle.source"))
    named = list(labels) or read_labels(str(section.labels))
    return _finished(section, backbone, state, named, transform or backbone.eval_transform)


def _finished(
    section: OwnModelSection,
    backbone: Backbone,
    state: dict[str, torch.Tensor],
    labels: list[str],
    own_transform: Callable[[], EvalTransform],
) -> OwnModel:
    transform = _transform(section, own_transform)
    model = backbone.build(len(labels), image_size=transform.crop_size)
    own = model.state_dict()
    head = backbone.head_name(model)
    outputs = state[f"{head}.weight"].shape[0] if f"{head}.weight" in state else len(labels)
    if outputs != len(labels):
        where = f"bundle.labels = {section.labels}" if section.labels else "its config"
        raise ModelError(
            f"bundle.source = {section.source}: the model has {outputs} outputs ({head}.weight), and {where} has "
            f"{len(labels)} labels; they must be as many, in the order of the outputs"
        )
    state = fitted_positions(state, own)
    if problems := misfits(state, own):
        raise ModelError(f"bundle.source = {section.source}: does not fit {backbone.arch}: {'; '.join(problems)}")
    load_state(model, state)
    state = model.state_dict()  # float32, and with counters that old files lack
    if section.label_map:
        kept, labels = mapped(labels, section.label_map)
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in state:
                state[name] = state[name][kept].clone()
    if not all(bool(tensor.isfinite().all()) for tensor in state.values() if tensor.is_floating_point()):
        raise ModelError(f"bundle.source = {section.source}: some of its weights are not finite (NaN or infinite)")
    return OwnModel(backbone, state, labels, transform)


def _transform(section: OwnModelSection, own: Callable[[], EvalTransform]) -> EvalTransform:
    """The library's own, or what ``bundle.transform`` says in its place, key by key."""
    given = section.transform
    needed = {"resize_size", "crop_size", "mean", "std"}
    found = {} if needed <= given.keys() else own().model_dump()
    if not found:
        found = {"resize": "shorter_side"}
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
