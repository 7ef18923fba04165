"""ISO 639 language codes, for the YAML metadata of a model card."""

# ISO 639-1. No dependency has a complete table.
TWO_LETTERS = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu "
    "fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km "
    "kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om "
    "or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr "
    "ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)


def language_code(language: str) -> str | None:
    """Return the ISO 639 code at the start of a checkpoint's language code (`en_XX`, `eng_Latn`), or None if there is none.

    Only the three-letter codes of NLLB are recognized, and `cmn`, which is Mandarin in Tatoeba and Marian.
    """
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    first = language.replace("-", "_").split("_")[0].lower()
    known = TWO_LETTERS | {"cmn"} | {name.split("_")[0] for name in FAIRSEQ_LANGUAGE_CODES}
    return first if first in known else None
