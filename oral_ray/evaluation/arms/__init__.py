"""The arms of an evaluation: every way to get an adapter for a task on a base, one file per arm or family of arms.

To add an arm, add one file to this folder that holds `ARMS`, a tuple of `Arm` (arms/registry.py says what each field
is); the registry finds it, and configurations may name it in `evaluation.arms`. Nothing else has to change: making,
scoring, tables and figures read the registry.
"""
