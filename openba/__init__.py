"""openba: the plain library of the product. It imports neither Prefect, MLflow nor Ray."""

__version__ = "0.1.0"
