"""CSV that people open in a spreadsheet."""

import re

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_text(frame: pd.DataFrame, *, index: bool = False) -> str:
    """CSV in which no text is a formula to a spreadsheet: those that would be begin with an apostrophe.

    :func:`without_apostrophe` is the reverse.
    """

    frame = frame.rename(columns=safe_text, index=safe_text) if index else frame.rename(columns=safe_text)
    texts = frame.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    return frame.assign(**{name: frame[name].map(safe_text) for name in texts}).to_csv(index=index)


def safe_text(value: object) -> object:
    """A value of a cell; text that would be a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def without_apostrophe(text: str) -> str:
    """The text that :func:`csv_text`, and the review page, wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
