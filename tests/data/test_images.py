import numpy as np
import pytest
import torch

from sslrun.data.images import Images, digests


def images(*sizes: int, seed: int = 0) -> tuple[Images, torch.Tensor]:
    """Return images in several arrays, and all their pixels, `N x 3 x 5 x 5`."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 255, (n, 5, 5, 3), dtype=np.uint8) for n in sizes]
    parts = [Images([torch.from_numpy(a)], digests(a)) for a in arrays]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole, torch.from_numpy(np.concatenate(arrays)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("sizes", [(40,), (10, 25, 5), (1, 39)])
def test_batches_equal_plain_indexing(sizes: tuple[int, ...]) -> None:
    result, pixels = images(*sizes)
    assert len(result) == 40
    rows = torch.randperm(40)[:17]
    assert torch.equal(result[rows], pixels[rows])
    for part in (slice(None), slice(3, 30), slice(0, 40, 7), slice(35, 99)):
        assert torch.equal(result[part], pixels[part])
    assert torch.equal(torch.cat(list(result.split(7))), pixels)
    assert result[rows].is_contiguous(memory_format=torch.channels_last)


def test_selected_and_concatenated_images_keep_their_order() -> None:
    result, pixels = images(10, 20)
    rows = np.array([29, 0, 10, 9, 10])
    taken = result.take(rows)
    assert torch.equal(taken[:], pixels[rows])
    twice = taken.take(np.array([4, 0])) + result.take(np.array([1]))
    assert torch.equal(twice[:], pixels[[10, 29, 1]])
    moved = taken.to(torch.device("cpu"))
    assert torch.equal(moved[:], taken[:])


def test_moving_to_a_device_copies_only_selected_images() -> None:
    taken = images(10, 20)[0].take(np.array([29, 3, 11]))
    moved = taken.to(torch.device("meta"))
    assert moved.tensors[0].shape == (3, 5, 5, 3)
    assert moved.fingerprint().hexdigest() == taken.fingerprint().hexdigest()


def test_the_fingerprint_depends_on_pixels_and_order_and_not_on_storage() -> None:
    result, pixels = images(10, 20)
    array = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    same = Images([torch.from_numpy(array)], digests(array))
    assert result.fingerprint().hexdigest() == same.fingerprint().hexdigest()
    rows = np.arange(30)[::-1].copy()
    assert result.take(rows).fingerprint().hexdigest() != result.fingerprint().hexdigest()
    assert result.take(rows).take(rows).fingerprint().hexdigest() == result.fingerprint().hexdigest()
    array[7, 2, 2, 1] += 1
    assert Images([torch.from_numpy(array)], digests(array)).fingerprint().hexdigest() != same.fingerprint().hexdigest()


def test_images_copied_to_a_device_are_the_same_in_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first core of the CPU counts as another device, to which they are copied."""
    array = np.arange(9000, dtype=np.uint16).view(np.uint8).reshape(9000, 1, 2, 1)[..., [0, 0, 0]].copy()
    array[:, :, 1] = np.arange(9000)[:, None, None] >> 8
    taken = Images([torch.from_numpy(array)], digests(array)).take(np.arange(9000)[::-1].copy())
    moved = taken.to(torch.device("cpu", 0))
    assert len(moved.tensors) == 1
    assert moved.tensors[0].data_ptr() != taken.tensors[0].data_ptr()
    assert torch.equal(moved[:], taken[:])
    assert moved.fingerprint().hexdigest() == taken.fingerprint().hexdigest()
    assert taken.to(torch.device("cpu")) is taken
    meta = images(10)[0].to(torch.device("meta"))
    assert meta[torch.tensor([1, 2])].shape == meta[1:3].shape == (2, 3, 5, 5)


def test_images_go_to_a_gpu_if_they_fit_into_half_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    some = images(10, 20)[0].take(np.arange(8))
    assert (some.nbytes, some.image_size) == (8 * 5 * 5 * 3, 5)
    moved = object()
    monkeypatch.setattr(Images, "to", lambda self, device: moved)
    for free, expected in ((2 * some.nbytes, moved), (2 * some.nbytes - 2, some)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free - 9, 10**12))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 21)  # 9 bytes are free within torch
        assert some.on(torch.device("cuda")) is expected
        assert some.on(torch.device("cpu")) is moved


def test_every_byte_of_an_image_is_part_of_its_digest() -> None:
    array = np.zeros((1, 5, 5, 3), np.uint8)
    seen = {digests(array).tobytes()}
    for place in np.ndindex(array.shape):
        other = array.copy()
        other[place] = 1
        seen.add(digests(other).tobytes())
    assert len(seen) == 1 + array.size
