"""One answer for a product from what a model says of its images.

Every rule adds up something for each image, so that a product may have any number of them:

* ``mean``: the probabilities are averaged; ``weighted_mean``: each image counts by its confidence.
* ``mixture``: an image shows the product with probability 1 - f, and anything else with probability f; the logarithms
  of (1 - f) p + f / C are averaged. With f = 0 these are averages of log-probabilities, in which one image that does
  not belong can overrule all others; the larger f, the less it can do. ``weighted_mixture``: each image counts by its
  confidence.

What comes out is raised to the power of (number of images) ** ``growth`` and normalised: several images say more than
one, but less than as many independent ones. A product with one image has the probabilities of its image. Rule, f and
growth are those under which validation products are most probable.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from retailray.models.meta import EPOCH, TEMPERATURE, THRESHOLDS
from retailray.models.probabilities import spread
from retailray.models.thresholds import Validation

RULES = MEAN, WEIGHTED_MEAN, MIXTURE, WEIGHTED_MIXTURE = ("mean", "weighted_mean", "mixture", "weighted_mixture")
WEIGHTED, LOGARITHMS = (WEIGHTED_MEAN, WEIGHTED_MIXTURE), (MIXTURE, WEIGHTED_MIXTURE)
FOREIGN = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)  # shares that are tried
GROWTH = (-1.0, 2.0)  # bounds
TINY = 1e-6  # of all classes together: a probability of 0 would be a veto
MIN_PRODUCTS = 30  # with several images, fewer say nothing about rules
PUT_TOGETHER = (2, 3, 4)  # images of products that are put together
WITH_FOREIGN = 0.1  # of those with three or more, the share in which one image is of another label
MAX_CELLS = 20_000_000  # products times classes that are held to choose a rule
CELLS = 2_000_000  # images times classes whose probabilities are held at once
Images = Callable[[np.ndarray], np.ndarray]  # of numbers of images, their probabilities (n, C)


@dataclasses.dataclass(frozen=True)
class Combination:
    """How images are combined. ``foreign``: f of a mixture, in 0 to 1. ``growth``: see the module."""

    rule: str = MIXTURE
    foreign: float = 0.0
    growth: float = 0.0

    def told(self) -> str:
        """In a few words, for people."""
        averaged = "mean of log-probabilities" if self.rule in LOGARITHMS else "mean of probabilities"
        weighted = ", weighted by confidence" if self.rule in WEIGHTED else ""
        return averaged + weighted + (f", {self.foreign:.0%} of the images taken for foreign" if self.foreign else "")

    def __call__(self, images: Images, order: np.ndarray, starts: np.ndarray, *, num_classes: int) -> np.ndarray:
        """Combine images product by product.

        Args:
            images: their probabilities. order: int64 ``(N,)``, numbers of images. starts: int64 ``(P,)``, where in
                ``order`` each product begins, ascending from 0.

        Returns:
            float64 ``(P, num_classes)``, rows sum to 1.
        """
        sums = sums_of(images, order, starts, self, num_classes=num_classes)
        counts = np.diff(starts, append=len(order))
        found = _normalised(self.averages(sums), counts, self.growth)
        if (alone := counts == 1).any():  # as it is: no floor, no share of foreign images
            found[alone] = images(order[starts[alone]])
        return found

    def shares(self, probabilities: np.ndarray) -> np.ndarray:
        """What each image adds, float64 ``(N, C + 1)``: of each class, and its weight."""
        images = probabilities.astype(np.float64)
        weights = images.max(1, keepdims=True) if self.rule in WEIGHTED else np.ones((len(images), 1))
        if self.rule in LOGARITHMS:
            num_classes = images.shape[1]
            images = np.log(np.maximum((1 - self.foreign) * images + self.foreign / num_classes, TINY / num_classes))
        return np.concatenate([images * weights, weights], axis=1)

    def averages(self, sums: np.ndarray) -> np.ndarray:
        """Log-probabilities (P, C) of summed shares, before growth; not normalised."""
        means = sums[:, :-1] / sums[:, -1:]
        return means if self.rule in LOGARITHMS else np.log(np.maximum(means, TINY / means.shape[1]))


def _normalised(averages: np.ndarray, counts: np.ndarray, growth: float) -> np.ndarray:
    logits = averages * (counts.astype(float) ** growth)[:, None]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Choice:
    """``combination``: the one under which products are most probable; ``on``: of which products; ``tried``: what each
    rule does on them: ``rule, foreign, told, growth, log_loss, accuracy``."""

    combination: Combination
    on: str
    num_products: int
    tried: Sequence[dict[str, float | str]]

    def summary(self) -> dict[str, object]:
        """For ``run.json`` and ``metrics.json``."""
        return {
            **dataclasses.asdict(self.combination),
            "told": self.combination.told(),
            "chosen_on": self.on,
            "num_products": self.num_products,
            "tried": list(self.tried),
        }


UNCHOSEN = Choice(Combination(foreign=0.1), "nothing: the bundle has no validation rows with probabilities", 0, ())


def choose_for(validation: Validation | None, labels: Sequence[str]) -> Choice:
    """Choose by the validation rows of a bundle that no threshold rests on. ``labels``: the bundle's."""
    if validation is None or validation.probabilities is None:
        return UNCHOSEN
    rows = validation.of_role(EPOCH, TEMPERATURE)
    images = _images_of(rows, len(labels))
    return choose_combination(images, _numbers(rows.labels, labels), rows.groups, num_classes=len(labels))


