"""Signals of the service go to its own children alone."""

import os
import signal
import socket

from lowbit.serving.processes import _Parent


def test_a_front_that_has_ended_gets_no_signal(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    parent = _Parent(service=None, front_process=7, control=socket.socket())
    parent._stop_front()
    parent.front = 0  # as a process id it would mean the whole group
    parent._stop_front()
    parent.control.close()
    assert sent == [(7, signal.SIGTERM)]
