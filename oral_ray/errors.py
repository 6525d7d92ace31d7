"""Every error that oral_ray raises on purpose: one flat list under `OralError`.

A message says what happened, the value that caused it, what would be valid, and what to do next. The command line
prints it as one line and exits with 2; the service answers it as problem+json.
"""


def printable(text: str) -> str:
    """Text of others as one line that every terminal, log, JSON and UTF-8 file takes.

    Control characters, new lines and lone surrogates (of a file name that is no UTF-8, say) become `\\n`, `\\ud800`.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class OralError(Exception):
    """Base class: whatever derives from it is meant for a user to read."""


class ConfigError(OralError):
    """A configuration file or an override is malformed, unknown or contradictory."""


class StoreError(OralError):
    """An object store cannot be reached, refuses an operation, or does not keep its promises."""


class MissingObjectError(StoreError):
    """An object that was asked for is not there."""


class BaseModelError(OralError):
    """A base checkpoint is missing, incomplete, malformed or of an unknown architecture."""


class LayoutError(OralError):
    """LoRA settings do not fit a base model: no such target module, bad rank."""


class ArtifactError(OralError):
    """An adapter artifact is damaged, of another shape than its layout, or holds values that are not finite."""


class ConditionError(OralError):
    """A prompt or a base model cannot be turned into a condition."""


class GeneratorError(OralError):
    """A generator checkpoint cannot be used as asked: other keys, other text encoder, kernel not installed."""


class TaskError(OralError):
    """A task is unknown, has no such split, or its examples are malformed."""


class OutOfTimeError(OralError):
    """A run has used the time it was given; what it made is kept, the same command goes on from there."""


class EvaluationError(OralError):
    """An arm cannot be computed from what the store holds."""


class ReleaseError(OralError):
    """A release cannot be planned, decided or published."""


class ServiceError(OralError):
    """The generation service refuses a request, cannot be reached, or answers what it should not.

    `status` is the HTTP status, 0 where there was no answer; `request_id` finds the request in the service's log.
    """

    def __init__(self, message: str, status: int = 0, request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id
