"""The generation service without its wire: what may be asked for, what is known already, and how it is made.

    service = open_service(config)
    order = service.stock.order("Classify mails as spam or not.", "minilm-l6-t3", seed=0)
    [digest] = service.fulfil([order])
    service.stock.find(service.stock.key(order, service.recipe)) == digest

`Stock` reads the store and loads no weights; `GenerationService` holds a generator. Only base ids of the store are
accepted, never paths. An answer is a record under the order's key, so an equal order finds it without a sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import ConditionConfig, Config, LoraSettings, canonical_json, fingerprint
from oral_ray.errors import BaseModelError, GeneratorError, LayoutError, MissingObjectError, StoreError
from oral_ray.generation.factory import AdapterFactory, settled
from oral_ray.generation.refusal import refuse_base
from oral_ray.generator.condition import Condition, ConditionEncoder, check_prompt
from oral_ray.objects import Objects, open_objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.bases import BaseStore, stored_probes
from oral_ray.store.generators import GeneratorCard, current_generator, describe_generator, get_generator
from oral_ray.store.records import Records
from oral_ray.store.refreshed import Refreshed


@dataclass(frozen=True, slots=True)
class Order:
    """One adapter that is asked for, checked: what cannot be made never becomes an order."""

    prompt: str
    base: BaseRecord
    lora: LoraSettings
    seed: int
    strength: float

    def key(self, recipe: str, sampling: str) -> str:
        """Names the answer: equal orders to one generator under equal settings have one."""
        return fingerprint(
            "order", recipe, sampling, self.base.fingerprint, self.prompt, self.seed, self.lora, self.strength
        )


class Stock:
    """What the service knows of its store. Bases and the current generator are looked up again after `serve.refresh_s`.

    While the store cannot be reached, what was looked up before is still used.
    """

    def __init__(self, config: Config, objects: Objects) -> None:
        self.config, self.objects = config, objects
        self._sampling = canonical_json(settled(config.sampling, config.determinism))
        self._bases: Refreshed[str, BaseRecord] = Refreshed(self._read_base, config.serve.refresh_s)
        self._recipes: Refreshed[str, str] = Refreshed(self._read_recipe, config.serve.refresh_s)
        self._probes: dict[str, Mapping[str, Tensor]] = {}
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

    def order(
        self, prompt: str, base_id: str, seed: int, lora: LoraSettings | None = None, strength: float = 1.0
    ) -> Order:
        """What is asked for. What cannot be made is refused here, where it fails no other request of its batch.

        Raises ConditionError for the prompt, BaseModelError for a base that is not (wholly) there, LayoutError for one
        that the generator has not learnt, or for a kind of adapter that its corpus does not have.
        """
        check_prompt(prompt)
        base, lora = self.base(base_id), lora or self.config.lora
        if refusal := self.refusal(base):
            raise LayoutError(f"base {base_id!r}: {refusal}")
        lora = self._as_configured(base, lora)
        if lora != self.config.lora and not self._is_known(base, lora):
            kinds = "; ".join(_words(choice) for choice in self.choices(base))
            raise LayoutError(f"the generator's corpus has no adapters with {_words(lora)}; ask for {kinds}")
        return Order(prompt, base, lora, seed, strength)

    def probes(self, base: BaseRecord, settings: ConditionConfig) -> Mapping[str, Tensor]:
        """The weight probes of a base, as a generator with these settings was trained on them."""
        key = fingerprint(base.fingerprint, settings)
        if key not in self._probes:
            self._probes[key] = stored_probes(self.objects, base, settings)
        return self._probes[key]

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

    def num_tokens(self, order: Order) -> int:
        """How many weight tokens an order has."""
        return AdapterLayout.of(order.base.spec, order.lora, self.card().spec.token_dim).num_tokens

    def key(self, order: Order, recipe: str) -> str:
        """The key of an order's answer by a generator under the settings of this service."""
        return order.key(recipe, self._sampling)

    def find(self, key: str) -> str | None:
        """The digest that answers, or None. An adapter that has been deleted is no answer."""
        record = Records(self.objects).get("generated", key)
        if record is None or not AdapterStore(self.objects).has(record["digest"]):
            return None
        return str(record["digest"])

    def about(self, digest: str) -> tuple[LoraSettings, Provenance]:
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


@dataclass(frozen=True, slots=True)
class GenerationService:
    """Generates adapters for the base versions of one store with one generator."""

    stock: Stock
    factory: AdapterFactory

    @property
    def recipe(self) -> str:
        """The recipe of the generator in use."""
        return self.factory.generator.spec.recipe

    def fulfil(self, orders: Sequence[Order]) -> list[str]:
        """Generate, store, and note the answers; the digests, in order."""
        sampled = self.sample(orders)
        return [self.keep(order, self.artifact(order, tokens)) for order, tokens in zip(orders, sampled, strict=True)]

    def condition(self, order: Order) -> Condition:
        """What the generator is told of an order: the base's probes as it was trained on them."""
        probes = self.stock.probes(order.base, self.factory.encoder.config)
        return Condition(order.prompt, order.base, probes, order.lora)

    def sample(self, orders: Sequence[Order]) -> list[Tensor]:
        """The normalised tokens of each order, sampled together."""
        return self.factory.sample([self.condition(order) for order in orders], [order.seed for order in orders])

    def artifact(self, order: Order, tokens_LD: Tensor) -> AdapterArtifact:
        """The adapter of an order out of its tokens, its change of the weights multiplied by the order's strength."""
        condition = self.condition(order)
        artifact = self.factory.artifact(tokens_LD, condition, order.seed)
        if order.strength == 1.0:
            return artifact
        layout = self.factory.layout(condition)
        factors = {name: (a, order.strength * b) for name, (a, b) in artifact.factors(layout).items()}
        return build_artifact(factors, layout, artifact.provenance.model_copy(update={"strength": order.strength}))

    def keep(self, order: Order, artifact: AdapterArtifact) -> str:
        """Store an adapter and note it as the answer to an order; its digest."""
        self.stock.check()
        store = AdapterStore(self.stock.objects)
        digest = store.put(artifact)
        key = self.stock.key(order, self.recipe)
        Records(self.stock.objects).commit("generated", key, {"digest": digest}, lambda kept: store.has(kept["digest"]))
        return digest

    def pull(self, digest: str, folder: Path) -> Path:
        """Write a stored artifact into a folder."""
        return AdapterStore(self.stock.objects).pull(digest, folder)


def open_service(config: Config, device: str = "cpu", recipe: str = "") -> GenerationService:
    """Load a generator, the configured (or current) one when none is named; GeneratorError when there is none."""
    stock = Stock(config, open_objects(config.store))
    generator = get_generator(stock.objects, recipe or stock.recipe)
    encoder = ConditionEncoder(generator.spec.condition)
    sampling = settled(config.sampling, config.determinism)
    return GenerationService(stock, AdapterFactory(generator, encoder, sampling, device))


def _words(lora: LoraSettings) -> str:
    return f"r={lora.r}, lora_alpha={lora.lora_alpha:g}, target_modules={','.join(lora.target_modules)}"
