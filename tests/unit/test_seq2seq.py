"""Parts of translation models: encoder-decoders built from encoders, source and target tokenizers, limits of generation."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, M2M100Tokenizer, OPTConfig

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.layers import find_layers, has_decoder, new_parameters
from nlp_transfer.models.seq2seq.encoder_decoder import build_encoder_decoder, load_encoder_decoder
from nlp_transfer.models.seq2seq.generation import LengthLimit, configure_search, generate
from nlp_transfer.models.seq2seq.target_tokenizers import (
    MIN_VOCABULARY,
    end_token,
    language_codes,
    language_prefix,
    set_languages,
    start_token,
    train_tokenizer,
    warn_if_lossy,
)
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED, TokenizerPair
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from tests.builders import encoded, opened, refused, rows
from tests.helpers.models import FAMILIES, WORDS, save_tiny
from tests.helpers.seq2seq_models import LANGUAGES, PAIRS, SCRIPTS, SEQ2SEQ, TRANSLATION, languages, save_tiny_seq2seq

pytestmark = pytest.mark.model

SOURCES, TARGETS = ([pair[side] for pair in PAIRS] for side in (0, 1))
TARGET = train_tokenizer(TARGETS, 300)
ROWS = rows({"source": SOURCES, "target": TARGETS})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("translation")
    return {family: save_tiny_seq2seq(family, folder / family) for family in {*TRANSLATION, *LANGUAGES}}


def build(folder: Path, decoder: str = "encoder", target: Any = TARGET, **changes: Any) -> Any:
    asked = {"decoder_layers": None, "same_vocabulary": False, "warm_start": True} | changes
    torch.manual_seed(5)
    return build_encoder_decoder(opened(folder), decoder, target=target, hidden_dropout=0, attention_dropout=0, **asked)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[2, 5, 9, 11, 3], [2, 7, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "decoder_input_ids": torch.tensor([[1, 40, 41], [1, 42, 0]])}


# Encoder-decoders from encoders


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_an_encoder(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    model = build(tiny[family])
    inputs = batch()
    logits = model(**inputs).logits
    assert logits.shape == (2, 3, len(TARGET))
    logits.log_softmax(-1)[..., 3].sum().backward()
    without = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
    assert not without
    assert not any(value.requires_grad for name, value in model.named_parameters() if ".pooler." in name)
    assert any("crossattention" in name and value.grad.abs().max() > 0 for name, value in model.named_parameters())
    with torch.inference_mode():
        other = model(**inputs | {"input_ids": inputs["input_ids"].flip(0), "attention_mask": inputs["attention_mask"].flip(0)})
    assert (other.logits - logits).abs().max() > 1e-4, "what is decoded depends on the source"
    assert model.get_output_embeddings().weight is model.get_decoder().get_input_embeddings().weight
    layers = find_layers(model)
    assert has_decoder(model)
    assert (layers.depth, layers.decoder) == (1 if family == "albert" else model.config.encoder.num_hidden_layers, None)
    assert all(layers.depth_of(name) == layers.depth + 1 for name, _ in model.named_parameters() if name.startswith("decoder."))
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.get_output_embeddings().weight is again.get_decoder().get_input_embeddings().weight


# In each family's own words: how the weights are called that become these of a BERT layer.
QUERY, LOWER, POSITIONS = "attention.self.query.weight", "intermediate.dense.weight", "embeddings.position_embeddings.weight"
NAMES = {
    "bert": ("encoder.layer", QUERY, LOWER),
    "roberta": ("encoder.layer", QUERY, LOWER),
    "electra": ("encoder.layer", QUERY, LOWER),
    "distilbert": ("transformer.layer", "attention.q_lin.weight", "ffn.lin1.weight"),
    "mpnet": ("encoder.layer", "attention.attn.q.weight", LOWER),
}


@pytest.mark.parametrize("family", list(NAMES))
def test_decoder_copies_layers_at_even_distances(family: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / family, num_hidden_layers=3)
    model = build(folder, decoder_layers=2)
    given, own = model.encoder.state_dict(), model.decoder.state_dict()
    stack, query, lower = NAMES[family]
    assert model.config.decoder.num_hidden_layers == 2
    for layer, of in ((0, 0), (1, 2)):
        copied = {"attention.self.query": query, "crossattention.self.query": query, "intermediate.dense": lower}
        for name, theirs in copied.items():
            mine = own[f"bert.encoder.layer.{layer}.{name}.weight"]
            assert torch.equal(mine, given[f"{stack}.{of}.{theirs}"]), name
            assert not torch.equal(mine, given[f"{stack}.1.{theirs}"])
    positions = own[f"bert.{POSITIONS}"]
    same = positions.shape == given[POSITIONS][-len(positions) :].shape
    assert same == (family != "electra"), "ELECTRA's embeddings are narrower than its layers"
    if same:  # those of RoBERTa's kind that stand for no position are left out
        assert torch.equal(positions, given[POSITIONS][-len(positions) :])
    new = new_parameters(model)
    assert (f"decoder.bert.{POSITIONS}" in new) == (family == "electra")
    assert "decoder.bert.embeddings.word_embeddings.weight" in new, "the target's words are others"
    assert not any(".encoder.layer." in name for name in new)
    assert not any(name.startswith("encoder.") for name in new)


@pytest.mark.parametrize(("asked", "layers"), [(None, [0]), (1, [0]), (4, [0, 0, 1, 1])])
def test_decoder_has_the_requested_layers(asked: int | None, layers: list[int], tiny: dict[str, Path]) -> None:
    model = build(tiny["bert"], decoder_layers=asked)
    given = model.encoder.state_dict()
    found = [layer.attention.self.query.weight for layer in model.decoder.bert.encoder.layer]
    assert len(found) == len(layers)
    for mine, of in zip(found, layers, strict=True):
        assert torch.equal(mine, given[f"encoder.layer.{of}.{QUERY}"])


def test_shared_vocabulary_copies_the_embeddings(tiny: dict[str, Path]) -> None:
    tokenizer = opened(tiny["bert"]).tokenizer
    shared, other = (build(tiny["bert"], target=tokenizer, same_vocabulary=same) for same in (True, False))
    words = "embeddings.word_embeddings.weight"
    given = shared.encoder.state_dict()[words]
    assert torch.equal(shared.decoder.state_dict()[f"bert.{words}"], given)
    assert shared.get_output_embeddings().weight is shared.decoder.get_input_embeddings().weight
    assert not torch.equal(other.decoder.state_dict()[f"bert.{words}"], given)
    assert f"decoder.bert.{words}" not in new_parameters(shared)


def weights(model: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Those that were drawn: biases and normalisation weights are the same in every model."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(prefix) and float(value.float().std()) > 0}


def equal_to_none(found: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return not any(one.shape == other.shape and torch.equal(one, other) for one in found.values() for other in others.values())


def test_new_decoder_copies_nothing(tiny: dict[str, Path]) -> None:
    model = build(tiny["bert"], "new")
    assert equal_to_none(weights(model, "decoder."), weights(model, "encoder."))
    assert {name for name, _ in model.named_parameters() if name.startswith("decoder.")} == new_parameters(model)


@pytest.mark.parametrize("decoder", ["encoder", "new", "folder"])
def test_cold_start_randomizes_the_same_architecture(decoder: str, tiny: dict[str, Path]) -> None:
    name = str(tiny["roberta"]) if decoder == "folder" else decoder
    warm, cold = (build(tiny["bert"], name, warm_start=warm) for warm in (True, False))
    assert {key: value.shape for key, value in warm.state_dict().items()} == {
        key: value.shape for key, value in cold.state_dict().items()
    }
    kept = weights(AutoModelForSeq2SeqLM.from_config(warm.config)).keys()
    assert equal_to_none({key: value for key, value in weights(cold).items() if key in kept}, weights(warm))
    assert new_parameters(cold) == {key for key, _ in cold.named_parameters()}
    assert new_parameters(warm) & new_parameters(cold) < new_parameters(cold)


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_cold_start_of_a_pretrained_seq2seq_model(family: str, checkpoints: dict[str, Path]) -> None:
    checkpoint = opened(checkpoints[family])
    warm, cold = (load_encoder_decoder(checkpoint, warm, None, None) for warm in (True, False))
    computed = {name for name in warm.state_dict() if "embed_positions" in name}
    drawn = {name: value for name, value in weights(cold).items() if name not in computed}
    assert equal_to_none(drawn, weights(warm))
    assert not new_parameters(warm)
    assert new_parameters(cold) == {name for name, _ in cold.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "electra"])
def test_named_model_as_decoder(family: str, tiny: dict[str, Path]) -> None:
    tokenizer = opened(tiny[family]).tokenizer
    model = build(tiny["distilbert"], str(tiny[family]), tokenizer, decoder_layers=1)
    own = AutoModelForCausalLM.from_pretrained(tiny[family], is_decoder=True).state_dict()
    found = model.decoder.state_dict()
    taken = [name for name in own if name in found and ("layer.0" in name or "word_embeddings" in name)]
    assert len(taken) > 10
    assert all(torch.equal(found[name], own[name]) for name in taken)
    assert model.config.decoder.num_hidden_layers == 1
    new = new_parameters(model)
    assert any("crossattention" in name for name in new)
    assert not any(f"decoder.{name}" in new for name in taken)
    logits = model(**batch()).logits
    logits.sum().backward()
    assert logits.shape == (2, 3, len(tokenizer))


def test_decoder_of_another_width_gets_a_projection(tiny: dict[str, Path], tmp_path: Path) -> None:
    model = build(tiny["bert"], str(save_tiny("bert", tmp_path / "wide", hidden_size=48)))
    assert model.enc_to_dec_proj.weight.shape == (48, 32)
    assert "enc_to_dec_proj.weight" in new_parameters(model)
    model(**batch()).logits.sum().backward()
    assert model.enc_to_dec_proj.weight.grad is not None


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "opt"])
def test_decoder_without_cross_attention_is_refused(family: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny.get(family, tmp_path / "opt")
    if family == "opt":
        config = OPTConfig(
            vocab_size=len(TARGET), hidden_size=32, num_hidden_layers=1, ffn_dim=48, num_attention_heads=2, word_embed_proj_dim=32
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        TARGET.save_pretrained(folder)
    with refused("task.decoder: ", "no cross-attention" if family == "opt" else "cannot be"):
        build(tiny["bert"], str(folder))


def test_too_many_decoder_layers_are_refused(tiny: dict[str, Path]) -> None:
    with refused("task.decoder_layers: found 3; allowed: up to 2"):
        build(tiny["bert"], str(tiny["roberta"]), decoder_layers=3)


def test_special_tokens_are_set_in_both_configurations(tiny: dict[str, Path], tmp_path: Path) -> None:
    build(tiny["bert"]).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    expected = {"decoder_start_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
    for where in (model.config, model.generation_config):
        assert {name: TARGET.convert_ids_to_tokens(getattr(where, name)) for name in expected} == expected


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_requested_dropout_is_set_and_layerdrop_is_off(family: str, checkpoints: dict[str, Path]) -> None:
    task = prepared(checkpoints[family], languages(family))
    model = task.build_model(opened(checkpoints[family]), TrainingConfig(dropout=0, attention_dropout=0))
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    config = model.config.to_dict()
    names = [name for name in config if name in ("dropout", "dropout_rate", "attention_dropout")]
    names += [name for name in config if name.endswith("layerdrop")]
    assert names
    assert rates | {config[name] for name in names} == {0}
    model.train()
    table = tokens(task, opened(checkpoints[family]))
    inputs = {name: tensor for name, tensor in table.batch(np.arange(2)).items() if name != "labels"}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model(**inputs).logits.sum().backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


# Trained target tokenizers

OTHER = [
    "नमस्ते दुनिया", "مرحبا بالعالم", "สวัสดีชาวโลก", "한국어 문장", "ქართული", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎", "a\nb\r\nc", "x\u200by\u00a0z", "", "  ",
    "</s></s> <s><pad>", "[CLS] <mask> <unk> Ġ Ċ ▁", "0 1 2 3 \x00 \x7f",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tokenizer trained on several languages, and the same as it was read again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(SCRIPTS, 600)
    tokenizer.save_pretrained(folder / "target_tokenizer")
    return tokenizer, AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")


def back(tokenizer: Any, text: str) -> str:
    """A text as it comes out of a model that writes it."""
    tokenizers = TokenizerPair(tokenizer, tokenizer, False, start_token(tokenizer), end_token(tokenizer))
    labels, cut = tokenizers.target_ids([text], 1 << 20)
    assert not cut
    return tokenizers.decode(torch.tensor([[tokenizers.start, *labels[0], tokenizers.pad, tokenizers.pad]]))[0]


@pytest.mark.parametrize("text", [*SCRIPTS, *OTHER])
def test_trained_tokenizer_reproduces_every_text(text: str, trained: tuple[Any, Any]) -> None:
    ids = [tokenizer(text)["input_ids"] for tokenizer in trained]
    assert ids[0] == ids[1]
    special = {trained[0].convert_tokens_to_ids(token) for token in ("<pad>", "<s>", "</s>")}
    assert ids[0][-1] == trained[0].eos_token_id
    assert not special & set(ids[0][:-1]), "what looks like a special token is text"
    for tokenizer in trained:
        assert back(tokenizer, text.strip()) == text.strip()
        assert tokenizer.decode(ids[0], skip_special_tokens=True) in (text, text.removeprefix(" "))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text().map(str.strip))
def test_trained_tokenizer_reproduces_random_text(text: str, trained: tuple[Any, Any]) -> None:
    assert back(trained[1], text) == text


def test_words_have_the_same_token_at_all_positions() -> None:
    tokenizer = train_tokenizer(["Hund Katze", "Katze Hund"] * 5, 300)
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Hund Katze", "Katze Hund"))
    assert len(first) == 2
    assert first == second[::-1]


@pytest.mark.parametrize("size", [MIN_VOCABULARY, 300, 8000])
def test_vocabulary_size_is_limited(size: int) -> None:
    tokenizer = train_tokenizer(SCRIPTS, size)
    assert MIN_VOCABULARY <= len(tokenizer) <= size
    assert (len(tokenizer) == size) == (size < 8000), "a few sentences have no more tokens to give"
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert all(back(tokenizer, text) == text for text in SCRIPTS)


def test_vocabulary_does_not_depend_on_the_process() -> None:
    assert train_tokenizer(SCRIPTS, 500).get_vocab() == train_tokenizer(list(SCRIPTS), 500).get_vocab()


# Languages

CODES = {"mbart": 25, "mbart50": 52, "m2m100": 100, "nllb": 202, "marian": 0, "marian-multilingual": 0, "t5": 0}


@pytest.mark.parametrize("family", list(CODES))
def test_language_codes_of_tokenizers(family: str, checkpoints: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    codes = language_codes(tokenizer)
    assert len(codes) == CODES[family]
    assert codes == sorted(codes)
    if codes:
        assert set(LANGUAGES[family]) < set(codes)
        assert not any("<" in code or " " in code for code in codes)


def test_added_language_tokens_are_recognized(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["nllb"])
    more = [*tokenizer.extra_special_tokens, "tyv_Cyrl", "<formal>"]
    tokenizer.add_special_tokens({"extra_special_tokens": more})
    tokenizer.save_pretrained(tmp_path)
    codes = language_codes(AutoTokenizer.from_pretrained(tmp_path))
    assert "tyv_Cyrl" in codes
    assert "<formal>" not in codes
    assert len(codes) == 203


@pytest.mark.parametrize(
    ("source", "target", "facts"),
    [
        (None, "de_DE", ["task.source_language: is required", "allowed: ar_AR, cs_CZ"]),
        ("en_XX", None, ["task.target_language: is required"]),
        ("en_XX", "de", ["task.target_language: found 'de'"]),
        ("en_XY", "de_DE", ["task.source_language: found 'en_XY' (did you mean 'en_XX'?)"]),
    ],
)
def test_unknown_languages_are_refused(
    source: str | None, target: str | None, facts: list[str], checkpoints: dict[str, Path]
) -> None:
    with refused(*facts):
        set_languages(AutoTokenizer.from_pretrained(checkpoints["mbart"]), source, target)


def test_prefix_of_multilingual_marian_models(checkpoints: dict[str, Path]) -> None:
    many, one = (AutoTokenizer.from_pretrained(checkpoints[name]) for name in ("marian-multilingual", "marian"))
    assert language_prefix(many, "nb") == ">>nb<< "
    assert language_prefix(one, None) == language_prefix(one, "de") == ""
    for wrong, message in ((None, "is required"), ("sv", "found 'sv'")):
        with refused(f"task.target_language: {message}", "; allowed: de, fr, nb"):
            language_prefix(many, wrong)


# Source and target token ids


def prepared(folder: Path, given: dict[str, Any] | None = None) -> Any:
    return task_from({"name": "translation", **(given or {})}).prepare(opened(folder), ROWS)


def tokens(task: Any, checkpoint: Checkpoint) -> TokenTable:
    return encoded(task, checkpoint, ROWS)


FORMS = {
    "bert": ("<s>", "[CLS] . [SEP]", ". </s>"),
    "marian": ("<pad>", ". </s>", ". </s>"),
    "marian-multilingual": ("<pad>", ">>de<< . </s>", ". </s>"),
    "t5": ("<pad>", ". </s>", ". </s>"),
    "mbart": ("de_DE", ". </s> en_XX", ". </s> de_DE"),
    "mbart50": ("</s>", "en_XX . </s>", "de_DE . </s>"),
    "m2m100": ("</s>", "__en__ . </s>", "__de__ . </s>"),
    "nllb": ("</s>", "eng_Latn . </s>", "deu_Latn . </s>"),
}


@pytest.mark.parametrize("family", list(FORMS))
def test_special_tokens_of_each_family(family: str, checkpoints: dict[str, Path]) -> None:
    tokenizers = prepared(checkpoints[family], languages(family)).tokenizers
    start, source, target = FORMS[family]
    for tokenizer, ids, form in (
        (tokenizers.source, tokenizers.source_ids(SOURCES, 64)[0], source),
        (tokenizers.target, tokenizers.target_ids(TARGETS, 64)[0], target),
    ):
        before, after = (part.split() for part in form.split("."))
        for row in ids:
            written = tokenizer.convert_ids_to_tokens(row)
            assert written[: len(before)] == before
            assert written[len(written) - len(after) :] == after
            inside = written[len(before) : len(written) - len(after)]
            assert inside
            assert not set(inside) & {"<s>", "</s>", "<pad>", "[CLS]", "[SEP]", "[PAD]", *before, *after}
    assert tokenizers.target.convert_ids_to_tokens(tokenizers.start) == start
    first = target.split(".")[0].strip()
    assert tokenizers.forced == (tokenizers.target.convert_tokens_to_ids(first) if first else None)


@pytest.mark.parametrize("family", ["mbart", "mbart50", "m2m100", "nllb"])
def test_requested_languages_are_used(family: str, checkpoints: dict[str, Path]) -> None:
    """None of them is the tokenizer's own first choice."""
    german = LANGUAGES[family][1]
    french = {"m2m100": "fr", "nllb": "fra_Latn"}.get(family, "fr_XX")
    tokenizers = prepared(checkpoints[family], {"source_language": german, "target_language": french}).tokenizers
    written = [
        tokenizers.source.convert_ids_to_tokens(ids[0][0])
        for ids in (tokenizers.source_ids(["a"], 9), tokenizers.target_ids(["a"], 9))
    ]
    for row, code in zip(written, (german, french), strict=True):
        assert [token for token in row if token in (code, f"__{code}__")] == [row[-1] if family == "mbart" else row[0]]


