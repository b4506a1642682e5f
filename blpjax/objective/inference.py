"""What a GMM step reports beside theta."""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Float, Int

from blpjax.objective import iv
from blpjax.objective.clusters import Counts


class CovarianceTypes(NamedTuple):
    """How covariances of moments are estimated (static). Clusters of several kinds have a tuple of numbers."""

    W_type: str = "robust"
    se_type: str = "robust"
    center_moments: bool = True
    n_clusters: Counts | None = None


class StepSummary(eqx.Module):
    """What a GMM step reports beside theta.

    Parameters are stacked as theta and then the concentrated elements of beta and gamma, P + K of them. `moments` (M,),
    `moments_jacobian` (M, P + K), `moments_covariances` (M, M), `updated_W` (M, M), `inference` with covariances
    (P + K, P + K), `covariances_rank`, the numerical rank of the moments' covariances, and the part of these (M, M)
    that is simulation error, None unless agents were drawn again.
    """

    parameters: Float[Any, " P"]
    moments: Float[Any, " M"]
    moments_jacobian: Float[Any, "M P"]
    moments_covariances: Float[Any, "M M"]
    updated_W: Float[Any, "M M"]
    inference: iv.Inference
    covariances_rank: Int[Any, ""]
    simulation_covariances: Float[Any, "M M"] | None = None
