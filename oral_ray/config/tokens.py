"""Section `tokens`: how an adapter becomes weight tokens."""

from pydantic import Field, PositiveInt

from oral_ray.config.section import Section


class TokensConfig(Section):
    """Weight tokens and the shards that hold them."""

    token_dim: PositiveInt = Field(
        default=384, description="Values per weight token: a piece of one rank row, zero padded."
    )
    gauge: bool = Field(
        default=True,
        description="Bring every adapter to one form (QR, SVD, Procrustes to a reference) before it is cut.",
    )
    last_checkpoints: PositiveInt | None = Field(
        default=None, description="How many of the last checkpoints of a training become rows; None: all that are kept."
    )
    rows_per_file: PositiveInt = Field(default=16, description="Adapters per Parquet file.")
