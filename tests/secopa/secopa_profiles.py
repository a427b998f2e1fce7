"""Profiles made of given curves, and gradients and links for the property tests."""

from hypothesis import strategies as st

from secopa.cost import Link
from secopa.profile import Conditions, Curve, Profile

CONDITIONS = Conditions(
    codec="terngrad",
    params="bitwidth=2",
    fingerprint="0" * 64,
    backend="interp",
    threads=1,
    local_ranks=1,
    cpu="some processor",
    cores=2,
    python="3.11",
    numpy="2.0",
    compll="0.1.0",
)
SIZES = (4096, 65_536, 1_048_576)


def profile_of(*curves, conditions=CONDITIONS):
    """A profile of the curves encode, decode, decode_add and merge, each as milliseconds at SIZES."""
    return Profile(conditions, *(Curve(tuple(zip(SIZES, curve, strict=True))) for curve in curves))


times = st.tuples(*[st.floats(0, 50)] * 3)
profiles = st.builds(profile_of, times, times, times, times)
links = st.builds(Link, bandwidth=st.floats(1e5, 1e11), latency=st.floats(0, 1e-2))
elements = st.integers(1, 3_000_000)
nodes = st.integers(1, 24)
topologies = st.sampled_from(["PS", "RING"])


def payload_bytes(n):
    """Two bits an element and a scale, as TernGrad writes."""
    return 16 + -(-n // 4)
