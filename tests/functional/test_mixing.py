import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.functional.mixing import mixture_counts


@pytest.mark.parametrize(
    ("batch_size", "shares", "counts"),
    [
        (512, [0.33, 0.34, 0.33], [169, 175, 168]),
        (512, [0.33, 0.67, 0.0], [169, 343, 0]),
        (100, [0.29, 0.71], [29, 71]),
        (7, [0.0, 0.5, 0.5], [0, 4, 3]),
        (0, [1.0], [0]),
    ],
)
def test_split(batch_size, shares, counts):
    assert mixture_counts(batch_size, shares) == counts


@given(st.integers(0, 5000), st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any))
def test_sums_to_the_batch_and_stays_within_one_of_the_share(batch_size, weights):
    shares = [w / sum(weights) for w in weights]
    counts = mixture_counts(batch_size, shares)
    assert sum(counts) == batch_size
    assert all(abs(c - batch_size * s) < 1 + 1e-6 for c, s in zip(counts, shares, strict=True))
    assert all(c == 0 for c, s in zip(counts, shares, strict=True) if s == 0)


@pytest.mark.parametrize(("batch_size", "shares"), [(8, [0.5, 0.4]), (8, [1.5, -0.5]), (-1, [1.0])])
def test_refuses(batch_size, shares):
    with pytest.raises(ValueError):
        mixture_counts(batch_size, shares)
