"""Which method is best on the latest purchases: each recommends as of earlier days, measured on what followed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from retailray.errors import ConfigError
from retailray.recommendation.histories import Histories, Purchases, histories
from retailray.recommendation.measures import Tally, best, interval, measure, new_tally, summary, value_of
from retailray.recommendation.methods import Methods, Scores, fit_methods
from retailray.recommendation.ranker import Examples, Ranker, candidates, features, fit_ranker

DAYS = 4  # on which methods are measured, one horizon apart
MEASURED = 4_000  # shoppers, at most
CHANCE = 1e-6  # of the best score
BLOCK = 256  # shoppers at once
MIN_SHOPPERS = 20  # who bought something afterwards
SIMPLEST = {True: "own_purchases_ever", False: "popularity_ever"}  # by recommend.repeat
UNMEASURED = {True: "own_and_neighbours", False: "neighbours_ever"}  # where nothing could be measured
VARIANTS = {"own_purchases": "own_purchases_112", "popularity": "popularity_28", "neighbours": "neighbours_ever"}
Popularity = Callable[[float], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What methods are chosen for. ``horizon``: days that a recommendation is for; ``k``: recommended products."""

    horizon: int
    k: int
    repeat: bool
    method: str
    threads: int
    seed: int

    @property
    def of_ranker(self) -> dict[str, Any]:
        return {"repeat": self.repeat, "threads": self.threads, "seed": self.seed}

    @property
    def group(self) -> str:
        return "all" if self.repeat else "new"


@dataclasses.dataclass(frozen=True)
class Choice:
    """``method``: the name of one of :meth:`Methods.scores`, or ranker; ``ranker``: where it was chosen; ``measured``:
    summary of each method; ``note``: what to say of it."""

    method: str
    ranker: Ranker | None
    measured: dict[str, dict[str, Any]]
    days: list[float]
    note: str
    gain: tuple[float, tuple[float, float] | None] | None


def choose(
    reference: Purchases, popularity: Popularity, as_of: float, setting: Setting, *, pictures: np.ndarray | None
) -> Choice:
    """Measure all methods on the last horizons before ``as_of`` [days since 1970].

    Args:
        reference: all purchases of a sample of shoppers in random order. popularity: of all shoppers, by day.
    """
    days = [as_of - back * setting.horizon for back in range(DAYS, 0, -1)]
    begun = [day for day in days if len(reference.between(-np.inf, day).day)]
    tallies: dict[str, Tally] = {}
    # the first of several days only teaches the ranker, which knows no day after the one it is measured on
    teaching: dict[str, Tally] = {}
    looked_at = [
        _look(reference, popularity(day), day, setting, tallies if number or len(begun) == 1 else teaching, pictures)
        for number, day in enumerate(begun)
    ]
    examples = [one.examples for one in looked_at]
    if len(looked_at) > 1 and setting.method in ("auto", "ranker"):
        for number, one in enumerate(looked_at[1:], 1):
            ranker = fit_ranker(examples[:number], num_seeds=1, **setting.of_ranker)
            if ranker is not None:
                one.measure_ranker(ranker, tallies, setting)
    measured_on = begun[1:] or begun
    if max((one.num_buyers for one in looked_at[1:] or looked_at), default=0) < MIN_SHOPPERS:
        if setting.method == "content" and pictures is None:
            raise ConfigError(["recommend.method = content: it needs embeddings.uri"])
        fixed = setting.method not in ("auto", "ranker", "als")
        wanted = setting.method if fixed else UNMEASURED[setting.repeat]
        note = f"too little to compare methods: fewer than {MIN_SHOPPERS} shoppers bought before a day and after it"
        return Choice(_variant(wanted, tallies, None), None, {}, measured_on, note, None)
    num_products = max(one.num_sold for one in looked_at)
    measured = {name: summary(tally, num_products) for name, tally in tallies.items()}
    chosen = _variant(setting.method, tallies, setting.group)
    ranker = fit_ranker(examples, **setting.of_ranker) if chosen == "ranker" else None
    gain = value_of(tallies[chosen], setting.group) - value_of(tallies[SIMPLEST[setting.repeat]], setting.group)
    return Choice(chosen, ranker, measured, measured_on, "", (float(np.nanmean(gain)), interval(gain)))


def _variant(method: str, tallies: dict[str, Tally], group: str | None) -> str:
    """The best of all methods (auto) or of the variants of one. Raises ConfigError where it could not be tried."""
    names = [name for name in tallies if method == "auto" or name == method or name.startswith(f"{method}_")]
    names = [name for name in names if method in ("own_and_neighbours", "auto") or name != "own_and_neighbours"]
    if group is None:
        return VARIANTS.get(method, method)
    if not names:
        why = "it needs embeddings.uri" if method == "content" else "there is too little to fit"
        raise ConfigError([f"recommend.method = {method}: {why}"])
    return max(names, key=lambda name: np.nan_to_num(np.nanmean(value_of(tallies[name], group)), nan=-1.0))