@pytest.mark.parametrize("family", list(FORMS))
def test_batches_of_sources_and_targets(family: str, checkpoints: dict[str, Path]) -> None:
    task = prepared(checkpoints[family], languages(family))
    table = tokens(task, opened(checkpoints[family]))
    found = table.batch(np.array([0, 5, 10]))
    labels, inputs = found["labels"], found["decoder_input_ids"]
    assert labels.shape == inputs.shape
    wanted = task.tokenizers.target_ids([TARGETS[row] for row in (0, 5, 10)], 64)[0]
    assert len(set(map(len, wanted))) > 1, "rows of different length, or nothing is padded"
    for row, ids in enumerate(wanted):
        size = len(ids)
        assert labels[row].tolist() == ids + [IGNORED] * (labels.shape[1] - size)
        assert inputs[row].tolist() == [task.tokenizers.start, *ids[:-1]] + [task.tokenizers.pad] * (labels.shape[1] - size)
    assert int(inputs.min()) >= 0
    pad = opened(checkpoints[family]).tokenizer.pad_token_id
    assert torch.equal(found["input_ids"] == pad, found["attention_mask"] == 0)
    assert table.references["references"].tolist() == TARGETS
    assert task.objective().count(found)["cross_entropy"] == sum(map(len, wanted))


