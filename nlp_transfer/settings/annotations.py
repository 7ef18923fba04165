"""What the type annotation of a setting allows."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

PLAIN = {int: "a number", float: "a number", str: "text", list: "a list", NoneType: "null"}


def allowed(annotation: Any) -> str:
    """What a setting with numbers may hold, its words and null included."""
    choices: list[str] = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            choices += map(repr, get_args(member))
        else:
            choices.append(PLAIN.get(get_origin(member) or member, "settings by name"))
    return ", or ".join(dict.fromkeys(choices))


def members(annotation: Any) -> list[Any]:
    """The members of a union, without the metadata of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for inner in get_args(annotation) for member in members(inner)]
    return [annotation]


def leaves(annotation: Any) -> set[Any]:
    """The types in an annotation, out of unions and the like."""
    if get_origin(annotation) is Literal:
        return set()
    inner = get_args(annotation)
    return set().union(*map(leaves, inner)) if inner else {annotation}


def needs_list(annotation: Any, value: Any) -> bool:
    """Whether a setting takes lists, and this value only as the one element of a list."""
    choices = members(annotation)
    lists = [member for member in choices if get_origin(member) is list]
    if not lists:
        return False
    if isinstance(value, (Mapping, BaseModel)):
        fits = any(isinstance(leaf, type) and issubclass(leaf, (dict, BaseModel)) for leaf in leaves(lists[0]))
    else:
        fits = isinstance(value, (str, int, float))
    others = [member for member in choices if member not in (*lists, NoneType)]
    return fits and all(get_origin(other) is Literal and value not in get_args(other) for other in others)
