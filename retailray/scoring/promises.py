"""The thresholds of ``score.target_precision``, fitted on validation rows that chose nothing else."""

from collections.abc import Sequence

from retailray import events
from retailray.config import ScoreSection
from retailray.errors import ModelError
from retailray.models.products import Combination, held_out_products
from retailray.models.thresholds import Promise, Validation, fit_promise, validation_of


def read_validation(model_uri: str, section: ScoreSection) -> Validation | None:
    """What came of the bundle's validation rows, if it has them. Raises ModelError where they are asked for."""
    found, target = validation_of(model_uri), section.target_precision
    if found is None and target:
        raise ModelError(
            f"score.target_precision = {target}: {model_uri} has no validation rows that a promise could rest on; "
            "train it again with this version, give `retailray bundle` a catalog.uri if it was trained elsewhere, or "
            "leave score.target_precision out"
        )
    return found


def make_promise(section: ScoreSection, validation: Validation | None, *, of: str = "images") -> Promise | None:
    """Fit the thresholds of ``score.target_precision``; None where the bundle's own thresholds hold.

    ``of``: what a row of ``validation`` is, for people: images or products.
    """
    target = section.target_precision
    if not target or not validation:
        return None
    promise = fit_promise(validation, target_precision=target)
    found = promise.summary()
    events.emit("promise", of=of, **found)
    if not found["promised"]:
        events.emit(
            "warning",
            note=f"score.target_precision = {target}: no class reaches it, so no {of} are accepted; a class needs "
            f"at least {promise.needed} products, all predicted right, among the validation rows "
            "held back for thresholds",
        )
    return promise


def make_product_promise(
    section: ScoreSection, validation: Validation | None, labels: Sequence[str], combination: Combination
) -> Promise | None:
    """The same for products: fitted on those of the same validation rows, each with all its images there."""
    if not section.target_precision or not validation:
        return None
    if validation.probabilities is None:
        note = "the bundle is of an earlier version, so nothing can be promised for products: none are accepted"
        events.emit("warning", note=note)
        return Promise(section.target_precision, 0, {})
    return make_promise(section, held_out_products(validation, labels, combination), of="products")
