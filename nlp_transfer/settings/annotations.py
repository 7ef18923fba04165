"""Inspect the type annotations of settings, and format values as YAML."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

PLAIN = {int: "a number", float: "a number", str: "text", list: "a list", NoneType: "null"}


def allowed_values(annotation: Any) -> str:
    """Describe the allowed values of a setting, such as `a number, or 'auto'`."""
    choices: list[str] = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            choices += map(repr, get_args(member))
        else:
            choices.append(PLAIN.get(get_origin(member) or member, "settings by name"))
    return ", or ".join(dict.fromkeys(choices))


def members(annotation: Any) -> list[Any]:
    """Return the members of a union, without the metadata of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for inner in get_args(annotation) for member in members(inner)]
    return [annotation]


def leaf_types(annotation: Any) -> set[Any]:
    """Return all leaf types of an annotation, without literals: int and NoneType for `list[int] | None`."""
    if get_origin(annotation) is Literal:
        return set()
    arguments = get_args(annotation)
    return set().union(*map(leaf_types, arguments)) if arguments else {annotation}


def needs_list(annotation: Any, value: Any) -> bool:
    """Whether a setting accepts this value only inside a list."""
    choices = members(annotation)
    lists = [member for member in choices if get_origin(member) is list]
    if not lists:
        return False
    if isinstance(value, (Mapping, BaseModel)):
        is_element = any(isinstance(leaf, type) and issubclass(leaf, (dict, BaseModel)) for leaf in leaf_types(lists[0]))
    else:
        is_element = isinstance(value, (str, int, float))
    others = [member for member in choices if member not in (*lists, NoneType)]
    return is_element and all(get_origin(other) is Literal and value not in get_args(other) for other in others)


class NamesModel:
    """Field metadata: the field names a model, or a list of models. A resumed run must name the same models.

    Args:
        keywords: Values of the field that are not models but have another meaning.
    """

    def __init__(self, *keywords: str) -> None:
        self.keywords = keywords


def named_models(settings: BaseModel) -> dict[str, list[str]]:
    """Return the models named in the settings, by field (see `NamesModel`)."""
    models: dict[str, list[str]] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        for metadata in field.metadata:
            if isinstance(metadata, NamesModel) and value and value not in metadata.keywords:
                models[name] = [value] if isinstance(value, str) else list(value)
    return models


def as_yaml(value: Any) -> str:
    """Format a scalar as YAML, such as `null` or `true`."""
    return {"None": "null", "True": "true", "False": "false", "": "''"}.get(str(value), str(value))
