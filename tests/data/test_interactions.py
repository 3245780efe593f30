"""Times and ids of purchases as people have them."""

import zoneinfo

import pyarrow as pa
import pytest

from retailray.data.interactions import seconds_of
from retailray.data.names import Names

ZONE = zoneinfo.ZoneInfo("Europe/Stockholm")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2025-01-01", "20250102", "0"], ["2025-01-01T00:00:00", "2025-01-02T00:00:00", None]),
        (["2025-07-01 10:00:00+01", "2025-01-01 10:00:00"], ["2025-07-01T11:00:00", "2025-01-01T10:00:00"]),
        (["2025-01-01T10:00:00z", "2025-07-01T10:00:00+0000"], ["2025-01-01T11:00:00", "2025-07-01T12:00:00"]),
        (["2025-01-01T10:00:00-05:00", "soon", ""], ["2025-01-01T16:00:00", None, None]),
        (["1735729200", "1735729200000"], ["2025-01-01T12:00:00", "2025-01-01T12:00:00"]),
    ],
)
def test_each_time_is_read_by_itself(texts, expected):
    """Kind of fault: one odd value in a column makes others unreadable, or puts them into another time zone."""
    seconds, good = seconds_of(pa.chunked_array([texts]), ZONE)
    found = [str(one) if known else None for one, known in zip(seconds.astype("datetime64[s]"), good, strict=True)]
    assert found == expected


def test_integers_of_any_length_stay_integers():
    names = Names()
    names.encode(pa.chunked_array([[1234567890123456789, 5]]), untyped=False)
    assert names.array().type == pa.int64()
    assert names.array().to_pylist() == [1234567890123456789, 5]
    texts = Names()
    texts.encode(pa.chunked_array([["007", "8"]]), untyped=True)
    assert texts.array().to_pylist() == ["007", "8"]
