"""At the end of the session: what became of the records in every run."""

from tests.faults.runs import REPORTS


def pytest_terminal_summary(terminalreporter):
    """Print the reckoning, because whether nothing was lost is not all there is to see."""
    if REPORTS:
        terminalreporter.section("faults: what became of the records")
        for report in REPORTS:
            terminalreporter.write_line(report)
