"""Sessions against a real Kolibri whose sessions end after six seconds without a heartbeat."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from real_servers import Gateway, Kolibri, RecordingProxy, kolibri_server, recording_proxy

pytestmark = pytest.mark.e2e

SESSION_AGE_SECONDS = 6
HEARTBEAT_SECONDS = 2
STATE = '{ provider(providerId: "1") { sessions { state } } }'
UPDATE = """
mutation Cure($password: String!) {
  updateProvider(input: {providerId: "1", credentials: {password: $password}}) {
    __typename ... on ProviderRefused { code message }
  }
}
"""


@pytest.fixture(scope="module")
def forgetful_kolibri() -> Iterator[Kolibri]:
    with kolibri_server("forgetful", "--session-age", str(SESSION_AGE_SECONDS)) as server:
        yield server


@pytest.fixture
def proxy(forgetful_kolibri: Kolibri) -> Iterator[RecordingProxy]:
    with recording_proxy(forgetful_kolibri.url) as recorder:
        yield recorder


@dataclass
class Load:
    """Callers that ask for all users again and again, and write down what they got."""

    gateway: Gateway
    counts: list[int] = field(default_factory=list)
    failures: list[object] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self, callers: int) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=[stop]) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, stop: threading.Event) -> None:
        while not stop.is_set():
            answer = self.gateway.graphql("{ users(first: 500) { nodes { externalId } } }")
            if "errors" in answer:
                self.failures.append(answer["errors"])
            else:
                self.counts.append(len(answer["data"]["users"]["nodes"]))
            time.sleep(0.05)


def _registered(gateway: Gateway, proxy: RecordingProxy, kolibri: Kolibri) -> int:
    answer = gateway.add_provider(
        "1", url=proxy.url, username="service_admin", password=str(kolibri.lab["password"])
    )
    assert answer.status_code == 200, answer.text
    users = gateway.data_of("{ users(first: 500) { nodes { externalId } } }")["users"]["nodes"]
    return len(users)


def test_heartbeats_keep_one_session_through_a_minute_of_queries(
    forgetful_kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway(GATEWAY_HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS))
    expected = _registered(program, proxy, forgetful_kolibri)
    proxy.calls.clear()
    load = Load(program)

    with load.running(callers=2):
        time.sleep(60)

    assert load.failures == []
    assert set(load.counts) == {expected}
    assert len(load.counts) > 60
    assert proxy.log_ins == 0
    assert 20 <= proxy.heartbeats <= 80


def test_sessions_deleted_under_load_cost_one_login_and_nobody_notices(
    forgetful_kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway(GATEWAY_HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS))
    expected = _registered(program, proxy, forgetful_kolibri)
    proxy.calls.clear()
    load = Load(program)

    with load.running(callers=4):
        time.sleep(2)
        with contextlib.closing(
            sqlite3.connect(forgetful_kolibri.sessions_database, timeout=30)
        ) as database:
            deleted = database.execute("delete from kolibriauth_session").rowcount
            database.commit()
        time.sleep(6)

    assert deleted >= 1
    assert load.failures == []
    assert set(load.counts) == {expected}
    assert proxy.log_ins == 1


def test_a_changed_password_asks_for_a_new_one_at_once_and_the_new_one_cures(
    forgetful_kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway(GATEWAY_HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS))
    old = str(forgetful_kolibri.lab["password"])
    new = "another-Password-9"
    expected = _registered(program, proxy, forgetful_kolibri)
    proxy.calls.clear()
    try:
        _set_password(forgetful_kolibri, new)
        load = Load(program)
        with load.running(callers=4):
            time.sleep(10)
        refused = proxy.log_ins
        (session,) = program.data_of(STATE)["provider"]["sessions"]
        cure = program.data_of(UPDATE, password=new)["updateProvider"]
        answer = program.data_of("{ users(first: 500) { nodes { externalId } } }")
    finally:
        _set_password(forgetful_kolibri, old)

    assert refused == 1
    assert session["state"] == "REAUTH_REQUIRED"
    codes = {e["extensions"]["code"] for errors in load.failures for e in errors}  # type: ignore[attr-defined] # errors are lists of mappings
    assert codes == {"REAUTH_REQUIRED"}
    assert set(load.counts) <= {expected}
    assert cure["__typename"] != "ProviderRefused", cure
    assert len(answer["users"]["nodes"]) == expected
    assert proxy.log_ins == refused + 1


def _set_password(kolibri: Kolibri, password: str) -> None:
    """Change the service account's password as a superuser would, past the proxy."""
    superuser = kolibri.lab["superuser"]
    with httpx.Client(base_url=kolibri.url, timeout=30) as client:
        answer = client.post(
            "/api/auth/session/",
            json={"username": superuser["username"], "password": superuser["password"]},
        ).raise_for_status()
        found = client.get(
            "/api/auth/facilityuser/", params={"search": "service_admin"}
        ).raise_for_status()
        (account,) = [u for u in found.json() if u["username"] == "service_admin"]
        client.patch(
            f"/api/auth/facilityuser/{account['id']}/",
            json={"password": password},
            headers={"X-CSRFToken": answer.cookies["kolibri_csrftoken"]},
        ).raise_for_status()
