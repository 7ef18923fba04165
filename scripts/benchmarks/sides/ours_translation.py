"""Our translations: a list of texts through `load_translator`."""

import time
from typing import Any

from protocol import Channel
from sides.plain import pairs_of

from nlp_transfer import load_translator

channel = Channel()
settings = channel.settings
texts, _ = pairs_of(settings["test"], *settings["columns"], settings.get("rows"))
# Those of the run, under which its columns may have other names.
translate: Any = load_translator(settings["run"], settings={"beams": settings["beams"]}, **settings.get("options", {}))
translate(texts[:8])


def turn(_: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    found = translate(texts)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows_per_second": len(texts) / seconds, "translations": found}


channel.serve(turn)
