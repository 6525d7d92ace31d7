"""Adapters: layout, gauge, tokens, artifacts, training with peft."""
