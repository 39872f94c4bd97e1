"""Ab initio heterogeneous cryo-EM reconstruction by amortised inference."""

from cryofire.version import __version__

__all__ = ["Reconstruction", "__version__"]


def __getattr__(name: str) -> object:
    """`Reconstruction`, imported when first asked for, so that ``import cryofire`` stays light."""
    if name == "Reconstruction":
        from cryofire.api import Reconstruction  # noqa: PLC0415

        return Reconstruction
    raise AttributeError(f"module 'cryofire' has no attribute {name!r}")
