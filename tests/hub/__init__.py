"""A hub on the loopback interface that speaks what huggingface_hub and datasets send, for reading and for writing.

`store` knows users, repositories and commits, `server` the calls, `faults` how they fail.
"""

from tests.hub.faults import Fault, RandomFaults
from tests.hub.server import environment, serve
from tests.hub.store import Hub, RefusedError, Repository, User

__all__ = ["Fault", "Hub", "RandomFaults", "RefusedError", "Repository", "User", "environment", "serve"]
