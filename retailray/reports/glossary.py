"""What the words of the reports mean, in one sentence each."""

import re

from markupsafe import Markup, escape

GLOSSARY = {
    "top-1": "Share of rows whose most probable label is the right one.",
    "top-5": "Share of rows whose right label is among the five most probable ones.",
    "macro F1": "Mean of F1 over labels: every label counts as much, however few rows it has.",
    "F1": "Harmonic mean of precision and recall.",
    "precision": "Of the rows that are given a label, the share that has it.",
    "recall": "Of the rows that have a label, the share that is given it; of purchases, the share recommended.",
    "NDCG": "How much of what was bought is recommended, the first places counting more; at best 1.",
    "coverage": "Share of all products that are recommended; of forecasts, of the sales within their interval.",
    "novelty": "How little one expects the recommended products in a basket: -log2 of their share of all purchases.",
    "mean absolute error": "How far predictions are from the true values, on average, in the unit of these.",
    "WAPE": "Sum of absolute errors by sum of absolute true values.",
    "within the interval": "Share of the true values that lie between the lower and the upper end of a prediction.",
    "expected calibration error": "Mean distance between confidence and accuracy, over ten ranges of confidence.",
    "confidence": "The model's probability for the label that it predicts, after temperature scaling.",
    "95 % interval": "Where the value lies in 95 of 100 draws of other products (bootstrap over products).",
    "population stability index": "How far two distributions are apart: below 0.1 stable, from 0.25 on much change.",
    "Jensen-Shannon distance": "How far two distributions are apart, from 0 (equal) to 1.",
    "scored": "Rows whose image was looked at by the model in this run.",
    "reused": "Rows whose image and model have not changed: their earlier prediction is published again.",
    "failed": "Rows whose image cannot be read, or makes the model fail; the errors table has the reasons.",
    "accepted": "Predictions sure enough to be used without a person.",
    "to review": "Predictions that a person should look at: unsure ones, and those where the model abstains.",
    "exact duplicates": "Groups of images with the same bytes or the same pixels.",
    "near duplicates": "Groups of images whose perceptual hashes differ in a few bits.",
    "groups in several splits": "Equal or nearly equal images of which some train the model and others test it.",
    "utilisation": "Share of the time in which the processes of a stage were at work.",
    "validation loss": "Cross-entropy on rows that the model is not trained on: lower is better.",
    "validation top-1": "Share of validation rows whose most probable label is the right one.",
    "train loss": "Cross-entropy on the training rows, as augmented, while the epoch runs.",
    "best epoch": "The epoch whose model is kept, by train.metric on validation rows.",
    "difference": "Of the two shares, in percentage points.",
    "between seeds": "Standard deviation of top-1 over fits that differ in their random seed alone.",
    "p, adjusted": "The p-value after Holm's correction for testing all pairs.",
    "parameters": "Numbers in the model that training sets.",
    "images/s": "Images a second.",
    "trial": "One fit of a search, with settings of its own.",
    "stopped early": "Trials that the scheduler ended because others were better after as many epochs.",
}
_ORDER = sorted(GLOSSARY, key=len, reverse=True)  # macro F1 before F1
_WORDS = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in _ORDER))


def linked(text: str, used: set[str]) -> str:
    """HTML text without tags, its first known word as a link to its meaning; ``used`` gets the word."""
    found = _WORDS.search(text)
    if not found:
        return text
    word = found[0]
    used.add(word)
    link = f'<a class="term" href="#{anchor(word)}" title="{escape(GLOSSARY[word])}">{word}</a>'
    return text[: found.start()] + link + text[found.end() :]


def definitions(used: set[str]) -> Markup:
    """A section with the meanings of words, in alphabetical order; nothing without words."""
    if not used:
        return Markup()
    rows = "".join(
        f'<dt id="{anchor(word)}">{word}</dt><dd>{escape(GLOSSARY[word])}</dd>' for word in sorted(used, key=str.lower)
    )
    return Markup(f'<section class="words"><h2>What the numbers mean</h2><dl>{rows}</dl></section>')


def anchor(word: str) -> str:
    return "means-" + re.sub(r"\W+", "-", word.lower()).strip("-")
