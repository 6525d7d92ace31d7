"""The generation service on Ray Serve: `app.py` builds it, `schema.py` is its wire contract."""
