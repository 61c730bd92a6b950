"""Mean and covariance of features that come batch by batch, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import torch

from .features import FINITE_BELOW

MOST_COLUMNS = 16_384  # whose sums of products take 2 GiB


class RunningStatistics:
    """Mean and covariance of features that are added in parts.

    Kept are, in float64, the number n of rows, the sum of `x - c` and the sum of its products
    `(x - c) (x - c)^T`, where c is the mean of the first part. Near the mean little cancels in
    `(sum of products - sum sum^T / n) / (n - 1)`; far from it, as without c, nearly all would where
    the mean is large.

    Parts that were added elsewhere, by another process for instance, are taken over by `merge`. Any
    order and division of the rows gives the same numbers to rounding.

    Args:
        device: where to sum; None: where the first part lies.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        self.count = 0
        self.centre: torch.Tensor | None = None  # [D]
        self.total: torch.Tensor | None = None  # [D]
        self.products: torch.Tensor | None = None  # [D, D]

    def add(self, features: torch.Tensor | np.ndarray) -> None:
        """Take features `[N, D]` of any real type in; an empty part changes nothing.

        Raises:
            ValueError: another shape or width, NaN, infinity, or more columns than 16,384.
        """
        if isinstance(features, np.ndarray):
            features = torch.from_numpy(np.ascontiguousarray(features))
        part = torch.as_tensor(features, device=self.device)
        if part.ndim != 2 or part.is_complex() or not 0 < part.shape[1] <= MOST_COLUMNS:
            raise ValueError(
                f"RunningStatistics: features must be real numbers [N, D] with D <= {MOST_COLUMNS},"
                f" got {part.dtype} {list(part.shape)}; choose features that are less wide"
            )
        if self.centre is not None and part.shape[1] != len(self.centre):
            raise ValueError(
                f"RunningStatistics: features must have {len(self.centre)} columns as before, got "
                f"{part.shape[1]}; use one kind of features throughout"
            )
        if not len(part):
            return
        part = part.detach().to(torch.float64)
        if not (part.abs() < FINITE_BELOW).all():  # false for NaN, too
            raise ValueError(
                "RunningStatistics: features must be finite, got NaN, infinity or more than "
                "1e100; look at the images first"
            )
        if self.centre is None or self.total is None or self.products is None:
            self.device = part.device
            self.centre = part.mean(dim=0)
            self.total = torch.zeros_like(self.centre)
            self.products = self.centre.new_zeros(part.shape[1], part.shape[1])
        part = part - self.centre
        self.count += len(part)
        self.total += part.sum(dim=0)
        self.products.addmm_(part.T, part)

    def merge(self, other: RunningStatistics) -> None:
        """Take in what another has summed; it stays as it is."""
        if other.centre is None:
            return
        if self.centre is None:
            self.device = self.device or other.centre.device
            self.centre = other.centre.to(self.device, copy=True)
            self.total = torch.zeros_like(self.centre)
            self.products = self.centre.new_zeros(len(self.centre), len(self.centre))
        moved = other.about(self.centre)
        assert self.total is not None and self.products is not None
        assert moved.total is not None and moved.products is not None
        self.total += moved.total
        self.products += moved.products
        self.count += other.count

    def about(self, centre: torch.Tensor) -> RunningStatistics:
        """The same sums about another centre c `[D]`, so that they can be added up."""
        assert self.centre is not None and self.total is not None and self.products is not None
        if len(centre) != len(self.centre):
            raise ValueError(
                f"RunningStatistics: features must have {len(centre)} columns as before, got "
                f"{len(self.centre)}; use one kind of features throughout"
            )
        moved = RunningStatistics(centre.device)
        step = self.centre.to(centre.device) - centre
        total = self.total.to(centre.device)
        moved.count, moved.centre = self.count, centre.clone()
        moved.total = total + self.count * step
        # (x - c') (x - c')^T with c' = c - step
        crossed = torch.outer(total, step)
        moved.products = self.products.to(centre.device) + crossed + crossed.T
        moved.products += self.count * torch.outer(step, step)
        return moved

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean, float64 `[D]`, and the unbiased covariance, float64 `[D, D]`.

        Raises:
            ValueError: fewer than two rows were added.
        """
        if self.count < 2 or self.centre is None or self.total is None or self.products is None:
            raise ValueError(
                f"RunningStatistics: statistics must be of at least 2 rows, got {self.count}; add "
                "more features"
            )
        mean = self.total / self.count
        sigma = (self.products - torch.outer(self.total, mean)) / (self.count - 1)
        sigma.diagonal().clamp_(min=0)  # of what never varies, rounding is left
        return (self.centre + mean).cpu().numpy(), ((sigma + sigma.T) / 2).cpu().numpy()
