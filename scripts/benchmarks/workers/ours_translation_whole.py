"""Worker of `translation_quality` for this project: a complete training with `fine_tune` in each turn."""

import gc
import shutil
from typing import Any

from protocol import Channel

from nlp_transfer import fine_tune

channel = Channel()
settings = channel.settings


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Train; the request holds the `seed` and, for a trial, `max_steps`."""
    shutil.rmtree(settings["folder"], ignore_errors=True)
    gc.collect()  # the last turn's model must not count in this one's peak
    run = fine_tune(
        model=settings["model"],
        data={"train": settings["train"], "validation_share": 0},
        task={"name": "translation", "source": settings["columns"][0], "target": settings["columns"][1]},
        training={"epochs": 1, "schedule": "constant", "attention_dropout": 0.0, **settings["training"], **request},
        output_dir=settings["folder"],
    )
    train = run.result["train"]
    return {
        "folder": f"{settings['folder']}/model",
        "seconds": train["seconds"] - train["preparation_seconds"],
        "steps": train["steps"],
    }


channel.serve(turn)
