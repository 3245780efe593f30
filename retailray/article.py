"""Generated data for ``jobs/configs/article.yaml``: ``python -m retailray.article FOLDER``.

Two classes in the article's layout, and a network that was trained on other, abstract shapes: what transfer learning
starts from where no weights can be had.
"""

import sys
import tempfile

from retailray import events, storage
from retailray.config import ClusterSection
from retailray.data.synthetic import write_article_set, write_pretraining_set
from retailray.demo import PRETRAIN_IMAGES, pretrain
from retailray.models.bundle import copy_bundle


def write_article(folder: str, *, seed: int = 0) -> None:
    """Write ``train.csv``, ``test.csv``, ``images/`` and the bundle ``pretrained/`` into a folder."""
    if storage.exists(storage.join(folder, "pretrained", "MANIFEST")):
        return  # all of it is there from an earlier time; the network comes last
    write_article_set(folder, seed=seed)
    with tempfile.TemporaryDirectory() as work:
        shapes, out, cache = (storage.join(work, name) for name in ("shapes", "pretrain", "cache"))
        write_pretraining_set(shapes, num_images=PRETRAIN_IMAGES, seed=seed + 1)
        with events.nested_run():
            bundle = pretrain(shapes, out=out, cache=cache, seed=seed, cluster=ClusterSection())
        copy_bundle(bundle, storage.join(folder, "pretrained"))


if __name__ == "__main__":
    write_article(storage.normalize(sys.argv[1]))
