import subprocess
import sys
from pathlib import Path

WITHOUT_EXTRA = """
import sys
sys.modules["{package}"] = None
from otel_cbtop_exporter.cli import main
main()
"""


def test_without_its_extra_the_command_says_what_to_install():
    """A missing package is one line on how to get it, not a traceback."""
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


def test_the_installed_command_runs():
    """The console script is there and knows its version."""
    command = Path(sys.executable).with_name("otel-cbtop")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("otel-cbtop-exporter ")
