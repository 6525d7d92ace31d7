"""The nightly job: plan, regenerate, gate, summary."""
