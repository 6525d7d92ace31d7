"""The checks of infra/dev/faults.py: one module per part of the product, each check a function with its claim and tests."""
