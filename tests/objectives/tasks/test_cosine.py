import math

import torch
import torch.nn.functional as F

from m3p.objectives.tasks.cosine import Cosine


def test_the_loss_is_what_each_pair_lacks_of_a_cosine_of_one_whatever_the_temperature() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, -0.8]])
    for scale in (1.0, 14.0):
        found = Cosine().loss(torch.cat([text * scale, image]), {"rows": torch.arange(3)})
        assert math.isclose(float(found), 0.0 + 0.2 + 2.0, rel_tol=1e-5)


def test_its_gradient_turns_the_picture_towards_its_caption_and_no_other() -> None:
    torch.manual_seed(0)
    text, image = F.normalize(torch.randn(2, 4, 8), dim=-1)
    image.requires_grad_()
    torch.autograd.backward(Cosine().loss(torch.cat([text, image]), {"rows": torch.arange(4)}))
    assert image.grad is not None
    across = -image.grad - (-image.grad * image).sum(1, keepdim=True) * image
    wanted = text - (text * image).sum(1, keepdim=True) * image
    torch.testing.assert_close(across, wanted.detach(), atol=1e-5, rtol=0)
