"""The package's shape: which modules import which, what an import does, how tests are written."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "otel_cbtop_exporter"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NAME = "otel_cbtop_exporter"

# Modules of events, and of how they fail.
EVENTS = ("errors", "event_batch", "events", "on_demand", "tag_set")

# What a module, or every module of a folder, may import from the package. The longest prefix
# counts. Imports go one way, from what the SDK calls down to what touches the outside.
MAY_IMPORT = {
    "errors": (),
    "own_log": (),
    "events": ("errors", "tag_set"),
    "on_demand": (),
    "tag_set": (),
    "fork_lock": (),
    "file_lock": (),
    "turn": (),
    "event_table": ("events", "tag_set"),
    "event_batch": ("errors", "event_table", "events", "on_demand", "tag_set"),
    "masking": (),
    "exit_on_sigterm": (),
    "options": ("errors", "fork_lock", "masking"),
    "sink_options": ("errors", "masking", "options"),
    "config": ("errors", "options", "sink_options"),
    "tally": ("event_batch", "sinks.records"),
    "sdk_metrics": ("tally",),
    "health": ("sdk_metrics", "tally"),
    "env": ("config", "masking", "options", "errors"),
    "_sdk": (),
    "testing": ("sinks.base", "encoding.event_json", "events"),
    "mapping": (
        "event_batch",
        "event_table",
        "events",
        "tag_set",
        "_sdk",
        "mapping",
        "encoding.json_values",
        "encoding.portable",
        "tally",
    ),
    "encoding": ("encoding", "event_table", *EVENTS),
    "sinks": (
        "sinks.base",
        "encoding",
        "config",
        "file_lock",
        "fork_lock",
        "options",
        "own_log",
        "sink_options",
        "turn",
        *EVENTS,
    ),
    "sinks.records": ("on_demand",),
    "sinks.base": ("events", "sinks.records"),
    "sinks.influxdb_http": ("sinks.base", "config", "env", "fork_lock", "masking"),
    "sinks.__init__": ("sinks", "config", "errors", "fork_lock"),
    "delivery": (
        "delivery",
        "sinks.base",
        "config",
        "errors",
        "events",
        "file_lock",
        "fork_lock",
        "health",
        "own_log",
        "sdk_metrics",
        "tally",
        "turn",
        "_sdk",
    ),
    "signal_delivery": (
        "config",
        "delivery.pipeline",
        "env",
        "errors",
        "event_batch",
        "exit_on_sigterm",
        "health",
        "own_log",
        "sdk_metrics",
        "sinks",
        "tally",
    ),
    "exporters": (
        "_sdk",
        "errors",
        "fork_lock",
        "health",
        "mapping",
        "signal_delivery",
        "sinks.base",
    ),
    "streamer": (
        "config",
        "delivery.pipeline",
        "encoding",
        "env",
        "errors",
        "event_batch",
        "events",
        "fork_lock",
        "health",
        "sinks",
    ),
    "whole_process": ("delivery.pipeline", "health", "signal_delivery"),
    "__init__": (
        "config",
        "errors",
        "events",
        "exporters",
        "health",
        "sinks.base",
        "streamer",
        "whole_process",
    ),
    "cli": (
        "cli",
        "config",
        "delivery",
        "env",
        "errors",
        "events",
        "own_log",
        "masking",
        "options",
        "sinks",
    ),
}

# A sink's own further modules, and those that several sinks share.
SINK_PARTS = {
    "jsonlines": ("append_file", "lines", "rotation", "shared_stream"),
    "console": ("lines", "shared_stream"),
    "influxdb": ("influxdb_",),
    "kafka": ("kafka_",),
}
SINKS = tuple(SINK_PARTS)

# Libraries that only one module, or one folder, may import.
DOORS = {
    "sqlite3": ("delivery.",),
    "urllib3": ("sinks.influxdb",),
    "confluent_kafka": ("sinks.kafka",),
    "click": ("cli",),
    "rich": ("cli",),
}


def short(module):
    return module.removeprefix(NAME).removeprefix(".") or "__init__"


def imports(path):
    """Yield every absolute import of a file, wherever it is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def is_within(name, prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def row_for(name, path):
    """Return the row of the import table for a module: its name and the imports it allows."""
    if name == "sinks" and path.name == "__init__.py":
        row = "sinks.__init__"
    else:
        fitting = [key for key in MAY_IMPORT if is_within(name, (key,))]
        assert fitting, f"{name} is in no row of the import table"
        row = max(fitting, key=len)
    return row, MAY_IMPORT[row]


def is_part_of_its_sink(name, imported):
    """Return whether an import is of the same sink, as sinks/kafka_*.py for sinks/kafka.py."""
    own = name.removeprefix("sinks.")
    other = imported.removeprefix("sinks.")
    for sink, parts in SINK_PARTS.items():
        belongs = own == sink or own.startswith(parts)
        if belongs and other not in SINKS and other.startswith(parts):
            return True
    return False


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_what_their_row_allows(module):
    """Modules import only what the import table allows."""
    name = short(module)
    _, allowed = row_for(name, MODULES[module])
    for imported in imports(MODULES[module]):
        if not is_within(imported, (NAME,)):
            continue
        target = short(imported)
        fine = is_within(target, allowed) or (
            name.startswith("sinks.") and is_part_of_its_sink(name, target)
        )
        assert fine, f"{name} imports {target}; allowed: {', '.join(allowed)}"


def test_every_entry_of_the_table_is_used():
    """Every entry of the import table is used; what nobody imports any more is not allowed."""
    used = {
        (row, allowed)
        for module, path in MODULES.items()
        for imported in imports(path)
        if is_within(imported, (NAME,))
        for row, names in [row_for(short(module), path)]
        for allowed in names
        if is_within(short(imported), (allowed,))
    }
    table = {(row, name) for row, names in MAY_IMPORT.items() for name in names}
    assert table - used == set()


@pytest.mark.parametrize("module", MODULES)
def test_outside_things_are_touched_behind_one_door(module):
    """Client libraries, SQLite and the terminal are each used in one place."""
    name = short(module)
    for imported in imports(MODULES[module]):
        for library, doors in DOORS.items():
            if is_within(imported, (library,)):
                assert name.startswith(doors), f"{name} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_opentelemetry_are_behind_one_door(module):
    """Private names of the SDK, other than incubating conventions, are used only in _sdk.py."""
    if short(module) == "_sdk":
        return
    for imported in imports(MODULES[module]):
        if imported.startswith("opentelemetry.semconv._incubating"):
            continue
        private = imported.startswith("opentelemetry") and "._" in imported
        assert not private, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_only_env_reads_the_environment(module):
    """Only env.py reads the environment, so that every variable is an option."""
    if short(module) == "env":
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read = (node.value.id, node.attr)
            assert read not in {("os", "environ"), ("os", "getenv")}, f"{module} reads it"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_say_what_belongs_in_them(module):
    """A module is short, has a docstring, and lists its names in `__all__`."""
    text = MODULES[module].read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert len(text.splitlines()) <= 320, f"{module} is too long for one idea"
    defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body)
    if defines:
        names = {
            t.id
            for n in tree.body
            if isinstance(n, ast.Assign)
            for t in n.targets
            if isinstance(t, ast.Name)
        }
        assert "__all__" in names, f"{module} has no __all__"