@pytest.mark.parametrize("family", list(FORMS))
def test_truncated_targets_have_no_end_token(family: str, checkpoints: dict[str, Path]) -> None:
    task = prepared(checkpoints[family], languages(family) | {"max_length": 7})
    whole = prepared(checkpoints[family], languages(family)).tokenizers.target_ids(TARGETS, 64)[0]
    found, cut = task.tokenizers.target_ids(TARGETS, 7)
    assert cut == {row for row, ids in enumerate(whole) if len(ids) > 7}
    assert cut
    for row, ids in enumerate(found):
        assert ids == whole[row][:7]
        assert (task.tokenizers.end in ids) == (row not in cut)
    sources, shortened = task.tokenizers.source_ids(["the dog " * 20, "the dog"], 7)
    assert shortened == {0}
    assert len(sources[0]) == 7
    end = prepared(checkpoints[family], languages(family)).tokenizers.source_ids(["the dog"], 64)[0][0][-1]
    assert sources[0][-1] == sources[1][-1] == end, "a source keeps its end"
    table = tokens(task, opened(checkpoints[family]))
    assert table.truncated >= len(cut)
    assert table.ragged["labels"].lengths.max() == table.ragged["decoder_input_ids"].lengths.max() == 7


def test_decoding_removes_tokens_around_the_translation(checkpoints: dict[str, Path]) -> None:
    """Also where the tokenizer does not know the language for a special token, or has no padding of its own."""
    folder = checkpoints["m2m100"]
    bare = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"), src_lang="en", tgt_lang="de")
    ids = bare(text_target=TARGETS[1])["input_ids"]
    assert "__de__" in bare.decode(ids, skip_special_tokens=True)
    tokenizers = TokenizerPair(bare, bare, True, bare.eos_token_id, bare.eos_token_id, ids[0])
    padded = torch.tensor([[bare.eos_token_id, *ids, 9, 9]])
    assert tokenizers.decode(padded) == [TARGETS[1]]


