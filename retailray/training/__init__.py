"""Fine-tuning: Ray Data streams decoded images into Ray Train's data-parallel workers."""

from retailray.training.trainer import train

__all__ = ["train"]