def test_what_others_import_is_offered():
    """Modules import from each other only names in `__all__`."""
    offered = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                offered[module] = ast.literal_eval(node.value)
    taken = [
        (node.module, alias.name)
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in offered
        for alias in node.names
    ]
    hidden = {
        f"{module}.{name}"
        for module, name in taken
        if name not in offered[module] and f"{module}.{name}" not in MODULES
    }
    assert not hidden


def test_no_folder_of_loose_ends():
    """No module has a name, such as utils, under which anything could be put."""
    loose = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert not {name.rpartition(".")[2] for name in MODULES} & loose


def test_importing_the_package_has_no_side_effect(tmp_path):
    """An import starts no thread, makes no file or handler, loads no client, prints nothing."""
    code = """
import json, signal, sys, threading, os
before = signal.getsignal(signal.SIGTERM)
files = os.listdir(".")
import otel_cbtop_exporter
print(json.dumps({
    "threads": threading.active_count(),
    "clients": [m for m in ("urllib3", "confluent_kafka", "click", "rich") if m in sys.modules],
    "handler": signal.getsignal(signal.SIGTERM) is before,
    "files": os.listdir(".") == files,
}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OTEL_EXPORTER_CBTOP_SINK": "kafka"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"threads": 1, "clients": [], "handler": True, "files": True}
    assert done.stderr == ""


def test_who_writes_at_once_does_not_pay_for_the_spool(tmp_path):
    """With JSON Lines and no spool path, modules that only a spool needs are not imported."""
    code = """
import sys
from otel_cbtop_exporter import CbtopSpanExporter
exporter = CbtopSpanExporter()
exporter.health(), exporter.force_flush(), exporter.shutdown()
print(sorted({"sqlite3", "hashlib", "email.utils", "difflib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[]\n"


def test_the_public_names_are_what_the_package_says():
    """`__all__` is complete, and every name in it exists."""
    import otel_cbtop_exporter

    assert set(otel_cbtop_exporter.__all__) <= set(vars(otel_cbtop_exporter))
    public = {
        name
        for name, value in vars(otel_cbtop_exporter).items()
        if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert public == set(otel_cbtop_exporter.__all__)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_test_states_its_rule(path):
    """Every test has a docstring, which states the rule under test."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
