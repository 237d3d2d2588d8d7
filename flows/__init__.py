"""Flows and the command line: which step runs after which; `tasks` builds them."""
