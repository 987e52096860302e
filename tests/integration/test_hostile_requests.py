"""A few of the requests of ``benchmarks/hostile_requests.py``, which sends a million."""

import asyncio
from pathlib import Path

import pytest
from hostile_requests import (
    TOKEN,
    Answered,
    Hostile,
    Wrong,
    judge,
    listening_for_faults,
    requests,
    send,
    serving_in_process,
)
from hypothesis import HealthCheck, given, settings

A_REQUEST = Hostile(
    method="POST", path="/graphql", query=b"", headers=(), body=b"", pieces=1, leaves=False
)


def test_no_request_is_a_fault_shows_our_inside_or_waits_forever(tmp_path: Path) -> None:
    with asyncio.Runner() as runner, listening_for_faults() as faults:
        serving = serving_in_process(tmp_path)
        app = runner.run(serving.__aenter__())

        @settings(
            max_examples=300,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(requests)
        def check(request: Hostile) -> None:
            faults.clear()
            judge(request, runner.run(send(app, request)), faults)

        try:
            check()
        finally:
            runner.run(serving.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("status", "body", "faults"),
    [
        (500, b"{}", []),
        (0, b"", []),
        (200, b"{}", [{"event": "internal_error"}]),
        (400, b'{"errors": [{"message": "KeyError: x", "extensions": {"code": "BAD_INPUT"}}]}', []),
        (200, b'{"errors": [{"message": "x", "extensions": {"code": "INTERNAL"}}]}', []),
        (200, b'{"errors": [{"message": "x"}]}', []),
        (200, f'{{"data": "{TOKEN}"}}'.encode(), []),
        (200, b"{", []),
    ],
)
def test_what_must_not_be_answered_is_told_from_what_may(
    status: int, body: bytes, faults: list[dict[str, str]]
) -> None:
    def answered(status: int, body: bytes) -> Answered:
        return Answered(status=status, content_type="application/json", body=bytearray(body))

    judge(A_REQUEST, answered(200, b'{"data": null}'), [])
    with pytest.raises((Wrong, KeyError, ValueError)):
        judge(A_REQUEST, answered(status, body), faults)
