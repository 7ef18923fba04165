"""Worker of `generation` for plain `generate`: batches in file order, each padded to its longest row."""

from pathlib import Path

import torch
from protocol import Channel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging
from workers.plain import serve_translations

logging.set_verbosity_error()
channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
dtype = {"dtype": getattr(torch, settings["dtype"])} if settings.get("dtype") else {}
model = AutoModelForSeq2SeqLM.from_pretrained(settings["model"], **dtype).eval()
tokenizer = AutoTokenizer.from_pretrained(settings["model"], **settings.get("languages", {}))
target = Path(settings["model"]) / "target_tokenizer"
writer = AutoTokenizer.from_pretrained(target) if target.is_dir() else tokenizer
code = settings.get("languages", {}).get("tgt_lang")
forced = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(code)} if code else {}


def translate(rows: list[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(rows), settings["batch_size"]):
        inputs = tokenizer(rows[start : start + settings["batch_size"]], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, num_beams=settings["beams"], max_new_tokens=settings["limit"], **forced)
        found += writer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return found


serve_translations(channel, translate)
