"""install.sh says at once what a machine lacks to build the servers, and how to do without."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What the scripts themselves need; every machine has these.
COMMON = ("bash", "sed", "dirname", "realpath")


@pytest.fixture
def install(tmp_path):
    """Return a function that runs install.sh with fakes of some tools, before anything is built."""
    for name in COMMON:
        (tmp_path / name).symlink_to(shutil.which(name))

    def run(*tools, **variables):
        for tool in tools:
            (tmp_path / tool).write_text(f"#!/bin/bash\necho '{tool} was called' >&2\nexit 1\n")
            (tmp_path / tool).chmod(0o755)
        return subprocess.run(
            [shutil.which("bash"), HERE / "install.sh"],
            env={
                "PATH": str(tmp_path),
                "HOME": os.environ.get("HOME", "/"),
                "OTEL_CBTOP_SERVERS": str(tmp_path / "cache"),
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_every_missing_tool_is_named_at_once(install, tmp_path):
    """All tools of all servers are named, where to get them, and the variables that replace them."""
    done = install()
    assert done.returncode == 1
    for tool in ("curl", "Go", "gcc", "Rust", "Java 17", "Maven"):
        assert f"- {tool}" in done.stderr
    for hint in ("go.dev/dl", "rustup.rs", "apt install openjdk-17-jre-headless", "maven"):
        assert hint in done.stderr
    for variable in ("INFLUXDB_URL", "INFLUXDB1_URL", "KAFKA", "SCHEMA_REGISTRY"):
        assert f"CBTOP_TEST_{variable}" in done.stderr
    assert "make test-fast" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_nothing_is_built_before_all_tools_are_there(install, tmp_path):
    """A missing Java is reported first, and not after ten minutes of building."""
    done = install("curl", "go", "gcc", "cargo")
    assert done.returncode == 1
    assert "- Java 17" in done.stderr
    assert "- Go" not in done.stderr
    assert "was called" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_servers_that_run_already_need_no_tool(install):
    """If a variable names each server, there is nothing to build."""
    names = ("INFLUXDB_URL", "INFLUXDB1_URL", "KAFKA", "SCHEMA_REGISTRY")
    done = install(**{f"CBTOP_TEST_{name}": "x" for name in names})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
