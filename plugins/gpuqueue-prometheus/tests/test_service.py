"""The service: where it listens, what happens if it cannot, who takes it over, and the errors for wrong settings."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from gpuqueue_prometheus import Prometheus
from gpuqueue_prometheus.gauges import gauges
from gpuqueue_prometheus.metrics import SERVICE_UP

from gpuqueue import ConfigurationError
from gpuqueue.testing import wait_until
from gpuqueue.testing.waiting import DEADLINE_S


def test_without_an_address_it_opens_no_port_and_follows_nothing(make_gpuqueue, start_worker):
    gq = make_gpuqueue("[prometheus]\n", plugins={"prometheus": Prometheus()})
    note = gq.task(name="note", queue="mail")(lambda: None)
    start_worker(gq)
    note.enqueue().result(timeout_s=DEADLINE_S)
    assert gq.services() == []
    with gq.read() as reader:
        assert reader.followers() == {}


def test_a_port_that_is_taken_is_told_and_had_once_it_is_free(make_gpuqueue, start_worker, said):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        gq = make_gpuqueue(f'[prometheus]\nlisten = "127.0.0.1:{port}"\n', plugins={"prometheus": Prometheus()})
        start_worker(gq)
        told = wait_until(lambda: said(gq).get("error"), "it says so")
        assert told.startswith(f"cannot listen on 127.0.0.1:{port}: ")
        assert "stop the program that uses the port, or set another port in [prometheus] listen" in told
    wait_until(lambda: said(gq).get("metrics") == f"http://127.0.0.1:{port}/metrics", "it has the port")
    assert said(gq)["error"] is None


@pytest.mark.parametrize(
    ("listen", "advice"),
    [
        ("192.0.2.1:0", "set an address of this machine in [prometheus] listen"),
        ("no.such.host.invalid:0", "set an address of this machine in [prometheus] listen"),
    ],
)
def test_an_address_of_another_machine_is_told(make_gpuqueue, start_worker, said, listen, advice):
    gq = make_gpuqueue(f'[prometheus]\nlisten = "{listen}"\n', plugins={"prometheus": Prometheus()})
    start_worker(gq)
    told = wait_until(lambda: said(gq).get("error"), "it says so")
    assert told.startswith(f"cannot listen on {listen}: ") and advice in told


def test_one_worker_serves_and_another_takes_over_on_the_same_address(make_gpuqueue, serve, start_worker, said):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    toml = f'[prometheus]\nlisten = "127.0.0.1:{port}"\n'
    first = serve(make_gpuqueue(toml, plugins={"prometheus": Prometheus()}))
    other = make_gpuqueue(toml, plugins={"prometheus": Prometheus()})
    standby = start_worker(other)
    assert first.value("gpuqueue_workers") == 2
    first.worker.stop()

    def answers():
        try:
            return said(other, standby) and first.value("gpuqueue_workers")
        except ConnectionRefusedError:
            return None

    assert wait_until(answers, "it takes over") == 1


def test_a_worker_that_stops_leaves_the_port_and_tells_of_no_service(serve, gq):
    served = serve(gq)
    assert served.value("gpuqueue_service_up", "prometheus") == 1
    served.worker.stop()
    assert SERVICE_UP not in {sample.spec for sample in gauges(gq)}
    with pytest.raises(ConnectionRefusedError):
        served.get("/metrics")


def test_other_paths_name_those_that_there_are(serve, gq):
    served = serve(gq)
    page = served.get("/")
    assert (page.status, page.text) == (404, "Not found; use /metrics or /healthz.\n")
    assert served.get("/metrics?name=x").status == 200
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=DEADLINE_S) as client:
        client.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        head = b"".join(iter(lambda: client.recv(4096), b""))
    assert head.startswith(b"HTTP/1.0 200 OK\r\n") and head.endswith(b"\r\n\r\n"), "nothing follows the headers"
    assert served.get("/metrics", method="POST").status == 501


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ('listn = "127.0.0.1:9464"', r"prometheus.listn: unknown setting 'listn' \(did you mean 'listen'\?\)"),
        ("listen = 9464", r'prometheus.listen = 9464: must be a non-empty string; write listen = "127.0.0.1:9464"'),
        ('listen = "9464"', r'must be an address and a port, for example listen = "127.0.0.1:9464"'),
        ('listen = "127.0.0.1"', r"must be an address and a port"),
        ('listen = "127.0.0.1:http"', r"must be an address and a port"),
        ('listen = "::1:9464"', r'for IPv6, listen = "\[::1\]:9464"'),
        ('listen = ":9464"', r'the address is missing; use .*, or listen = "0.0.0.0:9464" for every network'),
        ('listen = "127.0.0.1:70000"', r"the port must be at most 65535"),
    ],
)
def test_a_wrong_setting_is_refused(make_gpuqueue, setting, wrong):
    with pytest.raises(ConfigurationError, match=wrong):
        make_gpuqueue(f"[prometheus]\n{setting}\n", plugins={"prometheus": Prometheus()})


def test_the_variable_sets_the_address_too(make_gpuqueue, monkeypatch, serve):
    monkeypatch.setenv("GPUQUEUE_PROMETHEUS_LISTEN", "127.0.0.1:0")
    served = serve(make_gpuqueue("", plugins={"prometheus": Prometheus()}))
    assert served.get("/healthz").status == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_it_listens_on_ipv6(make_gpuqueue, serve):
    served = serve(make_gpuqueue('[prometheus]\nlisten = "[::1]:0"\n', plugins={"prometheus": Prometheus()}))
    assert served.url.startswith("http://[::1]:")
    assert served.get("/healthz").status == 200


def test_it_is_found_where_it_is_installed(make_gpuqueue):
    assert ("prometheus", ["configure", "register_services"]) in make_gpuqueue(discover_plugins=True).plugins.names()
