"""Every quantity that a run of this package records: its name, shape, unit, and what writes it.

A quantity is its own name and the key into a `Record`: ``record[SAMPLE_LOSS]``. N is the number of training examples, P
the number of parameters, C the number of outputs; the instrument's settings give m, k and d.
"""

from __future__ import annotations


class Quantity(str):
    """The name of a recorded quantity, with its meaning.

    Attributes:
        shape: Of one row; empty for a number.
        unit: Of its numbers: ``loss`` is the training loss's (nats for cross-entropy); ``1`` means none.
        writer: The class or function that writes it.
        meaning: Of one row, at θ_t.
    """

    shape: str
    unit: str
    writer: str
    meaning: str

    def __new__(cls, name: str, shape: str, unit: str, writer: str, meaning: str) -> Quantity:
        quantity = super().__new__(cls, name)
        quantity.shape, quantity.unit, quantity.writer, quantity.meaning = shape, unit, writer, meaning
        return quantity

    def __getnewargs__(self) -> tuple[str, ...]:  # type: ignore[override]  # a copy keeps the meaning
        return str(self), self.shape, self.unit, self.writer, self.meaning


# -- losses and outputs -------------------------------------------------------------------------------------------

SAMPLE_LOSS = Quantity("sample_loss", "[N]", "loss", "SampleLosses", "ℓ_i(θ_t) of every training example")
TRAIN_LOSS = Quantity("train_loss", "", "loss", "TrainLoss", "mean loss of the step's batch")
TRAIN_ACCURACY = Quantity("train_accuracy", "", "1", "TrainLoss", "fraction of the step's batch classified correctly")
TEST_ACCURACY = Quantity("test_accuracy", "", "1", "TestAccuracy", "fraction of the test set classified correctly")
PREDICTION = Quantity("prediction", "[N]", "class", "Predictions", "class of the largest output of every example")
OUTPUTS = Quantity("outputs", "[n, C]", "output", "Outputs", "f(x_i; θ_t) of the step's batch")

# -- the batch of a training that is followed --------------------------------------------------------------------------

BATCH_LOSS = Quantity(
    "batch_loss",
    "[W]",
    "loss",
    "Follower",
    "of each example of the step's batch, in training mode; NaN behind",
)
BATCH_INDEX = Quantity("batch_index", "[W]", "index", "Follower", "where each stands in the data set; −1: not known")
BATCH_SIZE = Quantity("batch_size", "", "1", "Follower", "examples of the step's batch; −1: not known")
BATCH_GRADIENT_NORM = Quantity("batch_gradient_norm", "", "loss", "Follower", "of the step's gradient, before clipping")
LEARNING_RATE = Quantity("learning_rate", "", "1", "Follower", "η of the optimizer's first parameter group")

# -- curvature ------------------------------------------------------------------------------------------------------

SHARPNESS = Quantity("sharpness", "", "loss", "Sharpness", "λ, the largest eigenvalue of ∇²L")
SHARPNESS_QUOTIENT = Quantity("sharpness_quotient", "", "loss", "Sharpness", "q = vᵀ∇²L v")
SHARPNESS_RESIDUAL = Quantity("sharpness_residual", "", "loss", "Sharpness", "‖∇²L v − q v‖")
SHARPNESS_BOUND = Quantity("sharpness_bound", "", "loss", "Sharpness", "what no eigenvalue exceeds, with 99%")
SHARPNESS_ERROR = Quantity(
    "sharpness_error", "", "loss", "Sharpness", "products=differences: how far the last product has moved q"
)
SHARPNESS_PRODUCTS = Quantity("sharpness_products", "", "1", "Sharpness", "Hessian-vector products spent")
EIGENVECTOR_SHARE = Quantity(
    "eigenvector_share", "[tensors]", "1", "Sharpness", "fraction of ‖v‖² in each parameter tensor"
)
EIGENVALUES = Quantity("eigenvalues", "[k]", "loss", "Sharpness", "the k largest eigenvalues, where k > 1")
SHARPNESS_GAUSS_NEWTON = Quantity(
    "sharpness_gauss_newton", "", "loss", "GaussNewton", "part of q that is the loss's curvature in the outputs"
)
SHARPNESS_FUNCTIONAL = Quantity(
    "sharpness_functional", "", "loss", "GaussNewton", "part of q that is the network's own curvature in the weights"
)
PRECONDITIONED_SHARPNESS = Quantity(
    "preconditioned_sharpness", "", "loss", "PreconditionedSharpness", "largest eigenvalue of P⁻¹∇²L under Adam"
)
PRECONDITIONED_SHARPNESS_QUOTIENT = Quantity(
    "preconditioned_sharpness_quotient", "", "loss", "PreconditionedSharpness", "its Rayleigh quotient"
)
PRECONDITIONED_SHARPNESS_RESIDUAL = Quantity(
    "preconditioned_sharpness_residual", "", "loss", "PreconditionedSharpness", "its residual"
)
PRECONDITIONED_SHARPNESS_BOUND = Quantity(
    "preconditioned_sharpness_bound", "", "loss", "PreconditionedSharpness", "what no eigenvalue exceeds, with 99%"
)
PRECONDITIONED_SHARPNESS_PRODUCTS = Quantity(
    "preconditioned_sharpness_products", "", "1", "PreconditionedSharpness", "Hessian-vector products spent"
)
BATCH_SHARPNESS = Quantity("batch_sharpness", "", "loss", "BatchSharpness", "mean of gᵀHg/‖g‖² over random batches")
BATCH_SHARPNESS_ERROR = Quantity("batch_sharpness_error", "", "loss", "BatchSharpness", "its standard error")
DENSITY_NODES = Quantity("density_nodes", "[m]", "loss", "SpectralDensity", "eigenvalues of the quadrature")
DENSITY_WEIGHTS = Quantity("density_weights", "[m]", "1", "SpectralDensity", "their weights")

