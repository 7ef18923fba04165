"""Exports for CTranslate2: the translations of the trained model in every family, and the same errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer import load_translator
from nlp_transfer.export.export import export_model
from tests.builders import run, write
from tests.helpers.seq2seq_models import PAIRS, languages, save_tiny_seq2seq

pytest.importorskip("ctranslate2")
FAMILIES = ["marian", "marian-multilingual", "t5", "mbart", "mbart50", "m2m100", "nllb"]
TEXTS = [*(source for source, _ in PAIRS), "", " ", "River", " ".join(source for source, _ in PAIRS[:9])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family, trained until it knows most pairs by heart."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = write(folder / "pairs.csv", PAIRS, ("source", "target"))
    for family in FAMILIES:
        run(
            model=save_tiny_seq2seq(family, folder / f"{family}-base"), data={"train": pairs, "validation": pairs},
            task={"name": "translation", "beams": 3, **languages(family)}, output_dir=folder / family,
            training={"max_steps": 100, "learning_rate": 1e-2, "label_smoothing": 0, "dropout": 0, "seed": 1},
        )  # fmt: skip
    return {family: folder / family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_exports_translate_like_the_model(runs: dict[str, Path], family: str) -> None:
    export = export_model(runs[family], "ctranslate2")
    expected, translated = load_translator(runs[family])(TEXTS), load_translator(export.folder)(TEXTS)
    print(family, export.report, [(a, b) for a, b in zip(expected, translated) if a != b])
    assert translated == expected
