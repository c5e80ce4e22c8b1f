"""The elementary losses of all tasks. None of them modifies its inputs.

Losses over objects divide by their number. Each takes that number as an optional argument: with several processes it is
the number in the whole global batch, so that the sum of the processes' losses, and with it every gradient, does not
depend on how the batch is split. Without it the number in the given tensors is used, as in the reference.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW, HIGH = 1e-4, 1 - 1e-4  # bounds of heatmap scores
FOCAL_CHUNK = 2**17  # values of a heatmap that a CPU processes at once, so that they stay in its cache


def clamped_sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid clamped to [1e-4, 1 - 1e-4], so that its logarithms are finite (``_sigmoid``)."""
    return x.sigmoid().clamp(LOW, HIGH)


def gather_feat(feat: Tensor, ind: Tensor) -> Tensor:
    """Gather the vectors of a map at given cells: feat (B, D, H, W), ind (B, N) of y * W + x, to (B, N, D)."""
    batch, channels = feat.shape[:2]
    flat = feat.reshape(batch, channels, -1)
    return flat.gather(2, ind[:, None].expand(-1, channels, -1)).transpose(1, 2)


class FocalLoss(nn.Module):
    """Penalty-reduced pixel-wise logistic regression (equation 1 of the paper; CornerNet's focal loss).

    forward(out, target, num_pos=None): ``out`` (B, C, H, W) probabilities inside (0, 1), ``target`` the same shape in
    [0, 1] with exact ones at the peaks. ``num_pos``: number of ones; 0: the sum is not divided.
    """

    def forward(self, out: Tensor, target: Tensor, num_pos: Tensor | None = None) -> Tensor:
        pos = target.eq(1)
        if num_pos is None:
            num_pos = pos.sum()
        # One expression for both kinds of pixels: the probability of the right answer, and the weight of a pixel.
        right = torch.where(pos, out, 1 - out)
        weight = torch.where(pos, 1.0, (1 - target) ** 4)
        loss = right.log() * (1 - right) ** 2 * weight
        return -loss.sum() / num_pos.clamp(min=1)


def focal_loss(logits: Tensor, target: Tensor, num_pos: Tensor | None = None) -> Tensor:
    """Return ``FocalLoss()(clamped_sigmoid(logits), target, num_pos)``, computed in one pass over the maps.

    Args:
        logits, target: (B, C, H, W); best with the same memory format.
        num_pos: number of ones in the target; None: those of this one.
    """
    if num_pos is None:
        num_pos = target.eq(1).sum()
    return _FocalSum.apply(logits, target) / num_pos.clamp(min=1)


