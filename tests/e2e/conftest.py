import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_servers import Gateway, Kolibri, free_port


@pytest.fixture(scope="session")
def kolibri(real_kolibri: Kolibri) -> Kolibri:
    """In this folder, there is no other."""
    return real_kolibri


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways, each on its own data; they are stopped after the test."""
    started: list[Gateway] = []

    def start(**settings: str) -> Gateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        port = free_port()
        token = secrets.token_urlsafe(32)
        environment = {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "GATEWAY_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "GATEWAY_DATA_FOLDER": str(folder / "data"),
            "GATEWAY_TOKEN": token,
            "GATEWAY_MAX_AGE_SECONDS": "0",  # every query is to reach Kolibri
            "GATEWAY_QUEUE_SECONDS": "60",
            **settings,
        }
        program = Gateway(
            url=f"http://127.0.0.1:{port}",
            token=token,
            data=folder,
            log=folder / "gateway.log",
            environment=environment,
        )
        started.append(program)
        program.start()
        return program

    yield start
    for program in started:
        if program.process is not None and program.process.poll() is None:
            program.stop()
    if os.environ.get("KEEP_LOGS"):
        shutil.copytree(tmp_path, Path(os.environ["KEEP_LOGS"]) / tmp_path.name)
