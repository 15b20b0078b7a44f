"""How long delivery waits before it tries again."""

import time

from hypothesis import given
from hypothesis import strategies as st

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.retry import next_delay_seconds
from otel_cbtop_exporter.sinks.base import parse_retry_after

# Wed, 21 Oct 2015 07:28:00 GMT
NOW = 1_445_412_480.0


def test_the_bound_doubles_from_try_to_try():
    """By default the bound doubles from try to try: 100, 200 and 400 milliseconds before jitter."""
    assert [RetryConfig().delay_for_attempt(n) for n in (0, 1, 2)] == [100, 200, 400]


@given(
    attempt=st.integers(0, 10**6),
    multiplier=st.floats(1, 1e6),
    initial=st.integers(1, 86_400_000),
    maximum=st.integers(1, 86_400_000),
)
def test_no_bound_is_above_the_maximum(attempt, multiplier, initial, maximum):
    """For any number of tries the bound is positive and at most the maximum."""
    retry = RetryConfig(multiplier=multiplier, initial_delay_ms=initial, max_delay_ms=maximum)
    assert 0 < retry.delay_for_attempt(attempt) <= maximum


def test_jitter_spreads_waits_over_the_whole_bound():
    """Full jitter spreads the wait from zero to the bound."""
    delays = [
        next_delay_seconds(2, RetryConfig(), asked_seconds=None, jitter=jitter)
        for jitter in (0.0, 0.5, 0.75)
    ]
    assert delays == [0.0, 0.2, 0.3]


def test_a_longer_wish_of_the_sink_wins():
    """A Retry-After that is longer than our own wait is respected."""
    assert next_delay_seconds(0, RetryConfig(), asked_seconds=30.0, jitter=0.5) == 30.0


def test_a_shorter_wish_of_the_sink_does_not_win():
    """A Retry-After that is shorter than our own wait is ignored.

    A sink cannot make us hammer it.
    """
    assert next_delay_seconds(2, RetryConfig(), asked_seconds=0.0, jitter=0.5) == 0.2


def test_retry_after_is_seconds_or_a_date():
    """Both forms of Retry-After, seconds and an HTTP date, are parsed to seconds from now."""
    assert parse_retry_after(" 7 ", NOW) == 7.0
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:30 GMT", NOW) == 30.0


def test_every_form_of_an_http_date_is_in_gmt(monkeypatch):
    """All three HTTP date formats are read as GMT, whatever the local time zone.

    One of the obsolete formats names no zone.
    """
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for text in (
            "Wed, 21 Oct 2015 07:28:30 GMT",
            "Wednesday, 21-Oct-15 07:28:30 GMT",
            "Wed Oct 21 07:28:30 2015",
        ):
            assert parse_retry_after(text, NOW) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_retry_after_in_the_past_is_now():
    """A date in the past asks for no wait."""
    assert parse_retry_after("Wed, 21 Oct 2015 07:00:00 GMT", NOW) == 0.0


def test_a_retry_after_is_never_over_an_hour():
    """A Retry-After is capped at an hour: a wrong value must not stop delivery for a day."""
    assert parse_retry_after("Wed, 21 Oct 2099 07:28:00 GMT", NOW) == 3600.0
    assert parse_retry_after("9" * 400, NOW) == 3600.0


def test_an_unreadable_retry_after_is_none():
    """A Retry-After that cannot be parsed is ignored."""
    for text in (None, "", "soon", "-1", "1.5", "1e3", "٣", "21 Oct 99999", "Wed, 99 Oct 2015"):
        assert parse_retry_after(text, NOW) is None
