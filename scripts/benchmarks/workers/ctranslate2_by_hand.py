"""Worker of `generation` for CTranslate2, set up by hand: its own batches, sorted by length."""

from pathlib import Path

import ctranslate2
from protocol import Channel
from transformers import AutoTokenizer
from workers.plain import serve_translations

channel = Channel()
settings = channel.settings
folder = Path(settings["model"])
translator = ctranslate2.Translator(str(folder / "ctranslate2"), "cpu", intra_threads=settings["threads"])
tokenizer = AutoTokenizer.from_pretrained(folder, **settings.get("languages", {}))
target = folder / "target_tokenizer"
writer = AutoTokenizer.from_pretrained(target) if target.is_dir() else tokenizer


def translate(rows: list[str]) -> list[str]:
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(rows, truncation=True)["input_ids"]]
    prefix = settings.get("prefix")
    results = translator.translate_batch(
        tokens, [prefix] * len(tokens) if prefix else None, beam_size=settings["beams"], max_batch_size=32,
        max_decoding_length=settings["limit"],
    )  # fmt: skip
    ids = [writer.convert_tokens_to_ids(result.hypotheses[0][len(prefix or ()) :]) for result in results]
    return list(writer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


serve_translations(channel, translate)
