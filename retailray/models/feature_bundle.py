"""A pretrained backbone as a bundle, for its features alone: predictors read bundles."""

from retailray.models.bundle import BundleMeta, new_version, save_bundle
from retailray.models.weights import find_backbone, pretrained_model


def save_backbone(address: str, arch: str, weights: str) -> None:
    """Write a bundle with a head of one class, which means nothing, and the transform that the library gives.

    Raises:
        ModelError: no such architecture or weights, or it has no transform. StorageError.
    """
    transform = find_backbone(arch, weights).eval_transform()
    model = pretrained_model(arch, weights, 1, seed=0, image_size=transform.crop_size)
    state = {name: tensor.detach().cpu() for name, tensor in model.network.state_dict().items()}
    meta = BundleMeta(
        name="features",
        version=new_version(state),
        arch=model.backbone.arch,
        backbone=model.backbone.config,
        labels=["-"],
        transform=transform.model_copy(update={"mean": model.mean, "std": model.std}),
    )
    save_bundle(address, meta, state)
