"""What every record promises, whoever derives from it."""

import pytest
from pydantic import ValidationError

from oral_ray.adapters.artifact import Provenance
from oral_ray.config import canonical_json, fingerprint
from oral_ray.evaluation.cells import Request
from oral_ray.local.record import BaseId, BaseIds, Record


class Parcel(Record):
    """A record of a test."""

    weight_g: int


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Parcel(weight_g=3).weight_g = 4  # type: ignore[misc]


def test_a_record_with_a_field_of_another_one_is_refused():
    with pytest.raises(ValidationError, match=r"colour\n +Extra inputs are not permitted"):
        Parcel.model_validate({"weight_g": 3, "colour": "red"})


class Pair(Record):
    """A record of a test that names bases."""

    base_id: BaseId
    base_ids: BaseIds = ()


def test_the_id_of_a_base_is_stored_and_hashed_as_base_and_read_from_there():
    pair = Pair(base_id="v1", base_ids=("v1", "v2"))
    stored = {"base": "v1", "bases": ["v1", "v2"]}
    assert canonical_json(pair) == canonical_json(stored) and fingerprint(pair) == fingerprint(stored)
    assert pair.model_dump(mode="json", exclude={"base_ids"}) == {"base": "v1"}
    assert Pair.model_validate(stored) == pair


def test_the_keys_of_a_provenance_and_the_hash_of_a_request_are_those_of_stored_ones():
    made = Provenance(origin="joint", base_id="v1", base_fingerprint="f", scale=0.5, source_base_id="v0")
    stored = made.model_dump(mode="json")
    assert (stored["base"], stored["strength"], stored["source_base"]) == ("v1", 0.5, "v0")
    assert not stored.keys() & {"base_id", "scale", "source_base_id"}
    assert Provenance.model_validate(stored) == made
    request = {"arm": "a", "base": "v1", "task": "t", "prompt": "p", "seed": 0, "recipe": "r", "num_steps": 2}
    assert fingerprint(Request.model_validate(request)) == fingerprint(request)
