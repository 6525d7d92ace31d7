"""What every section of the configuration is made of: the frozen node and the types of its values."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field

from oral_ray.local.record import Record

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16"]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [getattr(value, "id", value) for value in values]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} stands twice; name each one once")
    return values


Distinct = AfterValidator(_distinct)


class Section(Record):
    """A frozen node of the tree; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(allow_inf_nan=False)


S = TypeVar("S", bound=Section)
