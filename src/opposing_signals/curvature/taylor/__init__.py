"""Taylor arithmetic: a network's outputs along a line in parameter space, to second order, in one forward pass.

A jet holds x(t) = x₀ + x₁ t + x₂ t² + O(t³). Running a model on jets of its parameters θ + t v gives ℓ_i(θ + t v) and
so, for every example at once, the slope ∇ℓ_i·v = ℓ_i₁ and the curvature vᵀ∇²ℓ_i v = 2 ℓ_i₂ (Griewank and Walther 2008,
§13). A convolution costs five convolutions, where nested forward mode spends eight and a Hessian-vector product nine;
nothing is kept for a backward pass.

Linear functions act on each coefficient, bilinear ones convolve the coefficients, normalizations are written out here,
some functions are composed of others, and the rest use PyTorch's nested forward mode. That is silently wrong for the
fused kernels of layer norm and of batch norm in training mode and for some of linear algebra (torch 2.13). The former
have rules of their own; the check in `sample_curvature` catches the latter.
"""

from opposing_signals.curvature.taylor import rules
from opposing_signals.curvature.taylor.jet import Jet, orders, refusing_what_stops

__all__ = ["Jet", "orders", "refusing_what_stops", "rules"]
