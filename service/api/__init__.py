"""The service over HTTP: `create_app` makes it, `serve` runs it. FastAPI is imported in this package alone."""
