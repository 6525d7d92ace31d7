"""Section `tasks`: what adapters are for."""

from typing import Annotated

from pydantic import Field, PositiveInt

from oral_ray.config.section import Distinct, Section


class TasksConfig(Section):
    """Tasks by id: `wordnet/<name>`, `bigbench/<name>`, `kind/<concept>`, or the path of a task folder (docs/tasks.md).

    A relative path counts from the folder in which the command is typed.
    """

    ids: Annotated[tuple[str, ...], Distinct] = Field(default=(), description="Tasks that get adapters in the corpus.")
    further: Annotated[tuple[str, ...], Distinct] = Field(
        default=(),
        description="Tasks without adapters in the corpus; the functional phase trains on them. `kind/*` is every "
        "concept of the family.",
    )
    unseen: Annotated[tuple[str, ...], Distinct] = Field(
        default=(),
        description="Tasks that no training reads, for evaluation; they are taken out of `further`, and may not stand "
        "among `ids`.",
    )
    num_prompts: PositiveInt = Field(
        default=32, description="Wordings per task that the generator is trained with: the first so many."
    )
    folders: dict[str, str] = Field(
        default={},
        description="Filled in where a run starts: fingerprints, by id, of the tasks that were read from folders. With it, "
        "a run is repeated from its store without the folders.",
    )
