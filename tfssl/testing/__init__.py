"""Checks that hold a class of your own to what the library relies on, as it holds its own: each
raises an AssertionError that names the promise which is broken.

  from tfssl.testing import check_optimizer

  def test_my_optimizer():
      check_optimizer(MyOptimizer)
"""

from tfssl.testing.backbones import check_backbone
from tfssl.testing.optimizers import check_optimizer
from tfssl.testing.protocols import check_protocol
from tfssl.testing.sources import check_source
from tfssl.testing.tasks import check_task

__all__ = ["check_backbone", "check_optimizer", "check_protocol", "check_source", "check_task"]
