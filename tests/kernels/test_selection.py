import pytest

from lowbit.errors import UsageError
from lowbit.kernels import native, selection
from lowbit.kernels.selection import VARIABLE, Kernel, never, select


def run(x):
    return x


def refuse_odd(x):
    return f"{x} is odd" if x % 2 else None


REFERENCE = Kernel("reference", run, never)
FAST = Kernel("avx2", run, refuse_odd, feature="avx2")
PLAIN = Kernel("scalar", run, never, feature="scalar")
KERNELS = (FAST, PLAIN, REFERENCE)


@pytest.fixture
def machine(monkeypatch):
    """Pretends a native module and a processor with the given features, and forces a kernel."""

    def pretend(*features, forced=None, missing_module=None):
        def lacks(isa):
            if missing_module:
                return f"no native module: {missing_module}"
            return None if isa == "scalar" or isa in features else f"this processor has no {isa}"

        monkeypatch.setattr(native, "lacks", lacks)
        monkeypatch.setattr(selection, "NAMES", ("reference", "scalar", "avx2", "amx"))
        if forced is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, forced)
        # Kernels of its own for each machine, since what a processor has is found out only once.
        return tuple(Kernel(k.name, k.run, k.unsupported, k.feature) for k in KERNELS)

    return pretend


def choose(kernels, *args):
    kernel, why = select(kernels, *args)
    assert why.startswith(f"{kernel.name}: ")
    return kernel.name, why.removeprefix(f"{kernel.name}: ")


def test_the_best_kernel_the_processor_has_is_chosen(machine):
    assert choose(machine("avx2"), 2) == ("avx2", "best of what this processor has")
    assert choose(machine(), 2) == ("scalar", "best of what this processor has")


def test_a_kernel_that_cannot_serve_the_call_gives_way_with_its_reason(machine):
    assert choose(machine("avx2"), 3) == ("scalar", "avx2 cannot serve this call: 3 is odd")


def test_without_a_native_module_the_reference_serves_and_says_why(machine):
    kernels = machine(missing_module="no compiler")
    assert choose(kernels, 2) == ("reference", "no native module: no compiler")


@pytest.mark.parametrize("name", ["reference", "scalar", "avx2"])
def test_the_variable_forces_a_kernel(machine, name):
    assert choose(machine("avx2", forced=name), 2) == (name, f"forced by {VARIABLE}")


def test_the_variable_is_read_at_every_call(machine, monkeypatch):
    kernels = machine("avx2")
    assert choose(kernels, 2)[0] == "avx2"
    monkeypatch.setenv(VARIABLE, "scalar")
    assert choose(kernels, 2)[0] == "scalar"


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(machine):
    with pytest.raises(
        UsageError, match=f"{VARIABLE}=sse9 is unknown; it can be reference, scalar"
    ):
        select(machine("avx2", forced="sse9"), 2)


def test_forcing_what_the_processor_lacks_is_an_error(machine):
    with pytest.raises(UsageError, match=f"{VARIABLE}=avx2 .*this processor has no avx2"):
        select(machine(forced="avx2"), 2)


def test_forcing_native_code_without_a_native_module_is_an_error(machine):
    with pytest.raises(UsageError, match="no native module: no compiler"):
        select(machine(forced="scalar", missing_module="no compiler"), 2)


def test_forcing_a_name_that_the_op_does_not_have_leaves_the_choice_and_says_so(machine):
    wanted = ("avx2", "best of what this processor has, as this op has no amx kernel")
    assert choose(machine("avx2", forced="amx"), 2) == wanted


def test_a_forced_kernel_that_cannot_serve_the_call_gives_way_to_the_reference(machine):
    wanted = ("reference", "avx2 cannot serve this call: 3 is odd")
    assert choose(machine("avx2", forced="avx2"), 3) == wanted


def test_the_native_module_says_what_it_lacks():
    if native.available():
        assert native.reason() == "" and native.lacks("scalar") is None
        assert all(native.lacks(feature) is None for feature in native.features())
    else:
        assert native.reason() and native.features() == frozenset()
        assert native.reason() in native.lacks("scalar")
    assert native.lacks("sse9")
