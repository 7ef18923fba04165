"""What a model card says that depends on the task: how to use the model, its languages, its limits."""

import json
from dataclasses import dataclass, field
from typing import Any

from nlp_transfer.inference.translator import translates
from nlp_transfer.report.markdown import code, python
from nlp_transfer.tasks import Task

WITHOUT = "Without `import nlp_transfer` transformers refuses the model; `encoder/` is the plain encoder alone."
UNMERGED = "It cannot be merged into that model."
ADAPTER = "This is an adapter. It needs the model it was trained on, which `nlp_transfer.json` names as `base`, and peft."
# ISO 639-1. Codes of three letters are those that NLLB translates, and Mandarin as Tatoeba and Marian call it.
TWO_LETTERS = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu "
    "fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km "
    "kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om "
    "or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr "
    "ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)


@dataclass(frozen=True)
class TaskPart:
    """Lines of Markdown, and fields of the card's head."""

    pipeline_tag: str
    usage: list[str]
    settings: list[str]
    limits: str
    figures: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


def task_part(task: Task, plain: bool, adapter: str = "") -> TaskPart:
    """What depends on the task.

    Args:
        plain: transformers loads the model by itself.
        adapter: what is to be said of an adapter without its base, where the card describes one.
    """
    return _translation(task, adapter) if translates(task) else _classification(task, plain, adapter)


def _classification(task: Task, plain: bool, adapter: str) -> TaskPart:
    example = '{"text": "some text", "text_pair": "another"}' if getattr(task, "text_pair", None) else '"some text"'
    threshold: float | None = getattr(task, "threshold", None)
    usage = _adapter(task, adapter) if adapter else _pipeline(example, plain, task.max_length, threshold)
    return TaskPart(
        pipeline_tag="text-classification",
        usage=usage,
        settings=[
            f"- longest input: {task.max_length} tokens",
            *([f"- threshold: a label is given from a probability of {threshold:g} on"] if threshold else []),
        ],
        limits="The figures hold for text like that of the data above. Longer inputs are truncated to the length given. Nothing "
        "was measured about other languages, other domains or fairness between groups.",
    )


def _adapter(task: Task, adapter: str) -> list[str]:
    example = '("some text", "another")' if getattr(task, "text_pair", None) else '"some text"'
    lines = [
        "from nlp_transfer import load_predictor",
        "",
        'classify = load_predictor("path/or/id")',
        f"print(classify([{example}]))",
    ]
    return [*python(lines), adapter, ""]


def _pipeline(example: str, plain: bool, max_length: int | None, threshold: float | None) -> list[str]:
    """Return the use with transformers' pipeline, which truncates and gives all labels only when it is asked to.

    Args:
        threshold: of a model with several labels a row; None: a row has one.
    """
    several = ", top_k=None" if threshold else ""
    call = f"classify([{example}], truncation=True, max_length={max_length})"
    lines = [
        *([] if plain else ["import nlp_transfer  # makes the Auto classes know this head", ""]),
        "from transformers import pipeline",
        "",
        f'classify = pipeline("text-classification", "path/or/id"{several})',
        f'print([[found for found in row if found["score"] >= {threshold:g}] for row in {call}])'
        if threshold
        else f"print({call})",
    ]
    return [*python(lines), *([] if plain else [WITHOUT, ""])]


def _translation(task: Any, adapter: str) -> TaskPart:
    own = [
        "from nlp_transfer import load_translator",
        "",
        'translate = load_translator("path/or/id")',
        'print(translate(["some text"]))',
    ]
    plain = ["With plain transformers:", "", *python(_plain_translation(task))]
    languages = [str(language) for language in (task.source_language, task.target_language) if language]
    return TaskPart(
        pipeline_tag="translation",
        usage=[*python(own), *([adapter, ""] if adapter else plain)],
        settings=[
            f"- architecture: {task.architecture}",
            *([f"- languages: {' to '.join(map(code, languages))}"] if languages else []),
            f"- beams: {task.beams}, length penalty {task.length_penalty:g}",
            f"- longest source and longest target: {task.max_length} tokens each; a target has at most {task.length_ratio:g} "
            "tokens for each of its source's and of 8 more",
            f"- `load_translator` translates texts of more than {task.longest_source} tokens in pieces",
        ],
        limits="The figures hold for text like that of the data above. Plain transformers cuts longer inputs at the length "
        "given. Names, numbers and negations can be wrong in a fluent translation. Nothing was measured about other domains, the "
        "other direction or fairness between groups.",
        figures=["`bleu`, `chrf` (chrF++) and `ter` are sacreBLEU's, from 0 to 100; of `ter` less is better.", ""],
        languages=list(dict.fromkeys(filter(None, map(language_code, languages)))),
    )


def _plain_translation(task: Any) -> list[str]:
    """Without this toolkit, and without a pipeline: transformers has none for translation any more."""
    two = task.architecture == "encoder_decoder"  # each side has a tokenizer
    target = "target_tokenizer" if two else "tokenizer"
    text = json.dumps(f"{task.tokenizers.prefix}some text", ensure_ascii=False)
    return [
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        "",
        'model = AutoModelForSeq2SeqLM.from_pretrained("path/or/id")',
        'tokenizer = AutoTokenizer.from_pretrained("path/or/id")',
        *(['target_tokenizer = AutoTokenizer.from_pretrained("path/or/id", subfolder="target_tokenizer")'] if two else []),
        f'inputs = tokenizer([{text}], padding=True, truncation=True, max_length={task.max_length}, return_tensors="pt")',
        "ids = model.generate(**inputs)",
        f"print({target}.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))",
    ]


def language_code(language: str) -> str | None:
    """The ISO 639 code in that of a checkpoint (`en_XX`, `eng_Latn`), or None where there is none for sure."""
    first = language.replace("-", "_").split("_")[0].lower()
    return first if first in TWO_LETTERS or first in _three_letters() else None


def _three_letters() -> set[str]:
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    return {"cmn", *(name.split("_")[0] for name in FAIRSEQ_LANGUAGE_CODES)}
