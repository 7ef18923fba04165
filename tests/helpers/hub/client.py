"""A connection of this process to a hub on the loopback interface.

Loading by id needs a separate process with the variables of `server.environment`, because huggingface_hub reads most of them when
it is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http

from tests.helpers.hub.server import serve
from tests.helpers.hub.store import Hub

TOKEN = "hf_" + "AnnsOwnToken" * 3


@contextmanager
def connected(folder: Path) -> Iterator[tuple[Hub, list[float]]]:
    """A hub that `ann` may write to with TOKEN, and the waits in seconds between retries, which are skipped."""
    waits: list[float] = []
    with serve() as (address, hub), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-login"))
        patch.setattr(_http, "time", SimpleNamespace(sleep=waits.append))
        patch.setenv("HF_TOKEN", TOKEN)
        hub.user(TOKEN, "ann", orgs={"lab": "write", "library": "read"})
        try:
            yield hub, waits
        finally:
            close_session()
