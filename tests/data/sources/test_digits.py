from sslrun.data.dataset import load_test
from tests.helpers import load_split, source_node


def test_the_splits_of_digits_are_disjoint_and_complete() -> None:
    train, val = load_split(source_node("digits", None))
    test = load_test(source_node("digits", None))
    assert val is not None
    names = [set(d.names) for d in (train, val, test)]
    assert len(set.union(*names)) == sum(map(len, names)) == 1797
    assert train.images[:2].shape == (2, 3, 16, 16)
    assert train.class_names == [str(i) for i in range(10)]
