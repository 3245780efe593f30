"""Generated data for ``jobs/configs/article.yaml``: ``python -m retailray.article FOLDER``.

Two classes in the article's layout, and a network that was trained on other, abstract shapes: what transfer learning
starts from where no weights can be had.
"""

import sys
import tempfile

from retailray import events, storage
from retailray.config import CatalogSection, ModelSection, SplitSection, TrainConfig, TrainSection, TransformSection
from retailray.data.synthetic import write_article_set, write_pretraining_set
from retailray.models.bundle import copy_bundle
from retailray.training.train import train

ARCH, IMAGE_PX, NUM_SHAPES, EPOCHS = "shufflenet_v2_x1_0", 64, 1920, 8


def write_article(folder: str, *, seed: int = 0, num_shapes: int = NUM_SHAPES, epochs: int = EPOCHS) -> None:
    """Write ``train.csv``, ``test.csv``, ``images/`` and the bundle ``pretrained/`` into a folder."""
    if storage.exists(storage.join(folder, "pretrained", "MANIFEST")):
        return  # all of it is there from an earlier time; the network comes last
    write_article_set(folder, seed=seed)
    with tempfile.TemporaryDirectory() as work:
        write_pretraining_set(storage.join(work, "shapes"), num_images=num_shapes, seed=seed + 1)
        with events.nested_run():
            bundle = train(
                TrainConfig(
                    out=storage.join(work, "pretrain"),
                    catalog=CatalogSection(uri=storage.join(work, "shapes")),
                    split=SplitSection(validation=0.1),
                    transform=TransformSection(image_size=IMAGE_PX, resize_size=IMAGE_PX + 8),
                    model=ModelSection(arch=ARCH, weights="none", trainable="all"),
                    train=TrainSection(
                        epochs=epochs, batch_size=32, backbone_lr=5e-3, cache_uri=storage.join(work, "cache")
                    ),
                )
            )
        copy_bundle(bundle, storage.join(folder, "pretrained"))


if __name__ == "__main__":
    write_article(storage.normalize(sys.argv[1]))
