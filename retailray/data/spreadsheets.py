"""CSV that people open in a spreadsheet."""

import re

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_text(frame: pd.DataFrame, *, index: bool = False) -> str:
    """CSV in which no text is a formula to a spreadsheet: those that would be begin with an apostrophe.

    :func:`without_apostrophe` is the reverse.
    """

    def safe(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    frame = frame.rename(columns=safe, index=safe) if index else frame.rename(columns=safe)
    texts = frame.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    return frame.assign(**{name: frame[name].map(safe) for name in texts}).to_csv(index=index)


def without_apostrophe(text: str) -> str:
    """The text that :func:`csv_text`, and the review page, wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
