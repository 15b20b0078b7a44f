"""Print at the end of the session what became of the records in every run."""

from tests.faults.runs import REPORTS


def pytest_terminal_summary(terminalreporter):
    """Print the totals of every run, because they show more than whether something was lost."""
    if REPORTS:
        terminalreporter.section("faults: what became of the records")
        for report in REPORTS:
            terminalreporter.write_line(report)