class _FocalSum(torch.autograd.Function):
    """The sum of ``FocalLoss`` from logits. The forward pass computes the gradient, too, since it has all it needs."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        last = logits.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        maps = [values.detach().contiguous(memory_format=order) for values in (logits, target)]
        grad = torch.empty_like(maps[0]) if ctx.needs_input_grad[0] else None

        def flat(values: Tensor) -> Tensor:
            return values.permute(0, 2, 3, 1).reshape(-1) if last else values.view(-1)

        x, target, out = flat(maps[0]), flat(maps[1]), None if grad is None else flat(grad)
        chunk = FOCAL_CHUNK if x.device.type == "cpu" and not torch.compiler.is_compiling() else max(len(x), 1)
        sums = [
            _focal_chunk(x[i : i + chunk], target[i : i + chunk], None if out is None else out[i : i + chunk])
            for i in range(0, len(x), chunk)
        ]
        ctx.save_for_backward(grad)
        return torch.stack(sums).sum() if sums else x.new_zeros(())

    @staticmethod
    def backward(ctx, grad_sum: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_sum, None


def _focal_chunk(x: Tensor, target: Tensor, grad: Tensor | None) -> Tensor:
    """Return the sum over some pixels; their gradients are written to ``grad``."""
    pos = target.eq(1)
    score = x.sigmoid().clamp_(LOW, HIGH)
    other = 1 - score
    right, wrong = torch.where(pos, score, other), torch.where(pos, other, score)
    weight = torch.where(pos, 1.0, (1 - target).square_().square_()) * wrong.square()
    log = right.log()
    if grad is not None:
        # d(-log(r) (1 - r)^2) by the logit of r, whose sign is that of x at the peaks and the other elsewhere.
        slope = torch.addcmul(wrong, right, log, value=-2).mul_(weight)
        slope = torch.where(pos, -slope, slope)
        grad.copy_(slope.mul_((score > LOW) & (score < HIGH)))
    return -(log.mul_(weight)).sum()


class RegLoss(nn.Module):
    """Smooth L1 at the objects, divided by the number of objects (not by the number of values).

    forward(output, mask, ind, target, num=None): output (B, D, H, W), mask (B, N), ind (B, N) int64,
    target (B, N, D); ``num``: number of objects.
    """

    def forward(self, output: Tensor, mask: Tensor, ind: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
        pred, mask = gather_feat(output, ind), mask.to(output.dtype)
        num = mask.sum() if num is None else num
        mask = mask.unsqueeze(2)
        return F.smooth_l1_loss(pred * mask, target * mask, reduction="sum") / (num + 1e-4)


class RegL1Loss(nn.Module):
    """L1 at the objects, divided by the number of values (objects times D). Arguments as ``RegLoss``."""

    def forward(self, output: Tensor, mask: Tensor, ind: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
        pred, mask = gather_feat(output, ind), mask.to(output.dtype)
        num = mask.sum() if num is None else num
        mask = mask.unsqueeze(2)
        return F.l1_loss(pred * mask, target * mask, reduction="sum") / (num * pred.shape[2] + 1e-4)


class NormRegL1Loss(nn.Module):
    """L1 of the prediction relative to the target, divided by the number of values. Arguments as ``RegLoss``."""

    def forward(self, output: Tensor, mask: Tensor, ind: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
        pred, mask = gather_feat(output, ind), mask.to(output.dtype)
        num = mask.sum() if num is None else num
        mask = mask.unsqueeze(2)
        relative = pred / (target + 1e-4) * mask
        return F.l1_loss(relative, mask.expand_as(relative), reduction="sum") / (num * pred.shape[2] + 1e-4)


class RegWeightedL1Loss(nn.Module):
    """L1 with a separate mask for every value: mask (B, N, D); ``num``: sum of the mask."""

    def forward(self, output: Tensor, mask: Tensor, ind: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
        pred, mask = gather_feat(output, ind), mask.to(output.dtype)
        num = mask.sum() if num is None else num
        return F.l1_loss(pred * mask, target * mask, reduction="sum") / (num + 1e-4)


class L1Loss(nn.Module):
    """L1 at the objects as in the 3D task: the mean over all N slots, empty ones included.

    forward(output, mask, ind, target, num=None): as ``RegLoss``, but ``num`` is the number of slots.
    """

    def forward(self, output: Tensor, mask: Tensor, ind: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
        pred, mask = gather_feat(output, ind), mask.to(output.dtype).unsqueeze(2)
        count = ind.numel() if num is None else num
        return F.l1_loss(pred * mask, target * mask, reduction="sum") / (count * pred.shape[2])


class BinRotLoss(nn.Module):
    """Orientation in two overlapping bins (Mousavian et al., arXiv 1612.00496; equations in appendix of the paper).

    forward(output, mask, ind, rotbin, rotres, num=None): output (B, 8, H, W) with channels
    [bin 1 no, bin 1 yes, sin, cos, bin 2 no, bin 2 yes, sin, cos]; mask, ind (B, N); rotbin (B, N, 2) membership;
    rotres (B, N, 2) residual angles in radians. The bin terms are means over all slots, empty ones included, the
    residual terms over the members of each bin; ``num``: numbers of slots, of members of bin 1 and of bin 2.
    """

    def forward(
        self, output: Tensor, mask: Tensor, ind: Tensor, rotbin: Tensor, rotres: Tensor, num: Sequence | None = None
    ) -> Tensor:
        pred = gather_feat(output, ind).reshape(-1, 8)
        mask = mask.reshape(-1, 1).to(output.dtype)
        rotbin, rotres = rotbin.reshape(-1, 2), rotres.reshape(-1, 2)
        member = rotbin != 0
        slots, *members = (len(pred), *member.sum(0)) if num is None else num
        loss = pred.new_zeros(())
        for k in range(2):
            part, angle = pred[:, 4 * k : 4 * k + 4], rotres[:, k]
            loss = loss + F.cross_entropy(part[:, :2] * mask, rotbin[:, k].long(), reduction="sum") / slots
            residual = F.smooth_l1_loss(part[:, 2:], torch.stack([angle.sin(), angle.cos()], dim=1), reduction="none")
            loss = loss + torch.where(member[:, k, None], residual, 0).sum() / members[k].clamp(min=1)
        return loss


def dense_l1_loss(output: Tensor, mask: Tensor, target: Tensor, num: Tensor | None = None) -> Tensor:
    """Return L1 over whole maps (B, D, H, W) weighted by ``mask`` of the same shape; ``num``: sum of the mask."""
    num = mask.sum() if num is None else num
    return F.l1_loss(output * mask, target * mask, reduction="sum") / (num + 1e-4)