class _Look:
    """One day: candidates with their features and what was bought, and what is needed to measure the ranker."""

    def __init__(self, methods: Methods, num_shoppers: int, *, repeat: bool) -> None:
        self.repeat = repeat
        self.sold, self.shape = methods.sold, (num_shoppers, methods.num_products)
        self.rarity = _bits(methods)
        self.unsold = np.zeros_like(self.sold) if methods.pictures is None else ~self.sold & methods.pictures.any(1)
        # who knows nothing of a product may not profit from the order of the table, in which what is sold next is next
        self.chance = np.random.default_rng(0).random(methods.num_products).astype(np.float32) * CHANCE
        self.examples = Examples()
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # first row, pairs, features
        self.truths: list[sp.csr_matrix] = []
        self.bought: list[sp.csr_matrix] = []
        self.num_buyers = 0

    @property
    def num_sold(self) -> int:
        return int(self.sold.sum())

    def take(self, past: Histories, methods: Methods, scores: Scores, truth: np.ndarray) -> None:
        """A block of shoppers."""
        row, product = candidates(past, scores, self.sold, repeat=self.repeat)
        values = features(past, methods, scores, row, product)
        self.examples.add(row, values, truth[row, product])
        self.parts.append((row, product, values))
        self.truths.append(sp.csr_matrix(truth))
        self.bought.append(sp.csr_matrix(past.bought()))

    def measure_ranker(self, ranker: Ranker, tallies: dict[str, Tally], setting: Setting) -> None:
        tally = tallies.setdefault("ranker", new_tally(self.shape[1]))
        found = []
        for (row, product, values), truth, bought in zip(self.parts, self.truths, self.bought, strict=True):
            scores = np.full(truth.shape, -np.inf, np.float32)
            if len(row):
                scores[row, product] = ranker(values)
            found.append(_measured(scores, truth.toarray(), bought.toarray(), self, tally, setting))
        _append(tally, found)


def _look(  # many because a day is looked at with all that is known
    reference: Purchases,
    popularity: dict[str, np.ndarray],
    day: float,
    setting: Setting,
    tallies: dict[str, Tally],
    pictures: np.ndarray | None,
) -> _Look:
    methods = fit_methods(reference, popularity, day, pictures=pictures)
    num = min(MEASURED, reference.num_shoppers)
    look = _Look(methods, num, repeat=setting.repeat)
    found: dict[str, list[Any]] = {}
    for rows, block in _blocks(reference, num):
        past = histories(block, methods.num_products, day)
        truth = np.zeros((block.num_shoppers, methods.num_products), bool)
        after = block.between(day, day + setting.horizon)
        truth[after.owner, after.product] = True
        truth[~past.baskets.astype(bool)] = False  # of those who had bought nothing yet nothing is known
        scores = methods.scores(past, rows)
        bought = past.bought()
        of_group = look.sold if setting.repeat else look.sold & ~bought
        look.num_buyers += int((truth & of_group).any(1).sum())
        for name, values in scores.items():
            tally = tallies.setdefault(name, new_tally(methods.num_products))
            found.setdefault(name, []).append(_measured(values, truth, bought, look, tally, setting))
        look.take(past, methods, scores, truth)
    for name, parts in found.items():
        _append(tallies[name], parts)
    return look


def _blocks(reference: Purchases, num: int) -> Iterator[tuple[np.ndarray, Purchases]]:
    """Some shoppers at a time, and which they are."""
    for first in range(0, num, BLOCK):
        rows = np.arange(first, min(first + BLOCK, num))
        low, high = np.searchsorted(reference.owner, [rows[0], rows[-1] + 1])
        product, day, basket = (one[low:high] for one in (reference.product, reference.day, reference.basket))
        yield rows, Purchases(reference.owner[low:high] - first, product, day, basket, len(rows))


def _bits(methods: Methods) -> np.ndarray:
    """How little one expects a product in a basket of all, float32 ``(I,)``."""
    ever = methods.popularity["ever"]
    return -np.log2(np.maximum(ever, 1) / max(1.0, float(ever.sum())))


def _measured(  # many because a measure needs all of these
    scores: np.ndarray, truth: np.ndarray, bought: np.ndarray, look: _Look, tally: Tally, setting: Setting
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Recall and NDCG by group of products."""
    found = {}
    for group, mask in {"all": look.sold, "new": look.sold & ~bought, "unsold": look.unsold}.items():
        values = np.maximum(scores, -1) + look.chance if group == "unsold" else scores
        recommended = best(np.where(mask, values, -np.inf), setting.k)
        found[group] = measure(recommended, truth & mask)
        if group == setting.group:
            there = recommended[recommended >= 0]
            np.add.at(tally.recommended, there, 1)
            tally.surprise.append(look.rarity[there])
    return found


def _append(tally: Tally, parts: list[dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    for group in tally.recall:
        recall, ndcg = (np.concatenate(column) for column in zip(*(part[group] for part in parts), strict=True))
        tally.recall[group].append(recall)
        tally.ndcg[group].append(ndcg)
