"""What CMake builds with a compiler that lacks one instruction set."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lowbit.kernels import native

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None or shutil.which("cmake") is None, reason="no compiler or no cmake"
    ),
    pytest.mark.skipif(
        native.lacks("avx2") is not None, reason=native.lacks("avx2") or "instruction sets of x86"
    ),
]


@pytest.fixture(params=["-mamx-tile", "-mavx512f"])
def refused(request):
    return request.param


@pytest.fixture
def commands(tmp_path, refused):
    """The compilations of a build whose compiler refuses one flag: source -> command."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        f'for flag in "$@"; do [ "$flag" = {refused} ] && echo "no $flag" >&2 && exit 1; done\n'
        f'exec {COMPILER} "$@"\n'
    )
    compiler.chmod(0o755)
    subprocess.run(
        [
            "cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DCMAKE_CXX_COMPILER={compiler}",
            "-DLOWBIT_PYTHON=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    listed = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    return {Path(each["file"]).stem: each["command"] for each in listed}


def test_a_flag_that_the_compiler_lacks_costs_the_instruction_sets_that_need_it_alone(
    commands, refused
):
    lost = {"-mamx-tile": {"amx"}, "-mavx512f": {"avx512", "avx512vnni", "amx"}}[refused]
    sources = {source.stem for source in (ROOT / "csrc").glob("*.cpp")} - {"binding"}
    assert set(commands) == {stem for stem in sources if not lost & set(stem.split("_"))}
    for command in commands.values():
        assert f" {refused} " not in command
        assert "-DLOWBIT_HAS_AVX2 " in command
        assert all(f"-DLOWBIT_HAS_{name.upper()} " not in command for name in lost)
