import os
import subprocess
import sys
from pathlib import Path

from tests.cli import written
from tests.cli.written import log

WITHOUT_EXTRA = """
import sys
sys.modules["{package}"] = None
from otel_cbtop_exporter.cli import main
main()
"""


def test_without_its_extra_the_command_says_what_to_install():
    """If a package is missing, one line says how to install it, without a traceback."""
    for package in ("click", "rich"):
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_EXTRA.format(package=package)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert "pip install 'otel-cbtop-exporter[cli]'" in result.stderr
        assert "Traceback" not in result.stderr


def tailed(file, redirection="", **environ):
    command = Path(sys.executable).with_name("otel-cbtop")
    return subprocess.run(
        ["sh", "-c", f'"$0" tail "$1" {redirection}', command, file],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )


def test_where_nothing_can_be_written_that_is_said(tmp_path):
    """A full disk or a closed standard output is reported without a traceback."""
    file = written.write(tmp_path / "e.jsonl", log("hi"))
    for redirection, why in ((">/dev/full", "No space left on device"), (">&-", "is closed")):
        result = tailed(file, redirection)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert why in result.stderr


def test_a_terminal_without_the_letters_shows_their_codes(tmp_path):
    """Characters that the terminal cannot encode are shown as escapes, and are no error."""
    file = written.write(tmp_path / "e.jsonl", log("h\xe9 \U0001f600"))
    result = tailed(file, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "h\\xe9 \\U0001f600" in result.stdout


def test_the_installed_command_runs():
    """The console script is installed and prints its version."""
    command = Path(sys.executable).with_name("otel-cbtop")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("otel-cbtop-exporter ")
