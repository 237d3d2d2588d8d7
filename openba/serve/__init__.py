"""Answers over HTTP: requests of many clients decoded together, in OpenAI's form, and one chat page.

A plain library: a model's folder in, an ASGI application out. Which version an alias names and the process
that listens are `tasks/serve.py`'s.
"""
