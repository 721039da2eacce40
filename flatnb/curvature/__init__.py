"""How flat is this minimum? Curvature of the loss surface, with error and cost of every number."""

from flatnb.curvature.operator import GaussNewtonOperator, HessianOperator

__all__ = ["GaussNewtonOperator", "HessianOperator"]
