"""Worker of `prediction` for this project: a list of texts through `load_predictor`."""

import time
from typing import Any

from protocol import Channel
from workers.plain import texts_of

from nlp_transfer import load_predictor

channel = Channel()
settings = channel.settings
predictor = load_predictor(settings["run"], **settings.get("options", {}))
texts = texts_of(settings["test"], settings.get("rows"))
predictor(texts[:64])


def turn(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("probabilities"):
        answers = predictor(texts, probabilities=True)
        return {"probabilities": [[one[f"probability:{label}"] for label in request["labels"]] for one in answers]}
    began = time.perf_counter()
    answers = predictor(texts)
    seconds = time.perf_counter() - began
    assert len(answers) == len(texts)
    return {"seconds": seconds, "rows_per_second": len(texts) / seconds}


channel.serve(turn)
