"""The files of examples/influxdb fit together, as far as can be checked without running them."""

import json
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "influxdb"
COMPOSE = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())
DATASOURCE = yaml.safe_load((EXAMPLE / "grafana" / "datasource.yaml").read_text())
PROVIDERS = yaml.safe_load((EXAMPLE / "grafana" / "dashboards.yaml").read_text())
DASHBOARD = json.loads((EXAMPLE / "grafana" / "dashboard.json").read_text())


def test_what_compose_mounts_is_there_and_where_grafana_looks():
    """Every mounted file exists, and the dashboards are mounted where Grafana looks."""
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in grafana["volumes"])
    for source in mounts:
        assert (EXAMPLE / source).is_file(), source
    (provider,) = PROVIDERS["providers"]
    dashboard = mounts["./grafana/dashboard.json"]
    assert dashboard.startswith(provider["options"]["path"])
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    provisioning = "/etc/grafana/provisioning"
    assert mounts["./grafana/datasource.yaml"].startswith(f"{provisioning}/datasources/")
    assert mounts["./grafana/dashboards.yaml"].startswith(f"{provisioning}/dashboards/")
    named = {mount.split(":")[0] for mount in COMPOSE["services"]["influxdb"]["volumes"]}
    assert named == set(COMPOSE["volumes"])


def test_grafana_reads_what_influxdb_was_set_up_with():
    """The data source has InfluxDB's organization, bucket, token and address."""
    influxdb, grafana = (COMPOSE["services"][name] for name in ("influxdb", "grafana"))
    (source,) = DATASOURCE["datasources"]
    given, setup = grafana["environment"], influxdb["environment"]

    def filled(text):
        return given[text.removeprefix("$")]

    assert filled(source["jsonData"]["organization"]) == setup["DOCKER_INFLUXDB_INIT_ORG"]
    assert filled(source["jsonData"]["defaultBucket"]) == setup["DOCKER_INFLUXDB_INIT_BUCKET"]
    assert filled(source["secureJsonData"]["token"]) == setup["DOCKER_INFLUXDB_INIT_ADMIN_TOKEN"]
    assert source["url"] == "http://influxdb:8086"
    assert source["jsonData"]["version"] == "Flux"
    assert set(grafana["depends_on"]) == {"influxdb"}
    assert "healthcheck" in influxdb


def test_ports_are_open_to_this_machine_alone():
    """The example, whose token is public, listens on loopback only."""
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_every_panel_asks_the_provisioned_source_and_has_a_place():
    """Panels use the provisioned source and do not overlap, and every variable is used."""
    (source,) = DATASOURCE["datasources"]
    taken = set()
    for panel in DASHBOARD["panels"]:
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "influxdb", "uid": source["uid"]}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    queries = " ".join(panel["targets"][0]["query"] for panel in DASHBOARD["panels"])
    assert all(f"${{{name}}}" in queries for name in variables)
