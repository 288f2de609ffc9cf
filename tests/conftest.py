"""Eight simulated devices, quick compilation, strict arithmetic."""

import os
import tempfile
from importlib.metadata import version

# Each worker keeps to its share of the cores. The thread pools of XLA, TensorFlow and
# OpenMP are as large as that, and do not spin for cores that the other worker holds.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, share or cores)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
if version("jax").startswith("0.10."):
    # The older code generator compiles twice as fast. Newer JAX has none but the other
    # (and ends at a flag that it does not know), so that the tests see both.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# The same programs are compiled by many tests, here and in the runs they start.
cache = os.path.join(tempfile.gettempdir(), f"eir_jax_test_cache_{os.getuid()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module")
def one_device():
    """Train and evaluate on one of the eight: quicker on two cores."""
    from eir_jax.system import sharding

    mesh = sharding.make_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda devices=None: mesh)
        yield


def pytest_collection_modifyitems(items):
    """Begin with the files that hold slow tests: no core waits for the last one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