# -- curvature and gradients of single examples -------------------------------------------------------------------

SAMPLE_SLOPE = Quantity("sample_slope", "[N]", "loss", "SampleCurvature", "∇ℓ_i·v")
SAMPLE_CURVATURE = Quantity("sample_curvature", "[N]", "loss", "SampleCurvature", "vᵀ∇²ℓ_i v")
EXPANSION_FIRST = Quantity("expansion_first", "[N]", "loss", "SampleCurvature", "−η ∇ℓ_i·∇L")
EXPANSION_SECOND = Quantity("expansion_second", "[N]", "loss", "SampleCurvature", "½ η² ∇Lᵀ∇²ℓ_i ∇L")
EXPANSION_ALONG_V = Quantity("expansion_along_v", "[N, 2]", "loss", "SampleCurvature", "the part of both along v")
SAMPLE_SHARPNESS = Quantity(
    "sample_sharpness", "[3 m]", "loss", "SampleSharpness", "largest eigenvalue of ∇²ℓ_i of the chosen examples"
)
SAMPLE_SHARPNESS_POINTS = Quantity(
    "sample_sharpness_points", "[3 m]", "index", "SampleSharpness", "which: largest rises, largest falls, random ones"
)
SAMPLE_SHARPNESS_RESIDUAL = Quantity(
    "sample_sharpness_residual", "[3 m]", "loss", "SampleSharpness", "residual of each eigenvalue"
)
GRADIENT_NORM = Quantity("gradient_norm", "[N]", "loss", "GradientNorms", "‖∇ℓ_i‖ of every training example")
GRADIENT_SKETCH = Quantity("gradient_sketch", "[N, d]", "loss", "GradientSketch", "random projection of each ∇ℓ_i")
JACOBIAN_NORM = Quantity(
    "jacobian_norm", "", "output per input", "Jacobian", "mean of ‖∂f(x_i)/∂x‖₂ over a fixed subset of the examples"
)
JACOBIAN_NORM_MAX = Quantity("jacobian_norm_max", "", "output per input", "Jacobian", "its maximum")
LAYER_NORMS = Quantity("layer_norms", "[layers]", "1", "Jacobian", "largest singular value of each weight")
LAYER_ALIGNMENT = Quantity(
    "layer_alignment", "[layers − 1]", "1", "Jacobian", "alignment of neighbouring layers' singular vectors"
)

# -- parameters and steps -----------------------------------------------------------------------------------------

PARAMETERS = Quantity("parameters", "[P]", "1", "Snapshots", "θ_t")
BREAK_EVEN_EIGENVECTOR = Quantity(
    "break_even_eigenvector", "[P]", "1", "BreakEven", "unit eigenvector v at the first step with λ > 2/η"
)
PROJECTION = Quantity("projection", "", "1", "Projection", "θ_t·v along the reference's v")
FLOOR_DISTANCE = Quantity("floor_distance", "", "1", "FloorDistance", "(∇L·v)/(vᵀ∇²L v)")
EFFECTIVE_STEP_SIZE = Quantity("effective_step_size", "", "1", "EffectiveStepSize", "abs(Σ_j v_j η/(√v̂_j + ε))")
SIGNED_SHARE = Quantity("signed_share", "", "1", "SignedShare", "fraction of the parameters that take a signed step")
FLOW_GRADIENTS = Quantity("flow_gradients", "", "1", "Integration", "gradients that the integrator spends on the step")
FLOW_ERROR = Quantity("flow_error", "", "1", "Integration", "its estimate of the step's error")

