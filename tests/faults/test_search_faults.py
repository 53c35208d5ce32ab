"""A search killed between any two writes of its ledger and run again decides as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    command = [sys.executable, str(HERE / "search_coordinator.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_death_happened(killed):
    assert killed["commits"] > 60 and killed["deaths"] == 2 * killed["commits"] == len(killed["resumed"])


def test_the_decisions_are_those_of_an_undisturbed_search(killed):
    plain = killed["undisturbed"]
    assert len(plain["decisions"]) == 2 and plain["outcome"]["gain"] and plain["decisions"][0][3]["pruned"]
    differ = [when for when, found in killed["resumed"].items() if found["decisions"] != plain["decisions"]]
    assert differ == []
    differ = [when for when, found in killed["resumed"].items() if found["outcome"] != plain["outcome"]]
    assert differ == []


def test_no_trial_is_lost_and_none_differs(killed):
    trials = killed["undisturbed"]["trials"]
    differ = [when for when, found in killed["resumed"].items() if found["trials"] != trials]
    assert differ == []
