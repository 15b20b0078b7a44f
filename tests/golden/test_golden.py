"""Golden files: SDK data in, exact bytes out. A released version's bytes never change."""

import json
from pathlib import Path

import jsonschema
import pytest

from otel_cbtop_exporter import decode_event
from tests.golden.cases import FOLDER, as_json, as_lines, cases

CASES = cases()
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "otel_cbtop_exporter/schemas/event_v1.json").read_text()
)


@pytest.mark.parametrize("name", CASES)
def test_json_bytes_are_frozen(name):
    """The JSON of each kind of SDK data is exactly what readers were promised."""
    assert as_json(CASES[name]) == (FOLDER / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_line_protocol_bytes_are_frozen(name):
    """The line protocol of each kind of SDK data is exactly what readers were promised."""
    assert as_lines(CASES[name]) == (FOLDER / f"{name}.lp").read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_golden_lines_keep_the_published_schema(name):
    """Every golden line is valid according to schemas/event_v1.json, and decodes."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    lines = (FOLDER / f"{name}.jsonl").read_bytes().splitlines()
    assert lines
    for line in lines:
        validator.validate(json.loads(line))
        assert decode_event(line).schema_version == 1


def test_every_golden_file_has_its_case():
    """Every golden file belongs to a case."""
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name}{suffix}" for name in CASES for suffix in (".jsonl", ".lp")}
