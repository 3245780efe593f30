"""The model card of a bundle: ``README.md`` in the form that Hugging Face shows, made of what the bundle says."""

import posixpath

import yaml

from retailray import storage
from retailray.models.meta import BundleMeta

MOST_LABELS = 100  # in the table
_USE = """```sh
retailray score --catalog.uri catalog.csv --model.uri <this folder> --out scores
```
"""


def model_card(meta: BundleMeta) -> str:
    """The card as Markdown, with its facts as YAML in front."""
    front = yaml.safe_dump(_front(meta), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---\n\n# {meta.name}\n", _about(meta), f"## How to use it\n\n{_USE}", _measures(meta)]
    return "\n".join([*parts, _data(meta), _limits(meta), _origin(meta)])


def _front(meta: BundleMeta) -> dict[str, object]:
    front: dict[str, object] = {
        "library_name": "retailray",
        "pipeline_tag": "image-classification" if meta.intervals is None else "other",
        "tags": ["retail", "product-images", meta.arch],
    }
    if "validation_top1" not in meta.metrics:
        return front
    if meta.intervals is not None:
        return front
    rows = "labelled rows" if "source" in meta.data else "validation rows of the training catalog"
    measured = [{"type": "accuracy", "value": meta.metrics["validation_top1"], "name": "top-1 on validation rows"}]
    task = {"type": "image-classification"}
    data = {"name": rows, "type": "retail-catalog"}
    return front | {
        "model-index": [{"name": meta.name, "results": [{"task": task, "dataset": data, "metrics": measured}]}]
    }


def _about(meta: BundleMeta) -> str:
    start = (meta.config.get("model") or {}).get("weights")
    begun = f", fine-tuned from the weights `{_name(start)}`" if start and start != "none" else ""
    transform = meta.transform
    scaled = "A picture is stretched" if transform.resize == "stretch" else "A picture's shorter side is scaled"
    what = f"Classifies a picture of a product as one of {len(meta.labels)} labels"
    if meta.intervals is not None:
        what = f"Predicts the number `{meta.target}` of a picture of a product, with an interval around it"
    return (
        f"{what}: `{meta.arch}`{begun}. {scaled} "
        f"to {transform.resize_size} px, and its central square of {transform.crop_size} px is what the model sees.\n"
    )


def _measures(meta: BundleMeta) -> str:
    names = {
        "validation_top1": "top-1",
        "validation_macro_f1": "macro F1",
        "validation_mae": "mean absolute error",
        "validation_wape": "sum of absolute errors by sum of absolute values (WAPE)",
        "validation_loss": "loss (cross-entropy)",
    }
    rows = [f"| {text} | {meta.metrics[name]:.4f} |" for name, text in names.items() if name in meta.metrics]
    if not rows:
        return "## Measures\n\nNone were taken.\n"
    used = meta.metrics.get("validation_rows")
    where = f"on {used} validation rows" if used else "on validation rows"
    table = "\n".join(["| measure | value |", "|---|---|", *rows])
    of = (
        f"Of epoch {meta.metrics['epoch']}, {where}, which chose that epoch"
        if "epoch" in meta.metrics
        else f"Measured {where}"
    )
    what = "Confidences" if meta.intervals is None else "Probabilities of the intervals that values lie in"
    return (
        f"## Measures\n\n{table}\n\n{of}: `retailray evaluate` measures on test rows, with intervals.\n"
        f"{what} are {'' if meta.data.get('calibrated', True) else 'not '}calibrated"
        f"{f' with the temperature {meta.temperature:.3f}' if meta.data.get('calibrated', True) else ''}.\n"
    )


def _data(meta: BundleMeta) -> str:
    if source := meta.data.get("source"):
        labels = ", ".join(_cell(label) for label in meta.labels[:MOST_LABELS])
        more = f", and {len(meta.labels) - MOST_LABELS} more in `bundle.json`" if len(meta.labels) > MOST_LABELS else ""
        return (
            "## Training data\n\nNot known: the model was trained elsewhere. `retailray bundle` made a bundle of "
            f"`{_name(source)}`.\n\n"
            f"Labels: {labels}{more}.\n"
        )
    counts = meta.data.get("labels") or dict.fromkeys(meta.labels)
    if meta.intervals is not None:
        counts = {name: counts.get(name) for name in meta.labels}
    shown = list(counts.items())
    if meta.intervals is None:
        shown = sorted(shown, key=lambda item: -(item[1] or 0))[:MOST_LABELS]
    rows = [f"| {_cell(label)} | {'' if count is None else count} |" for label, count in shown]
    more = f"\n\n{len(counts) - MOST_LABELS} more labels are in `bundle.json`." if len(counts) > MOST_LABELS else ""
    catalog = f"Catalog: `{_name(meta.data['catalog'])}`.\n\n" if meta.data.get("catalog") else ""
    what = "label" if meta.intervals is None else "values"
    return f"## Training data\n\n{catalog}" + "\n".join([f"| {what} | rows |", "|---|---|", *rows]) + more + "\n"


def _limits(meta: BundleMeta) -> str:
    if meta.intervals is not None:
        low, high = meta.intervals.lows[0], meta.intervals.highs[-1]
        return (
            f"## Limits\n\nPredictions lie between the smallest and the largest value of the training rows, {low:g} "
            f"and {high:g}, whatever a picture shows. Pictures that differ from those of the training catalog (other "
            "cameras, backgrounds, products) are predicted worse than the measures say.\n"
        )
    return (
        "## Limits\n\nEvery picture gets one of the labels above, also one that shows none of them: predictions below "
        f"a confidence of {meta.thresholds.accept:g} are for people to look at, and below {meta.thresholds.abstain:g} "
        "nothing is claimed. Pictures that differ from those of the training catalog (other cameras, backgrounds, "
        "products) are predicted worse than the measures say.\n"
    )


def _origin(meta: BundleMeta) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in meta.libraries.items())
    return f"## Origin\n\nVersion `{meta.version}`, {meta.created_at or 'time unknown'}. {versions}\n"


def _name(address: str) -> str:
    """An address as a reader elsewhere may see it: of a file of this machine only its name."""
    return address if storage.is_uri(address) else posixpath.basename(address)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]
