"""Test that signals raise one KeyboardInterrupt, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_interrupts_once(number: signal.Signals) -> None:
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)  # does not disturb the clean-up
        assert interruption.signal == number
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_shield_delays_a_signal_until_its_end() -> None:
    steps = []

    def shielded(interruption: Interruption) -> None:
        with interruption.shielded():
            with interruption.shielded():
                signal.raise_signal(signal.SIGTERM)
            steps.append("inside the outer shield")
        steps.append("after it")

    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            shielded(interruption)
        assert steps == ["inside the outer shield"]
        with interruption.shielded():
            pass  # code that was interrupted is not interrupted again


def test_shield_lets_exceptions_through() -> None:
    with Interruption() as interruption, pytest.raises(ValueError, match="inside"), interruption.shielded():
        raise ValueError("inside")


def test_disarmed_interruption_ignores_signals() -> None:
    with Interruption() as interruption:
        interruption.disarm()
        signal.raise_signal(signal.SIGTERM)
        assert interruption.signal is None


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_caught_inside_exec_keeps_the_exit_code(tmp_path: Path) -> None:
    # Otherwise CPython ends `python -m` by SIGINT. Importing torch executes text very often.
    (tmp_path / "interrupted.py").write_text(
        "import signal, sys\n"
        "from workers.interruption import Interruption\n"
        "with Interruption():\n"
        "    try:\n"
        "        exec('signal.raise_signal(signal.SIGTERM)')\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "sys.exit(143)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    assert subprocess.run([sys.executable, "-m", "interrupted"], env=environment).returncode == 143
