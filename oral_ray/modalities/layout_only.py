"""Kinds of base whose layouts are known, and that nothing here trains or scores on.

The file of a modality takes the place of its class here: delete the class, and put the modality's in its line of
`MODALITIES`. The name stays, since it stands in records and digests.
"""

from collections.abc import Mapping
from typing import Any

from oral_ray.modalities.kind import Kind, loads, main_input, reads_images_with_text


class LayoutOnly(Kind):
    """A kind of base with a layout and nothing else."""


class Vision(LayoutOnly):
    """Encoders of images (DINOv2)."""

    name = "vision"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By what the model's class reads."""
        return own is not None and main_input(own) == "pixel_values"

    def layout_class(self, config: Mapping[str, Any], own: Any) -> str:
        """The model without a head."""
        return "AutoModel"


class Audio(LayoutOnly):
    """Encoders of sound (wav2vec 2.0)."""

    name = "audio"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By what the model's class reads."""
        return own is not None and main_input(own) in ("input_values", "input_features")

    def layout_class(self, config: Mapping[str, Any], own: Any) -> str:
        """The model without a head."""
        return "AutoModel"


class EncoderDecoder(LayoutOnly):
    """Models with an encoder and a decoder (T5, BART)."""

    name = "encoder-decoder"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By the config's own word."""
        return own is not None and bool(getattr(own, "is_encoder_decoder", False))

    def layout_class(self, config: Mapping[str, Any], own: Any) -> str:
        """The class that writes, whose modules have names of their own, where the checkpoint is of that class."""
        writes = "ForConditionalGeneration" in str(config.get("architectures"))
        return "AutoModelForSeq2SeqLM" if writes and loads("AutoModelForSeq2SeqLM", own) else "AutoModel"


class ImageText(LayoutOnly):
    """Models that read images beside text (Qwen2-VL), or compare the two (SigLIP)."""

    name = "image-text"
    auto_class = "AutoModelForImageTextToText"

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By the class that loads it, or a config of its own for the images."""
        return own is not None and reads_images_with_text(own)

    def layout_class(self, config: Mapping[str, Any], own: Any) -> str:
        """The class that writes, where there is one."""
        return self.auto_class if loads(self.auto_class, own) else "AutoModel"
