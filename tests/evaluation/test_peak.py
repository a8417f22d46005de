import subprocess

import pytest

from lowbit import InputError
from lowbit.evaluation import peak


def test_a_system_that_keeps_its_marks_to_itself_tells_no_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peak, "MARKS", tmp_path / "absent" / "clear_refs")

    def here(command, **_):
        peak._main(command[-1])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", here)
    assert peak.peak_bytes(tmp_path) is None


@pytest.mark.slow
def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the folder was run')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        peak.peak_bytes(tmp_path)