def held_out_products(validation: Validation, labels: Sequence[str], combination: Combination) -> Validation:
    """What comes of the products of those validation rows that thresholds rest on: a row for each."""
    rows = validation.of_role(THRESHOLDS)
    order, starts = grouped(rows.groups)
    if not len(starts):
        return rows
    found = combination(_images_of(rows, len(labels)), order, starts, num_classes=len(labels))
    names = np.array(labels, object)
    truth = majority(_numbers(rows.labels, labels)[order], starts)
    groups, roles = rows.groups[order][starts], rows.roles[order][starts]
    return Validation(names[truth], names[found.argmax(1)], found.max(1), groups, roles)


def _images_of(rows: Validation, num_classes: int) -> Images:
    assert rows.classes is not None
    assert rows.probabilities is not None
    return images_of(rows.classes, rows.probabilities, num_classes)


def images_of(classes: np.ndarray, probabilities: np.ndarray, num_classes: int) -> Images:
    """Look the probabilities of all classes up, of some of the images whose most probable ones ``(N, K)`` are kept."""
    return lambda numbers: spread(classes[numbers], probabilities[numbers], num_classes)


def _numbers(names: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[name] for name in names.tolist()], np.int64)


def choose_combination(
    images: Images, labels: np.ndarray, products: np.ndarray, *, num_classes: int, seed: int = 0
) -> Choice:
    """Choose by validation images: by their products, or where too few have several images, by products that are put
    together of images with one label.

    Args:
        images: calibrated probabilities of N images. labels: int64 ``(N,)``, theirs. products: names ``(N,)``, object.
    """
    order, starts = grouped(products)
    several = np.diff(starts, append=len(order)) > 1
    on = "validation products with several images"
    if several.sum() < MIN_PRODUCTS:
        order, starts = _put_together(labels, seed)
        on = (
            "products put together of validation images with one label (one in ten has an image of another), since "
            "too few have several images"
        )
    else:
        order, starts = _only(order, starts, several)
    if len(starts) < MIN_PRODUCTS:
        return dataclasses.replace(UNCHOSEN, on=f"nothing: fewer than {MIN_PRODUCTS} products could be looked at")
    most = max(MIN_PRODUCTS, MAX_CELLS // num_classes)
    if len(starts) > most:
        keep = np.zeros(len(starts), bool)
        keep[np.linspace(0, len(starts) - 1, most).astype(int)] = True
        order, starts = _only(order, starts, keep)
    tried = [_fitted(images, labels, order, starts, one, num_classes) for one in _candidates()]
    best = min(tried, key=lambda row: float(row["log_loss"]))
    chosen = Combination(*(best[name] for name in ("rule", "foreign", "growth")))  # type: ignore[arg-type]
    return Choice(chosen, on, len(starts), tried)


def _candidates() -> list[Combination]:
    return [
        *(Combination(rule) for rule in (MEAN, WEIGHTED_MEAN)),
        *(Combination(rule, share) for rule in LOGARITHMS for share in FOREIGN),
    ]


def grouped(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows product by product, int64 ``(N,)``, and where each product begins in them, ``(P,)``."""
    _, numbers = np.unique(products.astype(object), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return order, np.flatnonzero(np.diff(numbers[order], prepend=-1))


def _only(order: np.ndarray, starts: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, of some products."""
    counts = np.diff(starts, append=len(order))
    rows = np.repeat(keep, counts)
    return order[rows], np.cumsum(counts[keep]) - counts[keep]


def _put_together(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Products of two to four images of a label, each image in one of them; what is left over is in none. In some, an
    image is replaced by one of another label."""
    generator = np.random.default_rng(seed)
    order: list[int] = []
    starts: list[int] = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        while len(rows) >= PUT_TOGETHER[0]:
            size = min(int(generator.choice(PUT_TOGETHER)), len(rows))
            starts.append(len(order))
            order += rows[:size].tolist()
            rows = rows[size:]
            others = np.flatnonzero(labels != label)
            if size >= 3 and len(others) and generator.random() < WITH_FOREIGN:
                order[-1] = int(generator.choice(others))
    return np.array(order, np.int64), np.array(starts, np.int64)


def _fitted(
    images: Images, labels: np.ndarray, order: np.ndarray, starts: np.ndarray, one: Combination, num_classes: int
) -> dict[str, float | str]:
    """With the growth under which the products' labels are most probable. A product has the label of most images."""
    import scipy.optimize  # half a second, and only this wants it

    counts = np.diff(starts, append=len(order))
    truth = majority(labels[order], starts)
    averages = one.averages(sums_of(images, order, starts, one, num_classes=num_classes))

    @functools.cache
    def loss(growth: float) -> float:
        found = _normalised(averages, counts, growth)[np.arange(len(truth)), truth]
        return float(-np.log(np.maximum(found, TINY)).mean())

    found = scipy.optimize.minimize_scalar(loss, bounds=GROWTH, method="bounded", options={"xatol": 1e-3})
    right = averages.argmax(1) == truth
    return {
        "rule": one.rule,
        "foreign": one.foreign,
        "told": one.told(),
        "growth": round(float(found.x), 4),
        "log_loss": float(found.fun),
        "accuracy": float(right.mean()),
    }


def sums_of(images: Images, order: np.ndarray, starts: np.ndarray, one: Combination, *, num_classes: int) -> np.ndarray:
    """Summed shares ``(P, num_classes + 1)`` of products, some images at a time."""
    products = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    sums = np.zeros((len(starts), num_classes + 1))
    at_once = max(64, CELLS // num_classes)
    for at in range(0, len(order), at_once):
        mine = products[at : at + at_once]
        first = np.flatnonzero(np.diff(mine, prepend=-1))
        sums[mine[first]] += np.add.reduceat(one.shares(images(order[at : at + at_once])), first, axis=0)
    return sums


def majority(labels: np.ndarray, starts: np.ndarray, *, ignoring: int | None = None) -> np.ndarray:
    """The most frequent label of each product, the smallest of equally frequent ones; ``ignoring`` one, where there is
    another."""
    found = []
    for part in np.split(labels, starts[1:]):
        counts = np.bincount(part)
        if ignoring is not None and counts[ignoring : ignoring + 1].sum() < len(part):
            counts[ignoring : ignoring + 1] = 0
        found.append(counts.argmax())
    return np.array(found, np.int64)