def test_spaces_before_punctuation_are_preserved(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["t5"], clean_up_tokenization_spaces=True)
    text = "Die Katze ist rot . Der Hund !"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) != text
    tokenizers = TokenizerPair(tokenizer, tokenizer, True, 0, 1)
    assert tokenizers.decode(torch.tensor([[0, *ids]])) == [text]


# Generation


def test_rows_end_at_their_limits() -> None:
    limit = LengthLimit(torch.tensor([2, 4]), 2, end=3)
    scores = torch.arange(20.0).reshape(4, 5)
    assert limit(torch.zeros(4, 1), scores) is scores
    for length, ended in ((2, [True, True, False, False]), (3, [True, True, False, False]), (4, [True] * 4)):
        found = limit(torch.zeros(4, length), scores)
        for row, over in enumerate(ended):
            assert torch.equal(found[row], torch.tensor([-torch.inf] * 3 + [0.0, -torch.inf]) if over else scores[row])


def test_generation_settings_of_checkpoints_are_overridden(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Sampling, and limits and penalties that fit other lengths: neither is left in what is saved, nor used."""
    folder = checkpoints["marian"]
    own = GenerationConfig.from_pretrained(folder)
    plain = prepared(folder, {"beams": 1})
    model = plain.build_model(opened(folder), TrainingConfig())
    own.update(
        do_sample=True, temperature=3.0, top_k=2, top_p=0.5, num_beams=4, early_stopping="never", length_penalty=3.0, max_length=4
    )
    for beams in (1, 3):
        model.generation_config = own.__class__(**own.to_dict())
        configure_search(model.generation_config, beams, 1.5)
        model.save_pretrained(tmp_path / str(beams))
        saved = json.loads((tmp_path / str(beams) / "generation_config.json").read_text())
        assert saved["num_beams"] == beams
        assert (saved["do_sample"], saved["early_stopping"]) == (False, False)
        assert (saved["length_penalty"], saved["temperature"], saved["top_k"]) == (1.5 if beams > 1 else 1.0, 1.0, 50)
        ids, mask = torch.tensor([[4, 5, 6, 0]]), torch.ones(1, 4).long()
        model.generation_config = own.__class__(**own.to_dict())
        found = [generate(model.eval(), plain.tokenizers, ids, mask, torch.tensor([12]), beams, 1.5) for _ in range(2)]
        assert torch.equal(found[0], found[1])
        assert found[0].shape[1] > 5, "longer than the checkpoint's own limit"


def test_second_length_limit_causes_no_warnings(checkpoints: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["marian"])
    model.generation_config.max_length = 512
    tokenizers = prepared(checkpoints["marian"]).tokenizers
    generate(model, tokenizers, torch.tensor([[4, 5, 0]]), torch.ones(1, 3).long(), torch.tensor([6]), 1, 1.0)
    assert "max_new_tokens" not in caplog.text


@pytest.mark.parametrize("family", TRANSLATION)
def test_limits_come_from_train(family: str, checkpoints: dict[str, Path]) -> None:
    task = prepared(checkpoints[family], languages(family))
    tokenizers = task.tokenizers
    sources, targets = tokenizers.source_ids(SOURCES, 64)[0], tokenizers.target_ids(TARGETS, 64)[0]
    assert task.longest_source == min(64, max(16, -(-3 * max(map(len, sources)) // 2)))
    for source, target in zip(sources, targets, strict=True):
        assert len(target) <= task.target_limit(len(source)) <= 64
    model = task.build_model(opened(checkpoints[family]), TrainingConfig())
    assert model.generation_config.max_new_tokens == task.target_limit(task.longest_source)
    asked = prepared(checkpoints[family], languages(family) | {"length_ratio": 0.5, "longest_source": 20})
    assert (asked.longest_source, asked.target_limit(20)) == (20, 14)


def test_tiny_encoder_knows_its_words() -> None:
    """Sources are told apart by words that the tiny encoder has."""
    lowered = {"".join(filter(str.isalpha, word)).lower() for text in SOURCES for word in text.split()}
    assert lowered <= set(WORDS)


def test_lossy_tokenizer_warning_samples_all_texts(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Not on the first ones alone, which may be of the kind that it can write."""
    warn_if_lossy(opened(tiny["bert"]).tokenizer, "source", ["the dog"] * 3000 + ["Größe"] * 3000)
    found = re.search(r"cannot reproduce (\d+) of 2000 targets", capsys.readouterr().err)
    assert found
    assert 800 < int(found[1]) < 1200
