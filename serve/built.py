"""The application as an object, for `serve build`, which takes no function with arguments.

ORAL_CONFIG=infra/configs/quickstart.toml serve build serve.built:app -o my-serve.yaml
"""

import os

from serve.app import build_app

app = build_app({"config": os.environ.get("ORAL_CONFIG", "infra/configs/quickstart.toml")})
