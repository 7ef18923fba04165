"""Target tokenizers, trained on the targets or taken from a checkpoint, and the language codes of multilingual tokenizers."""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nlp_transfer.data.parallel_texts import draw_rows
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, did_you_mean

PAD, START, END = "<pad>", "<s>", "</s>"
SAMPLE = 2000  # texts for testing an existing tokenizer
MIN_VOCABULARY = 3 + 256  # special tokens and bytes
LANGUAGE_CODE = re.compile(r"[a-z]{2,4}_[A-Z][A-Za-z]{1,3}")  # en_XX, eng_Latn


def train_tokenizer(texts: Sequence[str], vocabulary: int | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (BPE: Sennrich et al. 2016, 1508.07909; on bytes: Radford et al. 2019).

    Text in any script is encoded without loss, since rare characters are encoded as bytes.

    Args:
        vocabulary: maximum number of tokens. None means 8,000, or 16,000 for at least 100,000 texts, or 32,000 for at least a
            million texts.
    """
    default = 8000 if len(texts) < 100_000 else 16_000 if len(texts) < 1_000_000 else 32_000
    tokenizer = Tokenizer(BPE())
    # A space before the first word makes it the same token as inside a sentence; the decoder removes it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = BpeTrainer(
        vocab_size=vocabulary or default, special_tokens=[PAD, START, END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    say(f"target tokenizer: {tokenizer.get_vocab_size():,} tokens, trained on the {len(texts):,} targets of train")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # a text may contain <s> or <pad>
    )  # fmt: skip


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that a decoder starts with: the tokenizer's bos, cls or pad token.

    Raises:
        UserError: the tokenizer has none of these tokens.
    """
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise UserError("task.target_tokenizer: found no token to start with; allowed: one with a bos, cls or pad token, or train")


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a text: the tokenizer's eos or sep token.

    Raises:
        UserError: the tokenizer has none of these tokens, so generation would never stop.
    """
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise UserError("task.target_tokenizer: found no token to end with; allowed: one with an eos or sep token, or train")


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Set the languages of a multilingual tokenizer (mBART, M2M100, NLLB). Other tokenizers are not changed.

    Raises:
        UserError: a language is missing or unknown.
    """
    known = language_codes(tokenizer)
    for setting, language in (("source_language", source), ("target_language", target)):
        if known and language is None:
            raise UserError(f"task.{setting}: is required by this multilingual model; allowed: {', '.join(known[:12])} ...")
        if known and language not in known:
            raise UserError(
                f"task.{setting}: found {language!r}{did_you_mean(language, known)}; allowed: {', '.join(known[:12])} ..."
            )
    if known:
        tokenizer.src_lang = source
        tokenizer.tgt_lang = target


def language_codes(tokenizer: Any) -> list[str]:
    """Return the languages for which a multilingual tokenizer has a token; an empty list for other tokenizers."""
    if not hasattr(tokenizer, "src_lang"):
        return []
    if codes := getattr(tokenizer, "lang_code_to_token", None):  # M2M100
        return sorted(codes)
    special = {str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []}
    return sorted(token for token in special if LANGUAGE_CODE.fullmatch(token)) or sorted(special)


def language_prefix(tokenizer: Any, target: str | None) -> str:
    """Return the source prefix of a multilingual Marian model, such as `>>de<< `; empty for other models.

    Raises:
        UserError: the target language is missing or unknown.
    """
    codes = [code.strip("><") for code in getattr(tokenizer, "supported_language_codes", None) or []]
    if not codes:
        return ""
    if target not in codes:
        problem = "is required by this multilingual model" if target is None else f"found {target!r}"
        raise UserError(f"task.target_language: {problem}; allowed: {', '.join(sorted(codes)[:12])} ...")
    return f">>{target}<< "


def target_token(tokenizer: Any, language: str | None) -> int | None:
    """Return the id of the target language's token, or None if the tokenizer has no such tokens."""
    if language is None or not language_codes(tokenizer):
        return None
    token = getattr(tokenizer, "lang_code_to_token", {}).get(language, language)
    return int(tokenizer.convert_tokens_to_ids(token))


def warn_if_lossy(tokenizer: PreTrainedTokenizerBase, name: str, texts: list[str]) -> None:
    """Warn if a tokenizer cannot reproduce a random sample of the targets. An uncased tokenizer loses capitals and accents."""
    texts = [texts[row] for row in draw_rows(len(texts), SAMPLE)]
    unknown, changed, example = 0, 0, ""
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], strict=True):
        unknown += tokenizer.unk_token_id in ids
        decoded = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if "".join(decoded.split()) != "".join(text.split()):
            changed += 1
            example = example or f"{text[:60]!r} becomes {decoded[:60]!r}"
    if changed:
        say(
            f"warning: task.target_tokenizer {name} cannot reproduce {changed} of {len(texts)} targets ({unknown} with unknown "
            f"tokens): {example}. Training cannot correct this; consider task.target_tokenizer: train"
        )
