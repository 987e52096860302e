"""A key's life as its callers see it."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from running_gateway import RunningGateway, running_gateway

QUERY = {"query": "{ providers { id } }"}


async def status(gateway: RunningGateway, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    answer = await gateway.client.post("/graphql", json=QUERY, headers=headers)
    if answer.status_code == 401:
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert token not in answer.text
    return answer.status_code


async def test_two_keys_work_while_callers_change_over_and_then_the_new_one_only(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path) as gateway:
        keys = gateway.parts.api_keys
        old, token = await keys.create("product", ["read:users"])
        rotated = await keys.rotate(old.id, old_until=datetime.now(UTC) + timedelta(seconds=1.5))
        assert rotated is not None
        new, new_token = rotated

        together = [await status(gateway, each.reveal()) for each in (token, new_token)]
        await asyncio.sleep(2.6)
        after = [await status(gateway, each.reveal()) for each in (token, new_token)]
        await keys.revoke(new.id)
        revoked = await status(gateway, new_token.reveal())
        known = {key.id: key for key in await keys.list_all()}

    assert (together, after, revoked) == ([200, 200], [401, 200], 401)
    assert (new.name, new.scopes) == ("product", frozenset({"read:users"}))
    assert known[old.id].last_used_at is not None
    assert known[new.id].last_used_at is not None
