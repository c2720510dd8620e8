import torch

from m3p.visual.pixels import scaled


def test_pixels_lie_between_minus_one_and_one_and_the_given_are_not_touched() -> None:
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    found = scaled(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[-1.0, -0.6, 1.0]]))
    floats = torch.zeros(2)
    assert scaled(floats).tolist() == [-1.0, -1.0]
    assert floats.tolist() == [0.0, 0.0]