# -- probe inputs and tokens ------------------------------------------------------------------------------------------

PROBE_LOGITS = Quantity("probe_logits", "[probes, C]", "output", "BlockProbe", "f of each probe input")
PROBE_FEATURE_NORM = Quantity("probe_feature_norm", "[probes]", "1", "BlockProbe", "norm of its penultimate feature")
MEAN_FEATURE_NORM = Quantity("mean_feature_norm", "", "1", "BlockProbe", "the same norm, mean over the step's batch")
PROBE_IMAGE = Quantity("probe_image", "[probes, H, W, 3]", "byte", "BlockProbe", "the probe inputs, at step 0 only")
TOKEN_POINTS = Quantity("token_points", "[m]", "index", "TokenLosses", "the tokens that are followed, once")
TOKEN_LOSS = Quantity("token_loss", "[m]", "loss", "TokenLosses", "their losses")
TOKEN_FOLLOWED = Quantity("token_followed", "[2, m]", "loss", "TokenLosses", "their losses before and after the step")
TOKEN_TOP = Quantity("token_top", "[2, k]", "index", "TokenLosses", "tokens of the largest rises and falls")
TOKEN_TOP_LOSS = Quantity(
    "token_top_loss", "[2, 2, k]", "loss", "TokenLosses", "their losses before and after the step"
)
TOKEN_RISING = Quantity("token_rising", "", "1", "TokenLosses", "fraction of all tokens whose loss rises")

# -- runs without a network: the paper's model, the toy valley, colours ---------------------------------------------

WEIGHT = Quantity("w", "", "1", "toy_valley", "the only weight")
MINIMUM = Quantity("minimum", "", "1", "toy_valley", "where the loss is lowest")
MAGNITUDE = Quantity("magnitude", "", "1", "toy_valley", "of the feature")
GROUP_LOSS = Quantity("group_loss", "[groups]", "loss", "toy_valley, linear_descent, sampled_descent", "of each group")
LOG_PROJECTION = Quantity("log_projection", "", "1", "linear_descent", "logarithm of the projection's size")
SECOND_LAYER = Quantity("second_layer", "", "1", "linear_descent", "c")
SCALAR_LAYERS = Quantity("scalar_layers", "[layers − 1]", "1", "sampled_descent", "the layers behind the first")
FLOW_SHARPNESS = Quantity("flow_sharpness", "", "loss", "sampled_descent", "λ at the end of gradient flow, once")
GRID = Quantity("grid", "[‖β‖, α, k]", "1", "theorems", "fields alpha, k, beta_norm")
CONDITIONS = Quantity("conditions", "[‖β‖, α, k]", "1", "theorems", "which conditions of the theorems hold")
MEASURED = Quantity("measured", "[‖β‖, α, k]", "1", "theorems", "what each statement bounds")
BOUND = Quantity("bound", "[‖β‖, α, k]", "1", "theorems", "its bound")
HOLDS = Quantity("holds", "[‖β‖, α, k]", "1", "theorems", "whether it holds")
PATH = Quantity("path", "[6, T]", "1", "theorems", "gradient flow of the i-th model")
PATH_TIMES = Quantity("path_times", "[2]", "1", "theorems", "when c turns and when λ is lowest")
DESCENT_RATIO = Quantity("descent_ratio", "", "1", "theorems", "step size over 2/(α‖β‖)")
DESCENT_LOG_B_O = Quantity("descent_log_b_o", "[T]", "1", "theorems", "logarithm of abs(b_o)")
DESCENT_SIGN = Quantity("descent_sign", "[T]", "1", "theorems", "sign of b_o")
DESCENT_ETA_LAMBDA = Quantity("descent_eta_lambda", "[T]", "1", "theorems", "ηλ")
COLOUR = Quantity("colour", "[3]", "byte", "colour_neighbours", "of the i-th block")
NEIGHBOUR = Quantity("neighbour", "[m]", "index", "colour_neighbours", "its nearest training images")
NEIGHBOUR_DISTANCE = Quantity("neighbour_distance", "[m]", "1", "colour_neighbours", "their distances")

QUANTITIES: dict[str, Quantity] = {value: value for value in list(vars().values()) if isinstance(value, Quantity)}
"""All of them, by name."""


def table() -> str:
    """All of them as a Markdown table, for docs/quantities.md."""
    head = "| quantity | shape | unit | written by | one row |\n|---|---|---|---|---|"
    rows = [f"| `{q}` | {q.shape or 'a number'} | {q.unit} | `{q.writer}` | {q.meaning} |" for q in QUANTITIES.values()]
    return "\n".join([head, *rows])
