"""A fake hub on the loopback interface for the calls of huggingface_hub and datasets.

`store` holds users, repositories and commits, `server` answers the calls, and `faults` makes them fail.
"""

from tests.helpers.hub.faults import Fault, RandomFaults
from tests.helpers.hub.server import environment, serve
from tests.helpers.hub.store import Hub, RefusedError, Repository, User

__all__ = ["Fault", "Hub", "RandomFaults", "RefusedError", "Repository", "User", "environment", "serve"]
