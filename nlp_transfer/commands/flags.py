"""Flags that take several values."""

from collections.abc import Sequence

from nlp_transfer.utils.errors import UserError


def expand(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """`--seeds 0 1 2` as `--seeds=0 --seeds=1 --seeds=2`, for the flags in `names`: each takes what follows, up to the next flag.

    Raises:
        UserError: nothing follows.
    """
    expanded: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in names:
            expanded.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if not values:
            raise UserError(f"{flag}: needs a value, or several: {flag} VALUE VALUE")
        expanded += [f"{flag}={value}" for value in values]
    return expanded
