"""The base of every record: what is stored, passed between rooms or sent to a worker, checked once when it is made.

A field may be stored under another key than its Python name: `base_id`, the id of a base, is stored as `base`.
"""

from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen record; a field that it does not have is an error, so that no stored object is read for another one.

    It is written, and hashed, by the keys under which it is stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


BaseId = Annotated[str, Field(validation_alias=AliasChoices("base", "base_id"), serialization_alias="base")]
"""The id of a base, in the field `base_id` of a record; stored as `base`."""
BaseIds = Annotated[
    tuple[str, ...], Field(validation_alias=AliasChoices("bases", "base_ids"), serialization_alias="bases")
]
"""The ids of several bases, in the field `base_ids` of a record; stored as `bases`."""
