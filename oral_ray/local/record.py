"""The base of every record: what is stored, passed between rooms or sent to a worker, checked once when it is made."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record; a field that it does not have is an error, so that no stored object is read for another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
