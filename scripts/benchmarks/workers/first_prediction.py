"""Worker of `prediction`: seconds from starting a command to its prediction of one text."""

import subprocess
import time
from typing import Any

from protocol import Channel

channel = Channel()


def turn(_: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    subprocess.run(channel.settings["command"], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - began}


channel.serve(turn)
