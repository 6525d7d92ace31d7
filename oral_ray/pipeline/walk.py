"""The walk down the pipeline: bases, corpus, shards, generators, each stage handed what the ones before it made.

trained = walk(resolve_bases(run))
"""

from dataclasses import dataclass

from oral_ray.pipeline.corpus import Corpus, train_corpus
from oral_ray.pipeline.run import Run
from oral_ray.pipeline.shards import ShardManifest, write_shards
from oral_ray.pipeline.train import promote, train_generator, with_seed


@dataclass(frozen=True)
class Trained:
    """Where the walk ends: a run with its bases, and what there is to evaluate and to generate with."""

    run: Run
    corpus: Corpus
    manifest: ShardManifest
    """The shards that the run's own generator learnt."""
    recipe: str
    """That generator, the current one of the configuration's name."""


def walk(run: Run) -> Trained:
    """Every stage in a row from a run with its bases; each makes what is missing."""
    corpus = train_corpus(run)
    return train_current(run, corpus, write_shards(run, corpus))


def train_current(run: Run, corpus: Corpus, manifest: ShardManifest) -> Trained:
    """The last stage: the run's own generator, which becomes the current one of the configuration's name."""
    recipe = train_generator(run, manifest)
    promote(run, recipe)
    return Trained(run, corpus, manifest, recipe)


def train_seeds(trained: Trained) -> dict[int, str]:
    """The generator of every entry of `evaluation.generator_seeds`, by its recipe; that of 0 is the run's own."""
    generators = {}
    for seed in trained.run.config.evaluation.generator_seeds:
        if seed:
            seeded = with_seed(trained.run, seed)
            generators[seed] = train_generator(seeded, write_shards(seeded, trained.corpus))
        else:
            generators[seed] = trained.recipe
    return generators
