import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import InvalidRequest
from qraf.times import EARLIEST, LATEST, format_time, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t00:00:01z", 1.0),
        ("2023-05-07T14:00:00+02:00", 1683460800.0),
        ("2023-05-07 12:00:00.25Z", 1683460800.25),
        ("2023-05-07", 1683417600.0),
        ("1969-12-31T23:59:59.5Z", -0.5),
        ("2016-12-31T23:59:60Z", 1483228800.0),
        ("0001-01-01T00:00:00Z", EARLIEST),
    ],
)
def test_rfc_3339_becomes_seconds(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "bad",
    [
        "yesterday",
        "",
        "2023-05-07T12:00:00",  # no offset
        "2023-02-30",
        "2023-05-07T25:00:00Z",
        "2023-05-07T12:00:00+24:00",
        "20230507T120000Z",
        "2023-W19-7",
        "٢٠٢٣-٠٥-٠٧",
        "0001-01-01T00:00:00+01:00",
        float("nan"),
        float("inf"),
        LATEST,
        True,
        None,
        [],
    ],
)
def test_what_is_no_time_is_refused_with_its_place(bad):
    with pytest.raises(InvalidRequest) as caught:
        parse_time(bad, "/items/3/at")
    assert caught.value.pointer == "/items/3/at"


@given(st.floats(EARLIEST, LATEST - 1))
def test_times_round_trip_to_the_microsecond(seconds):
    assert parse_time(format_time(seconds)) == pytest.approx(seconds, abs=2e-5 if abs(seconds) > 1e10 else 1e-6)


def test_times_go_out_in_utc_without_trailing_zeros():
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(1683460800.5) == "2023-05-07T12:00:00.5Z"
    assert format_time(-0.25) == "1969-12-31T23:59:59.75Z"
    assert format_time(0.9999999) == "1970-01-01T00:00:01Z"
