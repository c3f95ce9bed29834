"""Curvature of an `EmpiricalRisk`: pure functions and solvers, no I/O."""

from opposing_signals.curvature.batch_sharpness import batch_sharpness
from opposing_signals.curvature.density import SpectralQuadrature, spectral_density
from opposing_signals.curvature.eigen import Eigenpairs, power_iteration
from opposing_signals.curvature.gauss_newton import CurvatureSplit, curvature_split
from opposing_signals.curvature.gradient_norms import gradient_norms
from opposing_signals.curvature.gradient_sketch import gradient_sketch
from opposing_signals.curvature.hessian import Hessian
from opposing_signals.curvature.jacobian import jacobian_norms
from opposing_signals.curvature.layer_spectra import LayerSpectra, layer_spectra
from opposing_signals.curvature.preconditioned import adam_preconditioner, preconditioned
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.curvature.sample_curvature import AlongLine, StepExpansion, sample_curvature, step_expansion
from opposing_signals.curvature.sample_sharpness import sample_sharpness
from opposing_signals.curvature.tracking import EigenTracker

__all__ = [
    "AlongLine",
    "CurvatureSplit",
    "EigenTracker",
    "Eigenpairs",
    "EmpiricalRisk",
    "Hessian",
    "LayerSpectra",
    "SpectralQuadrature",
    "StepExpansion",
    "adam_preconditioner",
    "batch_sharpness",
    "curvature_split",
    "gradient_norms",
    "gradient_sketch",
    "jacobian_norms",
    "layer_spectra",
    "power_iteration",
    "preconditioned",
    "sample_curvature",
    "sample_sharpness",
    "spectral_density",
    "step_expansion",
]
