"""The shop window: complete, sorted, and cheap to look at."""

import subprocess
import sys

import pytest

import fedcore


def test_all_is_sorted_and_has_no_doubles():
    assert fedcore.__all__ == sorted(set(fedcore.__all__))
    assert dir(fedcore) == fedcore.__all__


@pytest.mark.parametrize("name", fedcore.__all__)
def test_every_name_can_be_imported(name):
    value = getattr(fedcore, name)
    if callable(value) and name != "Parameters":  # which is another name for dict
        assert value.__name__ == name
        assert value.__module__.startswith("fedcore.")


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fedcore' has no attribute 'FedAverage'"):
        fedcore.FedAverage  # noqa: B018
    with pytest.raises(ImportError):
        from fedcore import FedAverage  # noqa: F401


def imports(code, *modules):
    """Return which of the modules are loaded after ``code`` ran in a fresh interpreter."""
    script = f"import sys; {code}; sys.stdout.write(' '.join(m for m in {modules!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_fedcore_pays_for_nothing():
    heavy = ("torch", "numpy", "grpc", "google.protobuf", "safetensors", "lz4", "msgpack", "matplotlib", "asyncio")
    assert imports("import fedcore; fedcore.__version__; dir(fedcore)", *heavy) == []


def test_errors_and_messages_load_no_tensor_library():
    assert imports("from fedcore import ConfigError, RoundPolicy; import fedcore.messages", "torch", "grpc") == []


def test_an_unused_transport_is_not_loaded():
    assert imports("from fedcore import Server, FedAvg, Memory", "grpc", "torch") == ["torch"]
