"""Build numbered records and canned sink answers in one line each."""

from otel_cbtop_exporter.sinks.base import Record, Rejection, WriteResult


def records(count, *, lane="", size=0, start=0):
    """Make numbered records whose bodies are at least `size` bytes long."""
    return [
        Record(body=b"%d" % (start + n) + b"x" * max(0, size - len(b"%d" % (start + n))), lane=lane)
        for n in range(count)
    ]


def away(batch):
    """Answer that the destination cannot be reached."""
    return WriteResult(kept=batch, error="connection refused", error_type="ConnectionRefusedError")


def busy(seconds):
    """Answer that the destination asks the client to wait."""
    return lambda batch: WriteResult(
        kept=batch, error="429 Too Many Requests", error_type="429", retry_after_seconds=seconds
    )


def broken(batch):
    """Answer that the destination failed on the batch with a server error."""
    return WriteResult(kept=batch, error="500 Internal Server Error", error_type="500")


def broken_by(bad):
    """Answer with a server error if the batch holds any of the `bad` records."""
    return lambda batch: broken(batch) if set(batch) & set(bad) else WriteResult(delivered=batch)


def refused_for(bad, reason="invalid"):
    """Refuse the whole batch, asking for a split, if it holds any of the `bad` records."""

    def answer(batch):
        if not set(batch) & set(bad):
            return WriteResult(delivered=batch)
        return WriteResult(
            kept=batch, error="400", error_type="400", split_reason=reason, split_detail="why"
        )

    return answer


def too_large_over(events):
    """Refuse a batch of more than `events` records as too large."""

    def answer(batch):
        if len(batch) <= events:
            return WriteResult(delivered=batch)
        return WriteResult(kept=batch, error="413", error_type="413", split_reason="too_large")

    return answer


def named(bad):
    """Reject exactly the `bad` records by name, and take the others."""

    def answer(batch):
        return WriteResult(
            delivered=[r for r in batch if r not in bad],
            rejected=[Rejection(r, "invalid") for r in batch if r in bad],
            error="422",
            error_type="422",
        )

    return answer
