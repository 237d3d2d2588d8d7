"""`ray start` without the server of Ray Client, which nobody here uses: `python -m tasks.ray_start --head`.

On a busy machine that server gives up on its node after 30 s, and `ray start --block` then ends the head.
Ray 2.60 has no option against it: the command starts it wherever the package grpc is.
"""

from __future__ import annotations

from ray.scripts import scripts

if __name__ == "__main__":
    scripts.get_ray_client_dependency_error = lambda: ImportError("Ray Client is not used")
    scripts.start()
