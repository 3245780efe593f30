"""Products in place of images: one answer for each, and how good these are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from retailray.models.metrics import classification_metrics
from retailray.models.probabilities import CLASSES_FIELD, PROBABILITIES_FIELD
from retailray.models.products import CELLS, Choice, Combination, grouped, images_of, majority

TOP_K = 5
FIELDS = (CLASSES_FIELD, PROBABILITIES_FIELD)


def answers_of_products(images: pd.DataFrame, labels: Sequence[str], combination: Combination) -> pd.DataFrame:
    """One row for each product, in the order of their names.

    Args:
        images: ``group, label`` ('' if none), ``classes, probabilities`` (:mod:`retailray.models.probabilities`).
        labels: the model's.

    Returns:
        ``group``, ``label`` (of most of its labelled images), ``num_images``, ``pred_label, pred_score`` and
        ``topk_labels``.
    """
    classes, probabilities = (np.stack(images[field.name].to_numpy()) for field in FIELDS)
    groups, names = images.group.to_numpy(object), np.array(labels, object)
    order, starts = grouped(groups)
    ends = np.append(starts[1:], len(order))
    top, scores = [], []
    at_once = max(64, CELLS // len(labels))  # products
    for at in range(0, len(starts), at_once):
        first, last = starts[at], ends[min(at + at_once, len(starts)) - 1]
        found = combination(
            images_of(classes, probabilities, len(labels)),
            order[first:last],
            starts[at : at + at_once] - first,
            num_classes=len(labels),
        )
        top.append(np.argsort(-found, axis=1, kind="stable")[:, :TOP_K])
        scores.append(found.max(1))
    known, numbers = np.unique(images.label.to_numpy(object), return_inverse=True)
    told = majority(numbers[order], starts, ignoring=0 if known[0] == "" else None)
    return pd.DataFrame(
        {
            "group": groups[order][starts],
            "label": known[told],
            "num_images": np.diff(starts, append=len(order)),
            "pred_label": names[np.concatenate(top)[:, 0]],
            "pred_score": np.concatenate(scores),
            "topk_labels": names[np.concatenate(top)].tolist(),
        }
    )


def product_metrics(
    images: pd.DataFrame, labels: Sequence[str], choice: Choice, *, bootstrap: int
) -> dict[str, object]:
    """Measures of the products that have a label which the model knows, each with all its ``images``, as a catalog is
    scored; and which rule gave the answers."""
    known = images.assign(label=images.label.where(images.label.isin(set(labels)), ""))
    rows = answers_of_products(known, labels, choice.combination)
    rows = rows[rows.label != ""]
    found = classification_metrics(
        rows.label.to_numpy(object),
        rows.pred_label.to_numpy(object),
        rows.pred_score.to_numpy(float),
        rows.topk_labels.tolist(),
        bootstrap=bootstrap,
    )
    found["num_products"] = found.pop("num_rows")
    several = int((rows.num_images > 1).sum())
    return found | {"num_with_several_images": several, "combination": choice.summary()}
