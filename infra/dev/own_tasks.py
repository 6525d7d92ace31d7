"""Write two task folders made of WordNet glosses, with labels that no shipped task has.

    python infra/dev/own_tasks.py FOLDER LABEL=CLASS,CLASS LABEL=CLASS,CLASS [--each 400]

Each split gets the glosses whose hash puts them there, so that no task trains on a test text of another.
"""

import argparse
import json
from pathlib import Path

from oral_ray.tasks.task import Example, balanced_order, split_of
from oral_ray.tasks.wordnet import rows


def main() -> None:
    """Write `task.toml` and the three splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("labels", nargs="+", metavar="LABEL=CLASS,CLASS")
    parser.add_argument("--each", type=int, default=400, help="glosses of one label (default 400)")
    args = parser.parse_args()
    label_of = {f"noun.{cls}": label for label, _, classes in (item.partition("=") for item in args.labels)
                for cls in classes.split(",")}  # fmt: skip
    found: dict[str, list[Example]] = {label: [] for label in label_of.values()}
    for cls, _, gloss in rows("glosses.tsv.gz"):
        if cls in label_of:
            found[label_of[cls]].append(Example(text=gloss, label=label_of[cls]))
    examples = [e for of_label in found.values() for e in balanced_order(of_label)[: args.each]]
    args.folder.mkdir(parents=True, exist_ok=True)
    header = f'labels = {json.dumps(list(found))}\ntext = "a dictionary definition"\n'
    (args.folder / "task.toml").write_text(header, encoding="utf-8")
    for split in ("train", "validation", "test"):
        lines = [json.dumps(e.model_dump()) for e in balanced_order([e for e in examples if split_of(e.text) == split])]
        (args.folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
