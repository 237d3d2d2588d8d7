"""HTTP server for the model: continuous batching, OpenAI's API, one chat page.

A plain library: a model's folder in, an ASGI application out. `tasks/serve.py` resolves registry aliases and
runs the process that listens.
"""
