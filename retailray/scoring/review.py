"""The review queue: rows that people should look at, the most useful first."""

import json
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from retailray.models.meta import BundleMeta
from retailray.runs import RunDirectory
from retailray.scoring.drift import OutlierModel
from retailray.scoring.ledger import PUBLISHED, Ledger

# what a reason adds to 1 - confidence
WEIGHTS = {"changed": 0.5, "unusual": 0.5, "outdated": 0.5, "differs": 0.5}
REASONS = {
    "uncertain": "the model is not sure",
    "changed": "its label changed since the previous run",
    "unusual": "unlike the pictures that the model knows",
    "outdated": "the picture changed since a person corrected it",
    "differs": "it shows something else than the other pictures of its product",
}
_LABEL_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <Text name="reasons" value="$why"/>
  <Choices name="label" toName="image" choice="single" showInline="true">
{choices}  </Choices>
</View>
"""


def make_queue(ledger: Ledger, outliers: OutlierModel | None, *, limit: int) -> list[dict[str, object]]:
    """Return at most ``limit`` rows, the most useful first, without those that people have corrected.

    Of a product whose own label is doubtful there is one row, its best image, for uncertainty: what a person says of it
    holds for the product.

    Keys: ``item_id, image`` (its address), ``sha256, pred_label, pred_score, topk_labels, topk_scores, decision,
    catalog_label, label_before`` (None if there was none), ``product``, ``product_label`` and ``product_decision``
    (where the catalog has products), ``review_priority`` and ``reasons``: keys of :data:`REASONS`.
    """
    unusual = f"({outliers.sql('f.embedding')}) > {outliers.limit!r}" if outliers else "false"
    has_products = ledger.one("select count(*) from products") > 0
    weighed = " + ".join(f"{weight} * {name}::int" for name, weight in WEIGHTS.items())
    found = ledger.table(
        f"""
        with candidates as (
            select f.row_id, f.id as item_id, f.uri as image, f.sha256, f.model_label as pred_label,
                f.model_score as pred_score, f.topk_labels, f.topk_scores, f.decision, f.label as catalog_label,
                k.pred_label as label_before, p.product, p.label as product_label, p.decision as product_decision,
                coalesce(p.decision, f.decision) <> 'accept' and coalesce(p.best, f.row_id) = f.row_id as uncertain,
                coalesce(p.decision = 'accept' and f.decision = 'accept' and p.label <> f.model_label
                    and not f.is_ancestor, false) as differs,
                coalesce(k.pred_label <> f.model_label, false) as changed, coalesce({unusual}, false) as unusual,
                f.outdated
            from row_results f left join (select uri, pred_label from known where origin = {PUBLISHED}) k using (uri)
            left join products p on p.product = f.product
            where f.code = '' and f.corrected_in is null
        )
        select *, 1 - pred_score + {weighed} as review_priority from candidates
        where {" or ".join(REASONS)}
        order by review_priority desc, row_id limit {limit}
        """
    ).to_pylist()
    left_out = (*REASONS, "row_id", *(() if has_products else ("product", "product_label", "product_decision")))
    return [
        {name: value for name, value in row.items() if name not in left_out}
        | {"reasons": [name for name in REASONS if row[name]]}
        for row in found
    ]


def write_queue(run: RunDirectory, queue: Sequence[dict[str, object]], meta: BundleMeta) -> None:
    """Write ``review/queue.jsonl``, one Label Studio task per line, the same as ``review/label_studio.json``, since its
    upload takes no JSONL, and ``review/label_config.xml``, its project's."""
    model = f"{meta.name}/{meta.version}"
    tasks = [json.dumps(_task(row, run.run_id, model), ensure_ascii=False) for row in queue]
    run.write("review/queue.jsonl", "".join(f"{task}\n" for task in tasks))
    run.write("review/label_studio.json", "[\n" + ",\n".join(tasks) + "\n]\n")
    choices = "".join(f"    <Choice value={quoteattr(label)}/>\n" for label in meta.labels)
    run.write("review/label_config.xml", _LABEL_CONFIG.format(choices=choices))


def _task(row: dict[str, Any], run_id: str, model: str) -> dict[str, object]:
    choice = {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [row["pred_label"]]},
    }
    why = "; ".join(REASONS[name] for name in row["reasons"])
    data = row | {"why": why, "run_id": run_id, "model": model}
    return {
        "data": data,
        "predictions": [{"model_version": model, "score": row["pred_score"], "result": [choice]}],
    }
