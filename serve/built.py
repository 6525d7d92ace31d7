"""The application as an object, for `serve build`, which takes no function with arguments.

ORAL_CONFIG=quickstart serve build serve.built:app -o my-serve.yaml
"""

import os

from oral_ray.config import DEFAULT_CONFIG
from serve.app import build_app

app = build_app({"config": os.environ.get("ORAL_CONFIG", DEFAULT_CONFIG)})
