"""Section `cluster`: the Ray cluster, and what one task takes of it."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from oral_ray.config.section import Section


class ClusterConfig(Section):
    """Where stages run. The training of the generator and the service reserve their own CPUs and GPUs."""

    address: str = Field(
        default="local",
        description="`local`: start a private cluster in this process. `none`: tasks one after another in this process, "
        "without Ray (not the shards, not the training). Else the address of a cluster. RAY_ADDRESS in the environment, "
        "which a submitted job has, goes before it.",
    )
    num_cpus: PositiveInt | None = Field(
        default=None,
        description="CPUs of a private cluster, and those of another one that tasks may take. None: as many as it has "
        "when a stage begins, which for a cluster that scales from nothing is none.",
    )
    cpus_per_task: PositiveFloat = Field(default=1.0, description="CPUs that Ray reserves per task.")
    gpus_per_task: NonNegativeFloat = Field(
        default=0.0,
        description="GPUs that Ray reserves per task; a fraction lets tasks share one. 0: tasks compute on CPUs.",
    )
    threads_per_task: PositiveInt = Field(default=1, description="CPU threads per task.")
    object_store_bytes: PositiveInt = Field(
        default=400_000_000,
        description="Bytes of Ray's object store, where the address is `local`; another cluster has its own.",
    )
    stop_after_s: PositiveFloat | None = Field(
        default=None,
        description="Seconds after which no further task is started: the command ends with exit code 75 and goes on "
        "when it is run again. None: no limit.",
    )
