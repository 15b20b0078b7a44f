"""The search for records that break their server, in a batch whose other records would pass."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from otel_cbtop_exporter.delivery.sender import Sent
from otel_cbtop_exporter.sinks.base import Record, Rejection

__all__ = ["broke_server", "search"]

# If so many pieces have failed and none has passed, it is the server and not a record.
_PIECES_BEFORE_GIVING_UP = 16  # halving 4,000 records down to one takes 12
# How often one search tries a record that is left alone.
_TRIES_ALONE = 2
# A record is blamed after it has broken the server, sent alone, in so many searches. Between two
# searches other batches are tried and waited for: a server that is short of something takes one
# batch and refuses the next, for seconds.
_SEARCHES_BEFORE_BLAME = 3
# A proxy, or a server that restarts, answers 502, 503 or 504 to anything. Other 5xx are about the
# data.
_AWAY_STATUSES = ("502", "503", "504")


def search(
    records: Sequence[Record],
    attempt: Callable[[Sequence[Record]], Sent],
    is_over: Callable[[], bool],
    suspects: Counter[Record],
) -> Sent:
    """Halve records until those that break the server are alone, provided that others pass.

    If none passes, the server itself is broken, and all records are kept. Records that are still
    untried once something is settled and the time is over are kept too.

    Args:
        records: Of one lane.
        attempt: Tries some of them once.
        is_over: Returns whether the time is over.
        suspects: By record, in how many searches it broke the server when it was sent alone.
            Updated here; a record that has done so often enough is rejected.
    """
    total = Sent()
    alone = [record for record in records if record in suspects]
    pieces = deque(_halves([record for record in records if record not in suspects]))
    # If all records are suspects, nothing else can pass: others did in the searches before.
    is_known = not pieces
    broken = 0
    while pieces and not ((total.delivered or total.rejected) and is_over()):
        sent = attempt(pieces.popleft())
        total.add(sent)
        if not sent.kept:
            continue
        broken += 1
        gives_up = not total.delivered and broken >= _PIECES_BEFORE_GIVING_UP
        if gives_up or not broke_server(sent):
            break
        if len(sent.kept) == 1:
            alone += sent.kept
        else:
            # Try the front half next and the back half last. With pieces of one size, a few
            # scattered bad records could be in every one; of neighbours, all could be bad.
            front, *back = _halves(sent.kept)
            pieces.appendleft(front)
            pieces.extend(back)
    for record, times in Counter(alone).items():
        if (is_known or total.delivered) and _breaks_alone(total, record, attempt):
            suspects[record] += 1
            if suspects[record] >= _SEARCHES_BEFORE_BLAME:
                total.rejected += [Rejection(record, "server_error", total.error)] * times
    total.kept = total.left_of(records)
    return total


def _breaks_alone(total: Sent, record: Record, attempt: Callable[[Sequence[Record]], Sent]) -> bool:
    for _ in range(_TRIES_ALONE):
        sent = attempt([record])
        total.add(sent)
        if not sent.kept or not broke_server(sent):
            return False
    return True


def broke_server(sent: Sent) -> bool:
    """Whether the server failed because of what it was sent, and not as a whole."""
    status = sent.error_type
    return len(status) == 3 and status.startswith("5") and status not in _AWAY_STATUSES


def _halves(records: Sequence[Record]) -> list[Sequence[Record]]:
    middle = len(records) // 2
    return [half for half in (records[:middle], records[middle:]) if half]
