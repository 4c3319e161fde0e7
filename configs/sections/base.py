"""What every section of a config is: frozen, closed to unknown fields, given in part or whole."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Values with their bounds."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _given_in_part(cls, values: Any) -> Any:
        """A section given in part keeps the defaults of this place, not those of its class."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Section) and isinstance(values.get(name), dict):
                # Only what this place sets: the rest are the class's defaults anyway.
                filled[name] = {**field.default.model_dump(exclude_unset=True), **values[name]}
        return filled


class StageSection(Section):
    """Settings of a stage. Null leaves the stage out; other stages then read the defaults."""

    _left_out: bool = PrivateAttr(False)

    @classmethod
    def null(cls) -> Self:
        """What null stands for."""
        section = cls()
        section._left_out = True
        return section

    @property
    def left_out(self) -> bool:
        """Whether the config leaves this stage out."""
        return self._left_out
