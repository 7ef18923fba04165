"""Base class of settings, and the types of common values."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from nlp_transfer.settings.annotations import allowed_values, leaf_types, needs_list

Document = dict[str, Any]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base class of settings: immutable, rejects unknown fields. The docstring below a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        coerce_numbers_to_str=True,  # a column may be called 2024, and YAML reads that as a number
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a boolean as a number: in Python `True == 1`, so `shots: true` would mean `shots: 1`."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        types = leaf_types(annotation)
        if isinstance(value, bool) and {int, float} & types and not {bool, Any} & types:
            raise ValueError(allowed_values(annotation))
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _single_value_as_list(cls, value: Any, info: ValidationInfo) -> Any:
        """Wrap a single value in a list if the setting needs a list."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not needs_list(annotation, value):
            return value
        if isinstance(value, str) and "," in value.strip():
            parts = ", ".join(part.strip() for part in value.split(","))
            raise ValueError(f'a list in brackets, quoted on the command line: "[{parts}]"; for one item with a comma: ["a, b"]')
        return [value]
