"""Random requests to a server whose model gives NaN for some: none ends it or changes another's answer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.operations.serving_fuzz import Campaign, known_answers, poison
from tests.serve.conftest import start


def test_no_request_ends_or_poisons_the_engine(
    model_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """`python -m benchmarks serving` does the same with 10,000."""
    running = start(str(poison(model_folder, tmp_path / "poisoned")), "--rows", "8", environment=environment)
    try:
        campaign = Campaign(running.client, known_answers(model_folder))
        campaign.run(400, number=1)
        assert campaign.poisoned == []
        assert campaign.wrong_form == []
        assert campaign.statuses[200] > 50
        assert campaign.statuses[400] > 50
        assert campaign.statuses[500] > 0  # those with the poisoned token, by themselves
        assert running.client.get("/health").json()["status"] == "ok"
    finally:
        running.client.close()
        running.process.terminate()
        running.process.wait(20)
