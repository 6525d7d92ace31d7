"""Section `tokens`: how an adapter becomes weight tokens."""

from pydantic import Field, PositiveInt

from oral_ray.config.section import Section


class TokensConfig(Section):
    """Weight tokens and the shards that hold them."""

    token_dim: PositiveInt = Field(
        default=384,
        description="Values per weight token: a token is a piece of one row of lora_A or one column of lora_B, "
        "padded with zeros.",
    )
    gauge: bool = Field(
        default=True,
        description="Bring every adapter, before it is cut into tokens, to one of the many pairs of factors with the same "
        "product (by QR, SVD, and Procrustes to a reference). False: take factors as they were trained (ablation).",
    )
    last_checkpoints: PositiveInt | None = Field(
        default=None,
        description="How many of the last checkpoints of a training the generator learns; None: all that "
        "`corpus.keep_last` keeps.",
    )
    rows_per_file: PositiveInt = Field(default=16, description="Adapters per Parquet file of the shards.")
