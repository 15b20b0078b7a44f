"""Documentation agrees with the code: variables, commands, links and examples."""

import re
import subprocess
import sys

import pytest

from otel_cbtop_exporter.env import FALLBACKS, PREFIX, variables
from tests.docs_tables import GENERATED, ROOT, filled

DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", GENERATED)
def test_generated_parts_are_up_to_date(file):
    """Generated tables and examples are current; `python -m tests.docs_tables` updates them."""
    text = (ROOT / file).read_text()
    assert filled(text, GENERATED[file]) == text


def test_every_variable_is_in_the_readme():
    """The README names every variable."""
    for variable, _ in variables():
        assert f"`{variable}`" in README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_is_named_exists(path):
    """Documents name only variables of ours that are read."""
    known = {variable for variable, _ in variables()} | set(FALLBACKS)
    signals = {
        v.replace(PREFIX, PREFIX + s, 1) for v in known for s in ("TRACES_", "METRICS_", "LOGS_")
    }
    for named in re.findall(rf"{PREFIX}[A-Z0-9_]+|INFLUXDB_V2_[A-Z_]+", path.read_text()):
        if named != PREFIX and not named.endswith("_"):
            assert named in known | signals, named


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    """Every relative link leads to a file of the project."""
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_file_of_the_map_exists():
    """Every file that docs/development.md names exists."""
    named = re.findall(r"`([\w/]+\.(?:py|md))`", (ROOT / "docs/development.md").read_text())
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_command_of_the_readme_exists():
    """Every `otel-cbtop X` in the README is a command."""
    from otel_cbtop_exporter.cli.app import app

    named = set(re.findall(r"^otel-cbtop (\w+)", README, re.MULTILINE))
    assert named
    assert named <= set(app.commands)


def test_every_make_verb_of_the_readme_exists():
    """Every `make X` in the README is a target."""
    makefile = (ROOT / "Makefile").read_text()
    for verb in re.findall(r"make ([a-z-]+)[ `\n]", README):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


@pytest.mark.parametrize(
    ("script", "pattern", "name"),
    [
        ("influxdb.sh", r"Version 1 \(([\d.]+)\)", "InfluxDB"),
        ("influxdb.sh", r"version 2 \(([\d.]+)\)", "InfluxDB"),
        ("kafka/pom.xml", r"<kafka.version>([\d.]+)<", "Apache Kafka"),
        ("registry.sh", r"^version=(\d+\.\d+\.\d+)", "Registry"),
    ],
)
def test_the_readme_names_the_servers_that_the_tests_run(script, pattern, name):
    """The README names each server that the tests run, with its version."""
    found = re.search(pattern, (ROOT / "tests/servers" / script).read_text(), re.MULTILINE)
    (tested,) = re.findall(r"Tested against real servers: (.*?)\. ", README, re.DOTALL)
    assert re.search(rf"{name}\b.* {re.escape(found[1])}\b", tested, re.DOTALL)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_python_example_runs(code, tmp_path):
    """Every Python example of the README runs, and imports only from the package's root."""
    assert not re.search(r"from otel_cbtop_exporter\.", code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.jsonl")), done.stderr


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", (ROOT / "docs/sinks.md").read_text(), re.DOTALL)
)
def test_every_example_of_an_own_sink_runs(code, tmp_path):
    """Every example of docs/sinks.md runs, and imports only what is public."""
    assert not re.search(r"from otel_cbtop_exporter\.(?!testing import )", code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_example_programs_import_from_the_packages_root(path):
    """Example programs use only public names, because readers copy them."""
    assert not re.search(r"(from|import) otel_cbtop_exporter\.", path.read_text())
