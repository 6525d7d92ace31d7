"""oral_ray: a distributed adapter factory. One generator turns a prompt and a base model into a LoRA adapter."""

__version__ = "0.2.0"
