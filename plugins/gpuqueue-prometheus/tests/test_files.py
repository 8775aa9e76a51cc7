"""The files next to the code: the dashboard, the alert rules and the page use only metrics and labels that exist.

Expressions are parsed by `promql-parser`, whose grammar is Prometheus's own; where `promtool` is on the path, it is asked too.
`python tests/test_files.py` rewrites the table of metrics in the page.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gpuqueue_prometheus
import promql_parser
import pytest
import yaml
from gpuqueue_prometheus.metrics import METRICS, Spec

from gpuqueue.testing.waiting import DEADLINE_S

PLUGIN = Path(__file__).parents[1]
PAGE = PLUGIN / "README.md"
PROMTOOL = shutil.which("promtool")
TARGET = {"job", "instance"}  # what Prometheus itself adds
SERIES = {
    "up": set(),
    **{
        f"{spec.name}{suffix}": {*spec.labels, *(["le"] if suffix == "_bucket" else [])}
        for spec in METRICS
        for suffix in (("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",))
    },
}
ALERTS = yaml.safe_load((files(gpuqueue_prometheus) / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((files(gpuqueue_prometheus) / "dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
PANEL_KEYS = {"id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "options", "targets"}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


def parsed(expression: str) -> Any:
    """Parse what Prometheus is sent: Grafana puts a duration in the place of its variable."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(node: Any) -> Iterator[Any]:
    """Every series that an expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", ()) or ():
        yield from selectors(child)


def groupings(node: Any) -> Iterator[str]:
    """Every label that an expression groups by or matches on."""
    modifier = getattr(node, "modifier", None)
    for part in (modifier, getattr(modifier, "matching", None)):
        yield from getattr(part, "labels", None) or ()
    for name in ("expr", "lhs", "rhs"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, str):
            yield from groupings(child)
    for child in getattr(node, "args", ()) or ():
        yield from groupings(child)


def check(expression: str) -> set[str]:
    """Check that an expression speaks of what there is; returns the labels that its series have."""
    tree = parsed(expression)
    found = list(selectors(tree))
    assert len(found) == len(re.findall(r"\b(?:gpuqueue_\w+|up)\b", re.sub(r'"[^"]*"', "", expression))), "all were found"
    has: set[str] = set()
    for selector in found:
        assert selector.name in SERIES, f"there is no {selector.name}"
        labels = SERIES[selector.name] | TARGET
        used = {matcher.name for matcher in selector.matchers.matchers}
        assert used <= labels, f"{selector.name} has no {used - labels}"
        has |= labels
    assert set(groupings(tree)) <= has
    return has


def test_the_check_sees_what_is_wrong():
    for wrong in (
        "gpuqueue_job",
        'gpuqueue_jobs{stat="available"}',
        "sum by (job_id) (gpuqueue_jobs)",
        "gpuqueue_workers and on (queue) up",
        "gpuqueue_wait_seconds",
        "rate(gpuqueue_finished[5m])",
    ):
        with pytest.raises(AssertionError):
            check(wrong)
    for broken in ("sum(gpuqueue_jobs", "rate(gpuqueue_jobs)"):
        with pytest.raises(ValueError):
            check(broken)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_rule_is_whole_and_speaks_of_what_there_is(rule):
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Gpuqueue[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+[mhd]", rule["for"])
    has = check(rule["expr"])
    said = " ".join(rule["annotations"].values())
    assert rule["annotations"].keys() == {"summary", "description"}
    assert set(re.findall(r"\$labels\.(\w+)", said)) <= has


def test_there_is_a_rule_for_each_of_what_goes_wrong():
    assert ALERTS.keys() == {"groups"}
    names = [rule["alert"].removeprefix("Gpuqueue") for rule in RULES]
    assert names == [
        "NoWorker", "QueueNotServed", "QueueHeldTooLong", "QueueHeldAllDay", "VramOverBudget", "DeviceLost", "BackendAway",
        "MirrorLag", "ServiceFailing", "HighFailureRatio",
    ]  # fmt: skip


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the path here")
def test_promtool_finds_the_rules_well():
    path = files(gpuqueue_prometheus) / "alerts.yml"
    ran = subprocess.run([str(PROMTOOL), "check", "rules", str(path)], capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 0 and f"{len(RULES)} rules found" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the path here")
def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    scenes = (PLUGIN / "tests" / "alerts_test.yml").read_text()
    (tmp_path / "scenes.yml").write_text(scenes.replace("ALERTS]", f"{files(gpuqueue_prometheus) / 'alerts.yml'}]"))
    command = [str(PROMTOOL), "test", "rules", str(tmp_path / "scenes.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_alert_has_a_scene_in_which_it_fires():
    scenes = yaml.safe_load((PLUGIN / "tests" / "alerts_test.yml").read_text())["tests"]
    fired = {told["alertname"] for scene in scenes for told in scene["alert_rule_test"] if told.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the path here")
def test_promtool_finds_the_metrics_well(serve, gq):
    page = serve(gq).get("/metrics")
    ran = subprocess.run([str(PROMTOOL), "check", "metrics"], input=page.text, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title} {target['refId']}" for title, target in TARGETS])
def test_a_panel_asks_for_what_there_is(title, target):
    has = check(target["expr"])
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= has
    for selector in selectors(parsed(target["expr"])):
        matched = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        assert matched["instance"] == "$instance"
        assert matched.get("queue", "$queue") == "$queue" and ("queue" in matched) == ("queue" in SERIES[selector.name])


def test_the_dashboard_has_the_shape_that_grafana_reads():
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] == "gpuqueue", "an id is its importer's to give"
    assert DASHBOARD["schemaVersion"] >= 39 and DASHBOARD["title"] == "gpuqueue"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "queue"]
    asked = [variable["query"]["query"] for name, variable in variables.items() if name != "datasource"]
    for query in asked:
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
        assert label in check(series)
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel.keys() == PANEL_KEYS
        assert panel["type"] in ("stat", "timeseries", "state-timeline")
        assert panel["datasource"] == source and all(target["datasource"] == source for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == list("ABCDE"[: len(panel["targets"])])
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\{?(\w+)", text)) == {"datasource", "instance", "queue", "__rate_interval", "__all"}


def test_no_two_panels_lie_on_one_another():
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_every_metric_is_on_the_dashboard_but_what_only_says_which_version_tells_it():
    shown = {selector.name for _, target in TARGETS for selector in selectors(parsed(target["expr"]))}
    left_out = {spec.name for spec in METRICS if not any(name.startswith(spec.name) for name in shown)}
    assert left_out == {"gpuqueue_build_info"}


# --- the page ---


def row(spec: Spec) -> str:
    return f"| `{spec.name}` | {spec.kind} | {', '.join(f'`{label}`' for label in spec.labels)} | {spec.help} |"


def table() -> str:
    return "\n".join(["| metric | kind | labels | |", "| --- | --- | --- | --- |", *map(row, METRICS)])


MARKS = re.compile(r"(<!-- metrics -->\n)(.*?)(\n<!-- end of metrics -->)", flags=re.S)


def test_the_page_has_every_metric():
    found = MARKS.search(PAGE.read_text())
    assert found and found[2] == table(), "write it anew: python plugins/gpuqueue-prometheus/tests/test_files.py"


def test_the_page_names_every_alert():
    shown = re.findall(r"^\| `(Gpuqueue\w+)` \| (\w+) \|", PAGE.read_text(), flags=re.M)
    assert shown == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel, and is not on the path here")
def test_the_wheel_has_the_dashboard_and_the_rules(tmp_path):
    copy = tmp_path / PLUGIN.name
    shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist"))
    command = ["uv", "build", "--wheel", "--out-dir", str(tmp_path / "out")]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("gpuqueue_prometheus/")}
    assert names == {f"gpuqueue_prometheus/{path.name}" for path in (PLUGIN / "gpuqueue_prometheus").iterdir() if path.is_file()}


if __name__ == "__main__":
    PAGE.write_text(MARKS.sub(lambda found: f"{found[1]}{table()}{found[3]}", PAGE.read_text()))
