"""Where a run is: the store's folder as every worker has to know it, and whether this process is a submitted job."""

import logging
import os
from pathlib import Path

from oral_ray.config.tree import Config
from oral_ray.errors import ConfigError

logger = logging.getLogger(__name__)


def with_absolute_store(config: Config) -> Config:
    """The configuration with the store's uri as it holds on every worker; ConfigError for a folder no uri can say."""
    store = config.store.model_copy(update={"uri": store_uri(config.store.uri)})
    return config.model_copy(update={"store": store})


def store_uri(uri: str) -> str:
    """An absolute uri for workers. Inside a submitted job a relative folder would vanish with the job's temporary copy
    of the working directory, so it is taken relative to ORAL_HOME (default ~/.oral-ray) there."""
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if not path.is_absolute() and in_submitted_job():
        path = Path(os.environ.get("ORAL_HOME", Path.home() / ".oral-ray")) / path
        logger.warning(
            "store %r is relative and this is a submitted job: using %s (set ORAL_HOME to move it)", uri, path
        )
    if odd := {*"#?%"} & {*str(path.absolute())}:  # a uri would be cut or decoded there, and lead to another folder
        raise ConfigError(f"store folder {str(path.absolute())!r} holds {min(odd)!r}; choose one without '#', '?', '%'")
    return f"file://{path.absolute()}"


def in_submitted_job() -> bool:
    """Whether this process works in Ray's copy of a job's working directory (`ray job submit --working-dir`)."""
    return "/runtime_resources/working_dir_files/" in str(Path.cwd())
