"""Configurations that come with the package, by name: infra/configs/*.toml of the repository, oral_ray/configs of a wheel.

find_config("quickstart")          # the file of that name, wherever the shell stands
find_config("runs/mine.toml")      # a path, from the working folder
"""

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"  # in the repository a link to infra/configs
DEFAULT_CONFIG = "quickstart"


def shipped_names() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_config(config: str | Path) -> Path:
    """The file that is meant: a shipped configuration by its bare name, anything else is a path."""
    name = str(config)
    return SHIPPED / f"{name}.toml" if name in shipped_names() else Path(config)
