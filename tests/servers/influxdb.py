"""Real InfluxDB servers for tests: started by influxdb.sh, or named by environment variables.

This is a pytest plugin, so every test can use the fixtures `influxdb`, `influxdb1`, `influxdb2`
and `own_influxdb`.

CBTOP_TEST_INFLUXDB_URL, _TOKEN and _ORG name a running InfluxDB 2, CBTOP_TEST_INFLUXDB1_URL a
running 1.8; the tests then make and drop buckets (databases) of their own there. A test that
kills a server always starts its own.
"""

import json
import os
import subprocess
import uuid
from pathlib import Path
from urllib.parse import urlencode

import pytest
import urllib3

_SCRIPT = Path(__file__).with_name("influxdb.sh")
_HELP = (
    "point the tests at running servers with CBTOP_TEST_INFLUXDB_URL, CBTOP_TEST_INFLUXDB_TOKEN "
    "and CBTOP_TEST_INFLUXDB_ORG (InfluxDB 2) and CBTOP_TEST_INFLUXDB1_URL (1.8), "
    "or run `make test-fast`, which needs no server"
)


class InfluxDB:
    """A server, with what tests need of its API and with ways to break its process."""

    def __init__(self, major, url, org, token, folder=None):
        self.major = major
        self.url = url
        self.org = org
        self.token = token
        self.folder = folder
        self._http = urllib3.PoolManager(retries=False, timeout=60)
        self._made = []

    @classmethod
    def start(cls, folder, major):
        """Start a server of our own in a new folder."""
        run_script("start", folder, f"version={major}")
        about = json.loads((Path(folder) / "influxdb.json").read_text())
        return cls(major, about["url"], about["org"], about["token"], folder)

    def options(self, bucket, **more):
        """Return the options of a sink that writes to this server."""
        org = {"org": self.org} if self.major == 2 else {}
        return {"url": self.url, "bucket": bucket, "token": self.token, **org, **more}

    def new_bucket(self, name=None, *, retention_seconds=0):
        """Make an empty bucket and return its name."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        if self.major == 1:
            duration = f" WITH DURATION {retention_seconds}s" if retention_seconds else ""
            self.influxql(f'CREATE DATABASE "{name}"{duration}', db="")
        else:
            rules = [{"type": "expire", "everySeconds": retention_seconds}]
            self.api(
                "POST",
                "/api/v2/buckets",
                {
                    "orgID": self._org_id(),
                    "name": name,
                    "retentionRules": rules if retention_seconds else [],
                },
            )
        self._made.append(name)
        return name

    def bucket_id(self, name):
        return self.api("GET", f"/api/v2/buckets?{urlencode({'name': name})}")["buckets"][0]["id"]

    def new_token(self, bucket, *actions):
        """Make a token that allows `actions` on one bucket; return the authorization."""
        resource = {"type": "buckets", "id": self.bucket_id(bucket)}
        return self.api(
            "POST",
            "/api/v2/authorizations",
            {
                "orgID": self._org_id(),
                "permissions": [{"action": action, "resource": resource} for action in actions],
            },
        )

    def api(self, method, path, body=None):
        """Call the HTTP API as the operator."""
        response = self._http.request(
            method,
            self.url + path,
            body=None if body is None else json.dumps(body),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json"},
        )
        assert response.status < 300, (response.status, response.data)
        return json.loads(response.data) if response.data else None

    def write(self, bucket, lines):
        """Write lines without the sink; return the status and the text of the answer."""
        query = urlencode({"org": self.org, "bucket": bucket, "precision": "ns"})
        response = self._http.request(
            "POST",
            f"{self.url}/api/v2/write?{query}",
            body=lines,
            headers={"Authorization": f"Token {self.token}"},
        )
        return response.status, response.data.decode()

    def delete_measurement(self, bucket, measurement):
        """Delete all points of a measurement, and thereby the types of its fields."""
        if self.major == 1:
            self.influxql(f'DROP MEASUREMENT "{measurement}"', bucket)
        else:
            query = urlencode({"org": self.org, "bucket": bucket})
            self.api(
                "POST",
                f"/api/v2/delete?{query}",
                {
                    "start": "1970-01-01T00:00:00Z",
                    "stop": "2200-01-01T00:00:00Z",
                    "predicate": f'_measurement="{measurement}"',
                },
            )

    def influxql(self, query, db, epoch="ns"):
        """Run InfluxQL; return the series of all statements, as InfluxDB returns them."""
        response = self._http.request(
            "POST",
            f"{self.url}/query?{urlencode({'db': db, 'epoch': epoch})}",
            fields={"q": query},
            encode_multipart=False,
            headers={"Authorization": f"Token {self.token}"},
        )
        # The server's JSON is UTF-8 and exact: floats have enough digits to read them back.
        results = json.loads(response.data, parse_int=_integer)
        assert response.status == 200, results
        assert not any("error" in result for result in results["results"]), results
        return [s for result in results["results"] for s in result.get("series", [])]

    def points(self, bucket, *measurements):
        """Read measurements back: (measurement, tags, fields, time) of every point."""
        queries = [f"SELECT * FROM {_quoted(name)} GROUP BY *" for name in measurements]
        found = []
        for start in range(0, len(queries), 100):
            for series in self.influxql("; ".join(queries[start : start + 100]), bucket):
                for values in series["values"]:
                    row = dict(zip(series["columns"], values, strict=True))
                    time = row.pop("time")
                    fields = {key: value for key, value in row.items() if value is not None}
                    found.append((series["name"], series.get("tags", {}), fields, time))
        return found

    def count(self, bucket, measurement, field):
        """Count the points of a measurement that have a field."""
        series = self.influxql(f'SELECT count("{field}") FROM "{measurement}"', bucket)
        return series[0]["values"][0][1] if series else 0

    def flux(self, query):
        """Run Flux; return the rows, each a mapping of columns to typed values."""
        from influxdb_client import InfluxDBClient  # slow, and every run imports this module

        client = InfluxDBClient(url=self.url, token=self.token, org=self.org, timeout=60_000)
        with client:
            return [row.values for table in client.query_api().query(query) for row in table]

    def cardinality(self, bucket):
        """Ask the server how many series a bucket has."""
        if self.major == 1:
            series = self.influxql("SHOW SERIES EXACT CARDINALITY", bucket)
            return sum(one["values"][0][0] for one in series)
        rows = self.flux(
            'import "influxdata/influxdb"\n'
            f'influxdb.cardinality(bucket: "{bucket}", start: 1970-01-01T00:00:00Z)'
        )
        return rows[0]["_value"]

    def kill(self):
        run_script("kill", self.folder)

    def restart(self):
        run_script("restart", self.folder)

    def drop_buckets(self):
        for name in self._made:
            if self.major == 1:
                self.influxql(f'DROP DATABASE "{name}"', db="")
            else:
                self.api("DELETE", f"/api/v2/buckets/{self.bucket_id(name)}")
        self._made.clear()

    def close(self):
        self._http.clear()
        if self.folder is not None:
            run_script("stop", self.folder)

    def _org_id(self):
        return self.api("GET", f"/api/v2/orgs?{urlencode({'org': self.org})}")["orgs"][0]["id"]


def _integer(text):
    return -0.0 if text == "-0" else int(text)


def _quoted(name):
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        name = name.replace(plain, escaped)
    return f'"{name}"'


def run_script(*arguments):
    """Run influxdb.sh; if it fails, raise an error that quotes its messages."""
    done = subprocess.run(
        ["bash", str(_SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{done.stderr.strip()[-2000:]}\n{_HELP}")
    return done.stdout


def _serve(tmp_path_factory, major, variable):
    url = os.environ.get(variable)
    if url:
        server = InfluxDB(
            major,
            url.rstrip("/"),
            os.environ.get("CBTOP_TEST_INFLUXDB_ORG", "cbtop"),
            os.environ.get("CBTOP_TEST_INFLUXDB_TOKEN", "test-token"),
        )
    else:
        server = InfluxDB.start(tmp_path_factory.mktemp("influxdb") / str(major), major)
    try:
        yield server
        if url:
            server.drop_buckets()
    finally:
        server.close()


@pytest.fixture(scope="session")
def influxdb2(tmp_path_factory):
    """An InfluxDB 2 for the whole run, which no test kills."""
    yield from _serve(tmp_path_factory, 2, "CBTOP_TEST_INFLUXDB_URL")


@pytest.fixture(scope="session")
def influxdb1(tmp_path_factory):
    """An InfluxDB 1.8 for the whole run, which no test kills."""
    yield from _serve(tmp_path_factory, 1, "CBTOP_TEST_INFLUXDB1_URL")


@pytest.fixture(params=["2", "1"], ids=["influxdb2", "influxdb1"])
def influxdb(request):
    """Both servers, one after the other."""
    return request.getfixturevalue(f"influxdb{request.param}")


@pytest.fixture
def own_influxdb(tmp_path):
    """An InfluxDB 2 for one test, which may kill it."""
    server = InfluxDB.start(tmp_path / "influxdb", 2)
    try:
        yield server
    finally:
        server.close()
