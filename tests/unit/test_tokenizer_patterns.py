"""Regular expressions of tokenizers: published ones pass as they are, and those that could take more than linear time do not."""

import pytest
from tokenizers import Regex
from tokenizers.normalizers import Replace

from nlp_transfer.models.verification.regex_cost import linear_pattern, shortest_match
from nlp_transfer.utils.errors import UserError
from tests.helpers.tokenizer_documents import PUBLISHED

REFUSED = [
    r"(a+)+$", r"(?:a|a)*b", r"(?:a{1,3})+", r"a*a*b", r"\s*\s*$|\s+", "a?" * 12 + "a" * 12 + "b", "[a-z]{0,100}[a-z]{0,100}x",
    r"(a)\1", r"(?<n>a)\k<n>", r"\g<0>", r"(?:a+b)?c", r"a(?:\w*c)?", r"(?=a+)b", r"(?>a+)b", r"(?~a)", r"(?{x})", "(*FAIL)",
    r"\X", r"\R", r"\Ka", "a**", "a{1,3}{2,4}", "a{1,3}+", "a{1000}", "a{2,1}", "a{,}", "[]a]+", "[a", "(a", "a)", "*a",
    "a+?b|a+", "^*", r"(?!a)*", r"x+y|x|x+", r"x+y|x+?(?=z)|x+", r"(?i:[a-z]+1)|[a-z]+", "b?a+[bc]", "|a+b", r"[\X]", "[[a]",
    "(" * 30 + "a" + ")" * 30,
    "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_accepted_unchanged(name: str) -> None:
    assert linear_pattern(PUBLISHED[name]) == PUBLISHED[name]
    Regex(PUBLISHED[name])  # the library reads it too


@pytest.mark.parametrize("pattern", REFUSED)
def test_patterns_without_linear_time_are_refused(pattern: str) -> None:
    with pytest.raises(UserError):
        linear_pattern(pattern)


@pytest.mark.parametrize("pattern", [r"\s+$", "a+[bc]", "[ab]*c"])
def test_search_for_a_run_starts_at_its_first_character(pattern: str) -> None:
    """DeepSeek has such a pattern; the text that is made is the same."""
    linear = linear_pattern(pattern)
    assert linear != pattern
    assert linear_pattern(linear) == linear
    for text in ("a b  ", "  \n x \n\n ", "aaab aac aa", "abcabab c", "aabbaa\n  ", ""):
        before, after = (Replace(Regex(found), "<>").normalize_str(text) for found in (pattern, linear))
        assert before == after
    Replace(Regex(linear), "").normalize_str("ab" * 2**17)  # in squared time: an hour


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [(" {2,}", 2), ("a*", 0), ("^", 0), ("(?=a)", 0), (r"a\bb|cd+", 2), ("(?:ab|c)d?", 1), (r"\s+$", 1), ("", 0)],
)
def test_shortest_match(pattern: str, characters: int) -> None:
    assert shortest_match(pattern) == characters
