"""What every record promises, whoever derives from it."""

import pytest
from pydantic import ValidationError

from oral_ray.local.record import Record


class Parcel(Record):
    """A record of a test."""

    weight_g: int


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Parcel(weight_g=3).weight_g = 4  # type: ignore[misc]


def test_a_record_with_a_field_of_another_one_is_refused():
    with pytest.raises(ValidationError, match=r"colour\n +Extra inputs are not permitted"):
        Parcel.model_validate({"weight_g": 3, "colour": "red"})
