"""Ab initio heterogeneous cryo-EM reconstruction by amortised inference."""

__version__ = "0.1.0"
