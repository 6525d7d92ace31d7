"""What may be asked of the generator of a store, and what has been answered already. Loads no weights.

    catalog = GeneratorCatalog(config, open_objects(config.store))
    condition = catalog.condition("Classify mails as spam or not.", "minilm-l6-t3", seed=0)
    digest = catalog.find_answer(catalog.answer_key(condition, catalog.recipe))       # None: it has to be generated

Only base ids of the store are accepted, never paths. An answer is a record under a key of everything that decides the
adapter, so an equal condition finds it without a sample.
"""

from functools import lru_cache

from oral_ray.adapters.artifact import Provenance
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import Config, LoraSettings, canonical_json, fingerprint
from oral_ray.errors import BaseModelError, GeneratorError, LayoutError, MissingObjectError, StoreError
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import effective_sampling
from oral_ray.generation.refusal import refuse_base
from oral_ray.objects import Objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.bases import BaseStore
from oral_ray.store.generators import GeneratorCard, current_generator, describe_generator
from oral_ray.store.records import Records
from oral_ray.store.refreshed import Refreshed


class GeneratorCatalog:
    """Bases, current generator and answers of a store. They are looked up again after `serve.refresh_s`.

    While the store cannot be reached, what was looked up before is still used.
    """

    def __init__(self, config: Config, objects: Objects) -> None:
        self.config, self.objects = config, objects
        self._sampling = canonical_json(effective_sampling(config.sampling, config.determinism))
        self._bases: Refreshed[str, BaseRecord] = Refreshed(self._read_base, config.serve.refresh_s)
        self._recipes: Refreshed[str, str] = Refreshed(self._read_recipe, config.serve.refresh_s)
        self._refusals: dict[tuple[str, str], str] = {}
        self._cards = lru_cache(maxsize=4)(lambda recipe: describe_generator(objects, recipe))

    @property
    def recipe(self) -> str:
        """The recipe of the configured (or current) generator; GeneratorError when there is none."""
        return self._recipes.get(self.config.name)

    def card(self) -> GeneratorCard:
        """What the current generator was trained on."""
        return self._cards(self.recipe)

    def base(self, base_id: str) -> BaseRecord:
        """The record of a base version; BaseModelError when it is not (wholly) there."""
        return self._bases.get(base_id)

    def condition(
        self, prompt: str, base_id: str, seed: int, lora: LoraSettings | None = None, scale: float = 1.0
    ) -> Condition:
        """What is asked for, checked. What cannot be made is refused here, where it fails no other of its batch.

        Raises ConditionError for the prompt, BaseModelError for a base that is not (wholly) there, LayoutError for one
        that the generator has not learnt, or for a kind of adapter that its corpus does not have.
        """
        base, lora = self.base(base_id), lora or self.config.lora
        if refusal := self.refusal(base):
            raise LayoutError(f"base {base_id!r}: {refusal}")
        lora = self._as_configured(base, lora)
        if lora != self.config.lora and not self._is_known(base, lora):
            kinds = "; ".join(_words(choice) for choice in self.choices(base))
            raise LayoutError(f"the generator's corpus has no adapters with {_words(lora)}; ask for {kinds}")
        return Condition(prompt, base, lora, seed, scale)

    def refusal(self, base: BaseRecord) -> str:
        """Why the current generator makes nothing for a base; empty when it does."""
        key = (self.recipe, base.fingerprint)
        if key not in self._refusals:  # a look at every module of the base, too much for every request
            self._refusals[key] = refuse_base(base, self.card().spec.architectures, self.config.lora)
        return self._refusals[key]

    def choices(self, base: BaseRecord) -> tuple[LoraSettings, ...]:
        """The kinds of adapters of a base that the corpus has, as far as usual ranks and alphas go; the default first."""
        if self.refusal(base):
            return ()
        usual = self.config.lora
        others = [
            usual.model_copy(update={"r": r, "lora_alpha": float(alpha)})
            for r in (1, 2, 4, 8, 16, 32, 64)
            for alpha in sorted({usual.lora_alpha, r, 2 * r})
        ]
        others = dict.fromkeys((*self.config.corpus.kinds, *others))
        return (usual, *(lora for lora in others if lora != usual and self._is_known(base, lora)))

    def num_tokens(self, condition: Condition) -> int:
        """How many weight tokens the adapter of a condition has."""
        return AdapterLayout.of(condition.base.spec, condition.lora, self.card().spec.token_dim).num_tokens

    def answer_key(self, condition: Condition, recipe: str) -> str:
        """Names the answer of a generator: equal conditions under the settings of this service have one."""
        return fingerprint(
            "order", recipe, self._sampling, condition.base.fingerprint, condition.prompt, condition.seed,
            condition.lora, condition.scale,
        )  # fmt: skip

    def find_answer(self, key: str) -> str | None:
        """The digest that answers, or None. An adapter that has been deleted is no answer."""
        record = Records(self.objects).get("generated", key)
        if record is None or not AdapterStore(self.objects).has(record["digest"]):
            return None
        return str(record["digest"])

    def note_answer(self, key: str, digest: str) -> None:
        """Keep the digest of a stored adapter as the answer of a key."""
        store = AdapterStore(self.objects)
        Records(self.objects).commit("generated", key, {"digest": digest}, lambda kept: store.has(kept["digest"]))

    def describe(self, digest: str) -> tuple[LoraSettings, Provenance]:
        """What a stored adapter is and where it came from, its weights unread; ArtifactError when there is none."""
        return AdapterStore(self.objects).about(digest)

    def uri(self, digest: str) -> str:
        """Where a stored artifact lies."""
        return f"{self.objects.uri}/{AdapterStore.prefix(digest)}".rstrip("/")

    def check(self) -> None:
        """Raise StoreError when the store is not there (an unmounted folder looks like an empty one)."""
        try:
            is_there = self.config.serve.generator or current_generator(self.objects, self.config.name)
        except MissingObjectError:  # it went while it was looked at
            is_there = None
        if not is_there:
            raise StoreError(f"store {self.objects.uri} is not there at the moment; try again, or mount it")

    def _read_base(self, base_id: str) -> BaseRecord:
        base_store = BaseStore(self.objects, self.config.bases.prefix)
        try:
            return base_store.record(base_id)
        except (BaseModelError, MissingObjectError):
            self.check()
            return base_store.record(base_id)  # the store may have been away, and be back

    def _read_recipe(self, name: str) -> str:
        recipe = self.config.serve.generator or current_generator(self.objects, name)
        if recipe is None:
            raise GeneratorError(f"no generator named {name!r} in {self.objects.uri}; run jobs/train.py first")
        return recipe

    def _as_configured(self, base: BaseRecord, lora: LoraSettings) -> LoraSettings:
        """The same kind of adapter with its target modules as the configuration writes them (roles, an order).

        A kind is known by what the configuration says; a request may say it with the names of adapter_config.json.
        """
        if lora == self.config.lora:
            return lora
        for kind in (self.config.lora, *self.config.corpus.kinds):
            spelled = kind.model_copy(update={"r": lora.r, "lora_alpha": lora.lora_alpha})
            asked = self._adapted(base, spelled.model_copy(update={"target_modules": lora.target_modules}))
            if asked and asked == self._adapted(base, spelled):
                return spelled
        return lora

    def _adapted(self, base: BaseRecord, lora: LoraSettings) -> frozenset[str]:
        """The modules that adapters of a kind change, none where the base has no such kind."""
        try:
            return frozenset(
                slot.module for slot in AdapterLayout.of(base.spec, lora, self.card().spec.token_dim).slots
            )
        except LayoutError:
            return frozenset()

    def _is_known(self, base: BaseRecord, lora: LoraSettings) -> bool:
        card = self.card()
        try:
            return AdapterLayout.of(base.spec, lora, card.spec.token_dim).digest in card.layouts
        except LayoutError:
            return False


def _words(lora: LoraSettings) -> str:
    return f"r={lora.r}, lora_alpha={lora.lora_alpha:g}, target_modules={','.join(lora.target_modules)}"
